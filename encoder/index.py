"""A growing table of functions' vectors: one Parquet file per binary, named by its content's hash.

Adding a binary writes one file and touches no other. All vectors in a folder come from the same
encoder: each file names its encoder, and files of other encoders are refused.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

import utils
from encoder.calibration import Calibration
from files.arrays import largest
from terminal.escape import printable

FORMAT = "2"
CHUNK = 256  # number of queries multiplied with the table at a time
TYPES = {"address": pa.uint64(), "name": pa.string(), "blocks": pa.int32()}  # column -> type
NUMBER = np.dtype("<f2")  # a vector is one value of so many bytes: lists take ten times as long
ABOUT = ("format", "encoder", "path", "sha256", "processor")  # keys of a file's metadata


@dataclasses.dataclass(frozen=True)
class Binary:
    """A file's path when it was added, the SHA-256 of its bytes, and its processor."""

    path: str
    sha256: str
    processor: str


@dataclasses.dataclass(frozen=True)
class Index:
    """N functions of several binaries.

    Attributes
    ----------
    binaries : list of Binary
    binary : int32 (N,)
        Index of each function's binary.
    address : uint64 (N,)
    name : list of str
    blocks : int32 (N,)
        Number of basic blocks.
    vector : float32 (N, D)
        Vectors of length 1.
    """

    binaries: list[Binary]
    binary: np.ndarray
    address: np.ndarray
    name: list[str]
    blocks: np.ndarray
    vector: np.ndarray


def index_file(folder: str | os.PathLike[str], sha256: str) -> Path:
    """Return the file for the functions of the binary with this hash; it need not exist."""
    return Path(folder) / f"{sha256}.parquet"


def add(
    folder: str | os.PathLike[str],
    encoder: str,
    binary: Binary,
    address: np.ndarray,
    name: list[str],
    blocks: np.ndarray,
    vector: np.ndarray,
) -> None:
    """Add the functions of one binary; if that fails, no file is left behind.

    Parameters
    ----------
    folder : path-like
        The index.
    encoder : str
        Identity of the encoder that made the vectors (`Encoder.identity`).
    binary : Binary
    address, name, blocks, vector
        As in `Index`.
    """
    about = {"format": FORMAT, "encoder": encoder, **dataclasses.asdict(binary)}
    about["path"] = printable(binary.path)  # file names can be invalid UTF-8
    columns = {
        "address": pa.array(address, pa.uint64()),
        "name": pa.array(name, pa.string()),
        "blocks": pa.array(blocks, pa.int32()),
        "vector": packed(vector),
    }
    table = pa.table(columns).replace_schema_metadata(about)
    with utils.atomic_file(index_file(folder, binary.sha256), "wb") as file:
        packing = dict.fromkeys(TYPES, "zstd") | {"vector": "none"}  # zstd saves a tenth of these
        pyarrow.parquet.write_table(table, file, compression=packing)


def packed(vector: np.ndarray) -> pa.FixedSizeBinaryArray:
    """Return vectors, float (N, D), as a column of float16."""
    content = pa.py_buffer(np.ascontiguousarray(vector, NUMBER))
    kind = pa.binary(NUMBER.itemsize * vector.shape[1])
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(vector), [None, content])


def read(folder: str | os.PathLike[str], encoder: str, dimensions: int) -> Index:
    """Read all files of a folder, in the order of their names.

    Parameters
    ----------
    folder : path-like
        The index.
    encoder : str
        Identity of the encoder that must have made the vectors (`Encoder.identity`).
    dimensions : int
        Length of its vectors.

    Raises
    ------
    utils.UserError
        The folder holds no index, a file is damaged, or another encoder made its vectors.
    """
    files = sorted(Path(folder).glob("*.parquet"))
    if not files:
        raise utils.UserError(f"{folder} holds no index; `python search.py index DIR` makes one")
    binaries, parts = [], []
    for file in files:
        about, part = _read_file(file)
        if about["encoder"] != encoder:
            raise utils.UserError(
                f"{file} has vectors of another encoder ({printable(about['encoder'])}, not "
                f"{encoder}); delete it, or name another folder"
            )
        if part["vector"].shape[1] != dimensions:
            raise utils.UserError(
                f"{file} has vectors of {part['vector'].shape[1]:,} dimensions, and its encoder "
                f"makes {dimensions:,}; delete it and index its binary again"
            )
        binaries.append(Binary(about["path"], about["sha256"], about["processor"]))
        parts.append(part)
    return Index(
        binaries=binaries,
        binary=np.repeat(np.arange(len(parts), dtype=np.int32), [len(p["name"]) for p in parts]),
        address=np.concatenate([part["address"] for part in parts]),
        name=[name for part in parts for name in part["name"]],
        blocks=np.concatenate([part["blocks"] for part in parts]),
        vector=np.concatenate([part["vector"] for part in parts], dtype=np.float32),
    )


def _read_file(file: Path) -> tuple[dict[str, str], dict]:
    try:
        # With a dictionary, a long name that many functions have takes memory only once.
        # A thread of pyarrow that still holds the Python file when Python ends aborts the process,
        # so it must start none: no pre_buffer, no use_threads.
        with utils.open_regular(file) as content:
            opened = pyarrow.parquet.ParquetFile(
                content, read_dictionary=["name"], pre_buffer=False
            )
            about, width = _check_header(opened, file.stat().st_size)
            table = opened.read(use_threads=False)
        if any(column.null_count for column in table.columns):
            raise ValueError("a value is missing")
        vectors = [
            np.frombuffer(chunk.buffers()[1], NUMBER, width * len(chunk), 2 * width * chunk.offset)
            for chunk in table["vector"].chunks
            if len(chunk)
        ]
        vector = np.concatenate([*vectors, np.empty(0, NUMBER)]).reshape(-1, width)
        names: list[str] = []
        for chunk in table["name"].chunks:
            words = chunk.dictionary.to_pylist()
            names += [words[i] for i in chunk.indices.to_pylist()]
        part = {
            "address": table["address"].to_numpy().astype(np.uint64),
            "name": names,
            "blocks": table["blocks"].to_numpy().astype(np.int32),
            "vector": vector,
        }
        if not np.isfinite(vector).all():
            raise ValueError("a number is not finite")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, pa.ArrowException) as error:
        reason = str(error).split("\n")[0]
        raise utils.UserError(
            f"{file} is not part of an index ({reason}); delete it and index its binary again"
        ) from error
    return about, part


def _check_header(opened: pyarrow.parquet.ParquetFile, size: int) -> tuple[dict[str, str], int]:
    """Check a file's metadata before any column is decompressed.

    Parameters
    ----------
    opened : pyarrow.parquet.ParquetFile
    size : int
        The file's size in bytes.

    Returns
    -------
    dict of str to str
        The metadata that `add` wrote about the binary.
    int
        Length of the vectors.

    Raises
    ------
    ValueError or KeyError
        `add` did not write this file, or it would need too much memory.
    """
    schema, header = opened.schema_arrow, opened.metadata
    metadata = schema.metadata or {}
    about = {key: metadata[key.encode()].decode() for key in ABOUT}
    if about["format"] != FORMAT:
        raise ValueError(f"format {about['format']}, not {FORMAT}")
    if schema.names != [*TYPES, "vector"]:
        raise ValueError(f"its columns are {', '.join(schema.names)}")
    for name, kind in TYPES.items():
        found = schema.field(name).type
        found = found.value_type if pa.types.is_dictionary(found) else found
        if found != kind:
            raise ValueError(f"'{name}' is of type {found}")
    vector = schema.field("vector").type
    if not pa.types.is_fixed_size_binary(vector) or vector.byte_width % NUMBER.itemsize:
        raise ValueError(f"'vector' is of type {vector}")
    width = vector.byte_width // NUMBER.itemsize
    # Ask row groups, not columns: pyarrow aborts the process if a column's header is damaged.
    groups = [header.row_group(group) for group in range(header.num_row_groups)]
    unpacked = sum(max(0, group.total_byte_size) for group in groups)
    # A column that repeats one value takes few bytes here, but many once its rows are expanded.
    bytes_of_row = 3 * 8 + width * np.dtype(np.float32).itemsize
    unpacked = max(unpacked, header.num_rows * bytes_of_row)
    if unpacked > largest(size):
        raise ValueError(f"it would unpack to {unpacked:,} bytes, more than {largest(size):,}")
    return about, width


def nearest(
    index: Index,
    vector: np.ndarray,
    count: int,
    calibration: Calibration,
    allowed: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the nearest functions of the index by comparing with all of them.

    Parameters
    ----------
    index : Index
    vector : float32 (Q, D)
        Vectors of the queries.
    count : int
        How many functions to find for each query; fewer if fewer are allowed.
    calibration : Calibration
        The encoder's.
    allowed : bool (N,), optional
        Which functions of the index may be found. Default: all.

    Returns
    -------
    int64 (Q, k)
        Functions of the index, the nearest first; of equally near ones, the first in the index.
    float32 (Q, k)
        Their cosines.
    float32 (Q, k)
        The chance that the name of each is right.
    """
    rows = np.arange(len(index.vector)) if allowed is None else np.flatnonzero(allowed)
    table = index.vector[rows]
    k = min(count, len(rows))
    found = np.empty((len(vector), k), np.int64)
    cosine, chance = (np.empty((len(vector), k), np.float32) for _ in range(2))
    if not k:
        return found, cosine, chance
    numbers: dict[str, int] = {}
    name = np.array([numbers.setdefault(index.name[row], len(numbers)) for row in rows.tolist()])
    order = np.argsort(name, kind="stable")
    starts = np.flatnonzero(np.diff(name[order], prepend=-1))
    for start in range(0, len(vector), CHUNK):
        products = vector[start : start + CHUNK] @ table.T
        # Sort only the best. The sort is stable, so equal cosines keep the order of the index.
        bound = np.partition(products, len(rows) - k, axis=1)[:, len(rows) - k]
        of_name = calibration.chances(np.maximum.reduceat(products[:, order], starts, axis=1))
        for i, row in enumerate(products):
            best = np.flatnonzero(row >= bound[i])
            best = best[np.argsort(-row[best], kind="stable")][:k]
            found[start + i], cosine[start + i] = rows[best], row[best]
            chance[start + i] = of_name[i, name[best]]
    return found, cosine, chance
