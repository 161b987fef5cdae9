"""A table of functions' vectors that grows: one Parquet file for each binary, named by its content.

A binary that is added writes one file and touches no other. All vectors of a folder are made by one
encoder: each file names it, and files of another one are refused.
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

FORMAT = "1"
CHUNK = 256  # queries that are multiplied with the table at a time
TYPES = {"address": pa.uint64(), "name": pa.string(), "blocks": pa.int32()}  # of columns
ABOUT = ("format", "encoder", "path", "sha256", "processor")  # what a file's metadata says


@dataclasses.dataclass(frozen=True)
class Binary:
    """Where a file lay when it was added, the SHA-256 of its bytes, and its processor."""

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
        Which of them each function is in.
    address : uint64 (N,), name : list of str, blocks : int32 (N,)
    vector : float32 (N, D)
        Of length 1; zero where the encoder knows no word of a function.
    """

    binaries: list[Binary]
    binary: np.ndarray
    address: np.ndarray
    name: list[str]
    blocks: np.ndarray
    vector: np.ndarray


def index_file(folder: str | os.PathLike[str], sha256: str) -> Path:
    """Return where the functions of the binary with this content are (to be) kept."""
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
    """Write the functions of one binary, whole or not at all; parameters as `Index` has them.

    ``encoder`` names the encoder that made the vectors (`Encoder.identity`).
    """
    about = {"format": FORMAT, "encoder": encoder, **dataclasses.asdict(binary)}
    about["path"] = printable(binary.path)  # a file name need not be text, and this must be
    columns = {
        "address": pa.array(address, pa.uint64()),
        "name": pa.array(name, pa.string()),
        "blocks": pa.array(blocks, pa.int32()),
        "vector": pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(vector, np.float16).ravel(), pa.float16()),
            vector.shape[1],
        ),
    }
    table = pa.table(columns).replace_schema_metadata(about)
    with utils.atomic_file(index_file(folder, binary.sha256), "wb") as file:
        pyarrow.parquet.write_table(table, file, compression="zstd")


def read(folder: str | os.PathLike[str], encoder: str, dimensions: int) -> Index:
    """Read all files of a folder, in the order of their names.

    ``encoder`` names the encoder that made the vectors (`Encoder.identity`), which have so many
    ``dimensions``.

    Raises
    ------
    UserError
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
        vector=np.concatenate([part["vector"] for part in parts]),
    )


def _read_file(file: Path) -> tuple[dict[str, str], dict]:
    try:
        # Names stay in their dictionary: a long one that many functions have is kept once.
        with utils.open_regular(file) as content:
            opened = pyarrow.parquet.ParquetFile(content, read_dictionary=["name"])
            about, width = _check_header(opened, file.stat().st_size)
            table = opened.read(use_threads=False)
        if any(column.null_count for column in table.columns):
            raise ValueError("a value is missing")
        vectors = table["vector"].combine_chunks()
        flat = vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        names: list[str] = []
        for chunk in table["name"].chunks:
            words = chunk.dictionary.to_pylist()
            names += [words[i] for i in chunk.indices.to_pylist()]
        part = {
            "address": table["address"].to_numpy().astype(np.uint64),
            "name": names,
            "blocks": table["blocks"].to_numpy().astype(np.int32),
            "vector": flat.reshape(-1, width),
        }
        if not np.isfinite(flat).all():
            raise ValueError("a number is not finite")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, pa.ArrowException) as error:
        reason = str(error).split("\n")[0]
        raise utils.UserError(
            f"{file} is no part of an index ({reason}); delete it and index its binary again"
        ) from error
    return about, part


def _check_header(opened: pyarrow.parquet.ParquetFile, size: int) -> tuple[dict[str, str], int]:
    """Check what a file says of itself, before any of its columns is unpacked.

    Parameters
    ----------
    size : int
        Bytes of the file.

    Returns
    -------
    dict of str to str
        What `add` noted about the binary.
    int
        Dimensions of the vectors.

    Raises
    ------
    ValueError or KeyError
        It is not a file that `add` wrote, or it would unpack to too much.
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
    if not pa.types.is_fixed_size_list(vector) or vector.value_type != pa.float16():
        raise ValueError(f"'vector' is of type {vector}")
    # Not asked of each column: pyarrow aborts the process if a column's header is damaged.
    groups = [header.row_group(group) for group in range(header.num_row_groups)]
    unpacked = sum(max(0, group.total_byte_size) for group in groups)
    # A column may also repeat one value very often, which unpacking does not show.
    bytes_of_row = 3 * 8 + vector.list_size * np.dtype(np.float32).itemsize
    unpacked = max(unpacked, header.num_rows * bytes_of_row)
    if unpacked > largest(size):
        raise ValueError(f"it would unpack to {unpacked:,} bytes, more than {largest(size):,}")
    return about, vector.list_size


def nearest(
    index: Index,
    vector: np.ndarray,
    count: int,
    calibration: Calibration,
    allowed: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the functions whose vectors are nearest, by exact products.

    Parameters
    ----------
    vector : float32 (Q, D)
    count : int
        How many for each; fewer where fewer are allowed.
    calibration : Calibration
        Of the encoder.
    allowed : bool (N,), optional
        Which functions of the index may be found.

    Returns
    -------
    int64 (Q, k), float32 (Q, k), float32 (Q, k)
        Functions of the index, their cosines, and the chance that the name of each is right; the
        nearest first; among equally near ones, the first in the index.
    """
    rows = np.arange(len(index.vector)) if allowed is None else np.flatnonzero(allowed)
    table = index.vector[rows]
    k = min(count, len(rows))
    found = np.empty((len(vector), k), np.int64)
    cosine, chance = (np.empty((len(vector), k), np.float32) for _ in range(2))
    if not k:
        return found, cosine, chance
    _, name = np.unique([index.name[row] for row in rows.tolist()], return_inverse=True)
    order = np.argsort(name, kind="stable")
    starts = np.flatnonzero(np.diff(name[order], prepend=-1))
    for start in range(0, len(vector), CHUNK):
        products = vector[start : start + CHUNK] @ table.T
        # A stable sort of the few best: equal cosines keep the order of the index.
        bound = np.partition(products, len(rows) - k, axis=1)[:, len(rows) - k]
        of_name = calibration.chances(np.maximum.reduceat(products[:, order], starts, axis=1))
        for i, row in enumerate(products):
            best = np.flatnonzero(row >= bound[i])
            best = best[np.argsort(-row[best], kind="stable")][:k]
            found[start + i], cosine[start + i] = rows[best], row[best]
            chance[start + i] = of_name[i, name[best]]
    return found, cosine, chance
