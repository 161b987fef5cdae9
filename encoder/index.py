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
from files.arrays import LARGEST, largest
from terminal.escape import printable

FORMAT = "2"
QUERIES = 256  # number of queries multiplied with the table at a time
ROWS = 1024  # number of the table's rows that are widened at a time: they stay in the cache
NUMBER = np.dtype("<f2")  # a vector is one value of so many bytes: lists take ten times as long
INFINITE = 0x7C00  # the bits of infinity, of this type
# Column -> type. With a dictionary, a long name that many functions have takes memory only once.
NAMES = pa.dictionary(pa.int32(), pa.string())
TYPES = {"address": pa.uint64(), "name": NAMES, "blocks": pa.int32()}
MAKE = "`python search.py index DIR` makes an index"
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
    name : int32 (N,)
        Index of each function's name.
    names : pyarrow.StringArray (M,)
        The names; no two are the same.
    blocks : int32 (N,)
        Number of basic blocks.
    vector : float16 (N, D)
        Vectors of length 1.
    """

    binaries: list[Binary]
    binary: np.ndarray
    address: np.ndarray
    name: np.ndarray
    names: pa.StringArray
    blocks: np.ndarray
    vector: np.ndarray

    def __len__(self) -> int:
        """Return the number of functions."""
        return len(self.name)

    def name_of(self, function: int) -> str:
        """Return the name of a function."""
        return self.names[self.name[function]].as_py()


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
        # Packing would save a tenth, and reading would take half as long again.
        pyarrow.parquet.write_table(
            *(table, file),
            compression="none",
            use_dictionary=["name"],
            write_statistics=False,
            write_page_checksum=True,
        )


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
    utils.check_folder(folder, "index_dir", MAKE)
    files = sorted(Path(folder).glob("*.parquet"), key=str)
    if not files:
        raise utils.UserError(f"{folder} holds no index; {MAKE}")
    binaries, parts, n = [], [], 0
    # One array for all vectors: to allocate one for each file takes longer than to read the file.
    size = min(LARGEST, sum(file.stat().st_size for file in files if file.is_file()))
    vector = np.empty((size // (NUMBER.itemsize * dimensions), dimensions), NUMBER)
    for file in files:
        about, part = _read_file(file)
        if about["encoder"] != encoder:
            raise utils.UserError(
                f"{file} has vectors of another encoder ({printable(about['encoder'])}, not "
                f"{encoder}); delete it, or name another folder"
            )
        some = part.pop("vector")
        if some.shape[1] != dimensions:
            raise utils.UserError(
                f"{file} has vectors of {some.shape[1]:,} dimensions, and its encoder "
                f"makes {dimensions:,}; delete it and index its binary again"
            )
        if n + len(some) > len(vector):  # equal vectors can be stored once
            vector = np.concatenate([vector[:n], np.empty((n + len(some), dimensions), NUMBER)])
        vector[n : n + len(some)] = some
        n += len(some)
        binaries.append(Binary(about["path"], about["sha256"], about["processor"]))
        parts.append(part)
    names = [chunk for part in parts for chunk in part["name"].chunks]
    try:
        names = pa.chunked_array(names, NAMES).unify_dictionaries().chunks
    except pa.ArrowException as error:
        raise utils.UserError(f"{folder} has too many names ({error}); use two folders") from error
    return Index(
        binaries=binaries,
        binary=np.repeat(np.arange(len(parts), dtype=np.int32), [len(p["name"]) for p in parts]),
        address=np.concatenate([part["address"] for part in parts]),
        name=np.concatenate([np.empty(0, np.int32), *(chunk.indices for chunk in names)]),
        names=names[0].dictionary if names else pa.array([], pa.string()),
        blocks=np.concatenate([part["blocks"] for part in parts]),
        vector=vector[:n],
    )


def _read_file(file: Path) -> tuple[dict[str, str], dict]:
    try:
        with utils.open_regular(file) as content:
            size = os.fstat(content.fileno()).st_size
            if size > LARGEST:
                raise ValueError(f"it has {size:,} bytes, more than {LARGEST:,}")
            whole = content.read()
        # A thread of pyarrow that still works when Python ends aborts the process, so it must start
        # none: no pre_buffer, no use_threads.
        opened = pyarrow.parquet.ParquetFile(
            pa.BufferReader(whole),
            read_dictionary=["name"],
            pre_buffer=False,
            page_checksum_verification=True,
        )
        about, width = _check_header(opened, size)
        table = opened.read(use_threads=False)
        table.validate(full=True)  # names are UTF-8
        if any(column.null_count for column in table.columns):
            raise ValueError("a value is missing")
        vectors = [
            np.frombuffer(chunk.buffers()[1], NUMBER, width * len(chunk), 2 * width * chunk.offset)
            for chunk in table["vector"].chunks
            if len(chunk)
        ]
        several = len(vectors) != 1
        vector = np.concatenate([*vectors, np.empty(0, NUMBER)]) if several else vectors[0]
        vector = vector.reshape(-1, width)
        part = {
            "address": table["address"].to_numpy().astype(np.uint64),
            "name": table["name"],
            "blocks": table["blocks"].to_numpy().astype(np.int32),
            "vector": vector,
        }
        if not is_finite(vector):
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
        if schema.field(name).type != kind:
            raise ValueError(f"'{name}' is of type {schema.field(name).type}")
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
    by_name: bool = False,
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
    by_name : bool
        Find only the nearest function of each name, so that the builds of one do not hide others.

    Returns
    -------
    int64 (Q, k)
        Functions of the index, the nearest first; of equally near ones, the first in the index.
    float32 (Q, k)
        Their cosines.
    float32 (Q, k)
        The chance that the name of each is right.
    """
    known = index.name if allowed is None else index.name[allowed]
    count = min(count, len(np.unique(known)) if by_name else len(known))
    found = np.empty((len(vector), count), np.int64)
    cosine, chance = (np.empty((len(vector), count), np.float32) for _ in range(2))
    if not count:
        return found, cosine, chance
    order = np.argsort(index.name, kind="stable")
    ordered = index.name[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))  # of the functions of each name
    names = ordered[starts]
    for start in range(0, len(vector), QUERIES):
        products = _products(vector[start : start + QUERIES], index.vector)
        if allowed is not None:
            products[:, ~allowed] = -np.inf
        best_of_name = np.maximum.reduceat(products[:, order], starts, axis=1)
        of_name = calibration.chances(best_of_name)
        # Sort only the best. The sort is stable, so equal cosines keep the order of the index.
        counted = best_of_name if by_name else products
        bound = np.partition(counted, counted.shape[1] - count, axis=1)[:, -count]
        for i, row in enumerate(products):
            best = np.flatnonzero(row >= bound[i])
            best = best[np.argsort(-row[best], kind="stable")]
            if by_name:
                best = best[np.sort(np.unique(index.name[best], return_index=True)[1])]
            best = best[:count]
            found[start + i], cosine[start + i] = best, row[best]
            chance[start + i] = of_name[i, np.searchsorted(names, index.name[best])]
    return found, cosine, chance


def _products(queries: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Multiply each query with each row of the table: (Q, D), float16 (N, D) -> float32 (Q, N)."""
    products = np.empty((len(queries), len(table)), np.float32)
    # Always as many rows, so that BLAS rounds the products of equal rows in the same way.
    memory = np.zeros((ROWS, table.shape[1]), np.int32)
    for start in range(0, len(table), ROWS):
        rows = table[start : start + ROWS]
        widen(rows, memory[: len(rows)])
        products[:, start : start + ROWS] = (queries @ memory.view(np.float32).T)[:, : len(rows)]
    return products


def is_finite(half: np.ndarray) -> bool:
    """Return whether all numbers, float16 (n, D), are finite.

    The same as ``np.isfinite(half).all()``, but ten times as fast: of the bits as a number, those
    of infinities and NaNs are the largest with either sign.
    """
    bits = half.view("<i2"), half.view("<u2")
    return not half.size or bool(bits[0].max() < INFINITE and bits[1].max() < INFINITE + 0x8000)


def widen(half: np.ndarray, wide: np.ndarray) -> None:
    """Write finite float16 numbers as float32, whose bits are ``wide``, int32 of the same shape.

    The same as ``half.astype(np.float32)``, but five times as fast: with exponent and fraction
    moved to their places, a number is 2 ** 112 times too small.
    """
    np.copyto(wide, half.view("<i2"))
    wide <<= 13
    wide &= ~0x70000000  # copies of the sign
    number = wide.view(np.float32)
    number *= np.float32(2.0**112)
