"""Arrays in .npz files, checked against a schema, so that any file can be read safely.

A schema is a dict with an entry for each array::

    SCHEMA = {
        "edges": Numbers("i4", "m", 2, below="B"),
        "offsets": Numbers("i8", "B + 1", rises_to="T"),
        "dictionary": Texts("W"),
    }

Letters stand for lengths: arrays with the same letter must have the same length, and numbers can be
bounded by a letter. Types, shapes and sizes are read from the headers in the file and checked
before anything is unpacked, so that a small file cannot fill the memory.
"""

import contextlib
import dataclasses
import io
import itertools
import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

import numpy as np
import safetensors
import safetensors.numpy

import utils
from terminal.escape import printable

LARGEST = 2**32  # maximum size in bytes of the arrays in a file
# A file may unpack to this many times its size. The arrays of real binaries are about 6 times as
# large as their files, or more if a section is full of zeros; zip bombs reach 1,000.
RATIO = 100
SMALL = 2**28  # any file may unpack to so many bytes, whatever the ratio
PIECE = 2**20  # bytes to unpack at a time
UNICODE = 0x110000  # all code points are below this


def largest(size: int) -> int:
    """Return to how many bytes a file of ``size`` bytes may unpack."""
    return min(LARGEST, max(SMALL, RATIO * size))


class Damage(ValueError):
    """The arrays of a file are wrong; the message is the reason, as part of a sentence."""


@dataclasses.dataclass(frozen=True, init=False)
class Numbers:
    """An array of numbers.

    Attributes
    ----------
    dtypes : tuple of str
        Allowed types in NumPy's notation, e.g. "i4". "U" is text of any width.
    shape : tuple of str and int
        Lengths, such as "B", "B + 1" or 2.
    below : str or int, optional
        All numbers must be at least 0 and less than this.
    above : float, optional
        All numbers must be more than this.
    most : float, optional
        No absolute value may exceed this.
    rises_to : str or int, optional
        For offsets: the numbers start with 0, never decrease, and end with this.
    """

    dtypes: tuple[str, ...]
    shape: tuple[str | int, ...]
    below: str | int | None
    above: float | None
    most: float | None
    rises_to: str | int | None

    def __init__(
        self,
        dtypes: str,
        *shape: str | int,
        below: str | int | None = None,
        above: float | None = None,
        most: float | None = None,
        rises_to: str | int | None = None,
    ) -> None:
        values = (tuple(dtypes.split()), shape, below, above, most, rises_to)
        for field, value in zip(dataclasses.fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)


@dataclasses.dataclass(frozen=True)
class Texts:
    """A list of ``length`` texts, a letter or a number: UTF-8, or bytes if ``raw``.

    In the file these are two arrays: all bytes, and "<name>_offsets" with the begin of each text.
    """

    length: str | int
    raw: bool = False


Schema = Mapping[str, Numbers | Texts]


def write_arrays(file: IO[bytes], values: Mapping[str, Any], schema: Schema) -> None:
    """Write arrays, and lists of texts, as a compressed .npz."""
    arrays: dict[str, Any] = {}
    for name, kind in schema.items():
        value = values[name]
        if isinstance(kind, Texts):
            encoded = [text if kind.raw else text.encode() for text in value]
            lengths = [0, *map(len, encoded)]
            arrays[f"{name}_offsets"] = np.cumsum(lengths, dtype=np.int64)
            value = np.frombuffer(b"".join(encoded), np.uint8)
        arrays[name] = value
    np.savez_compressed(file, **arrays)


def read_arrays(
    path: str | os.PathLike[str], schema: Schema, what: str, remedy: str
) -> dict[str, Any]:
    """Read the arrays and lists of texts in ``schema`` from an .npz file; ignore all others.

    Parameters
    ----------
    what, remedy : str
        For the error: what the file should be, and what the user can do.

    Raises
    ------
    utils.UserError
        No such file; another kind of file; arrays that are missing, too large, or not as the
        schema says.
    """
    with contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(utils.open_regular(path))
        except OSError as error:
            raise utils.UserError(f"cannot read the {what} {path}: {error.strerror}") from error
        try:
            archive = opened.enter_context(zipfile.ZipFile(file))
            most = largest(os.fstat(file.fileno()).st_size)
            return _joined(_read(archive, dict(_parts(schema)), most), schema)
        except Exception as error:  # zipfile fails in many ways on broken files
            reason = printable(str(error))[:200] or type(error).__name__
            raise utils.UserError(f"the {what} {path} is damaged ({reason}); {remedy}") from error


@contextlib.contextmanager
def weights_of(
    path: str | os.PathLike[str], what: str, writer: str, remedy: str = ""
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the arrays of a .safetensors file; a fault found in them in the block is the file's.

    Parameters
    ----------
    what, writer, remedy : str
        For the error: what the file should be, what writes such files, what the user can do.

    Raises
    ------
    utils.UserError
        No such file; another kind of file; the block raised KeyError, TypeError or ValueError.
    """
    try:
        utils.open_regular(path).close()
        yield safetensors.numpy.load_file(path)
    except OSError as error:
        raise utils.UserError(
            f"cannot read the {what} {path}: {error.strerror or error}"
        ) from error
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise utils.UserError(
            f"{path} is no {what} that {writer} wrote ({printable(error)}){remedy}"
        ) from error


def check_arrays(arrays: Mapping[str, np.ndarray], schema: Mapping[str, Numbers]) -> None:
    """Raise :class:`Damage` unless the arrays match the schema."""
    headers = {name: (arrays[name].dtype, arrays[name].shape) for name in schema if name in arrays}
    lengths = _check_headers(headers, schema)
    for name, numbers in schema.items():
        _check_values(name, arrays[name], numbers, lengths)


def _parts(schema: Schema) -> Iterable[tuple[str, Numbers]]:
    """Yield the arrays that a file contains for each entry of a schema."""
    for name, kind in schema.items():
        if isinstance(kind, Texts):
            yield name, Numbers("u1", f"bytes of {name}")
            more = f"{kind.length} + 1" if isinstance(kind.length, str) else kind.length + 1
            yield f"{name}_offsets", Numbers("i8", more, rises_to=f"bytes of {name}")
        else:
            yield name, kind


def _read(archive: zipfile.ZipFile, parts: dict[str, Numbers], most: int) -> dict[str, np.ndarray]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        if entry.filename in entries:
            raise Damage(f"it holds {entry.filename} twice")
        entries[entry.filename] = entry
    entries = {name: entries[f"{name}.npy"] for name in parts if f"{name}.npy" in entries}
    total = sum(entry.file_size for entry in entries.values())
    if total > most:
        raise Damage(f"it would unpack to {total:,} bytes, more than {most:,}")
    headers, orders = {}, {}
    for name, entry in entries.items():
        with archive.open(entry) as member:
            dtype, shape, fortran, start = _header(member)
        size = start + math.prod(shape) * dtype.itemsize
        if size != entry.file_size:
            raise Damage(f"'{name}' has {entry.file_size:,} bytes, but its header says {size:,}")
        headers[name], orders[name] = (dtype, shape), "F" if fortran else "C"
    lengths = _check_headers(headers, parts)
    arrays = {}
    for name, numbers in parts.items():
        dtype, shape = headers[name]
        values = np.empty(math.prod(shape), dtype)
        with archive.open(entries[name]) as member:
            _header(member)
            _fill(name, member, values)  # type: ignore[arg-type]  # is a ZipExtFile
        arrays[name] = values.reshape(shape, order="F" if orders[name] == "F" else "C")
        _check_values(name, arrays[name], numbers, lengths)
    return arrays


def _header(member: IO[bytes]) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """Read the header of an .npy; return type, shape, whether in Fortran order, and its own size.

    Only version 1 is accepted, whose headers have less than 64 KiB: NumPy uses it for our arrays.
    """
    start = member.read(10)
    if len(start) < 10 or start[:8] != b"\x93NUMPY\x01\x00":
        raise Damage("it contains something other than .npy files of version 1")
    size = int.from_bytes(start[8:], "little")
    text = io.BytesIO(start[8:] + member.read(size))
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(text)
    if min(shape, default=0) < 0:
        raise Damage("an array has a negative length")
    return dtype, shape, fortran, len(start) + size


def _fill(name: str, member: zipfile.ZipExtFile, values: np.ndarray) -> None:
    if not values.nbytes:
        member.read(1)  # reading to the end verifies the checksum
        return
    target = memoryview(values.view(np.uint8).data)
    done = 0
    while done < len(target):
        read = member.readinto(target[done : done + PIECE])
        if not read:
            raise Damage(f"'{name}' is truncated")
        done += read


def _check_headers(
    headers: Mapping[str, tuple[np.dtype, tuple[int, ...]]], schema: Mapping[str, Numbers]
) -> dict[str, int]:
    """Check types and shapes; return the length of each letter."""
    lengths: dict[str, int] = {}
    for name, numbers in schema.items():
        if name not in headers:
            raise Damage(f"'{name}' is missing")
        dtype, shape = headers[name]
        if not any(
            dtype.kind == "U" and dtype.isnative if wanted == "U" else dtype == np.dtype(wanted)
            for wanted in numbers.dtypes
        ):
            allowed = " or ".join(w if w == "U" else str(np.dtype(w)) for w in numbers.dtypes)
            raise Damage(f"'{name}' is of type {dtype}, not {allowed}")
        if len(shape) != len(numbers.shape):
            raise Damage(f"'{name}' has {len(shape)} dimensions, not {len(numbers.shape)}")
        for length, wanted in zip(shape, numbers.shape, strict=True):
            if isinstance(wanted, int):
                fits = length == wanted
            else:
                letter, plus, more = wanted.partition(" + ")
                length -= int(more) if plus else 0
                fits = length >= 0 and lengths.setdefault(letter, length) == length
            if not fits:
                raise Damage(f"'{name}' has the shape {shape}, which does not fit the others")
    return lengths


def _bound(wanted: str | int, lengths: Mapping[str, int]) -> int:
    """Return what a number, a letter, or a difference of two letters stands for."""
    if isinstance(wanted, int):
        return wanted
    first, _, second = wanted.partition(" - ")
    return lengths[first] - (lengths[second] if second else 0)


def _check_values(
    name: str, values: np.ndarray, numbers: Numbers, lengths: Mapping[str, int]
) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise Damage(f"'{name}' holds a number that is not finite")
    if not values.size:
        if numbers.rises_to is not None:
            raise Damage(f"'{name}' is empty")
        return
    if values.dtype.kind == "b" and values.view(np.uint8).max() > 1:
        raise Damage(f"'{name}' holds something other than true and false")
    if values.dtype.kind == "U" and values.dtype.itemsize:
        if np.ascontiguousarray(values).view(np.uint32).max() >= UNICODE:
            raise Damage(f"'{name}' holds an invalid character")
        return
    low, high = values.min().item(), values.max().item()
    if numbers.below is not None:
        limit = _bound(numbers.below, lengths)
        if low < 0 or high >= limit:
            wrong = low if low < 0 else high
            raise Damage(f"'{name}' holds {wrong}, which is not in 0 to {limit - 1}")
    if numbers.above is not None and low <= numbers.above:
        raise Damage(f"'{name}' holds {low}, which is not more than {numbers.above}")
    if numbers.most is not None and max(-low, high) > numbers.most:
        raise Damage(f"'{name}' holds {max(-low, high):g}, which is more than {numbers.most:g}")
    if numbers.rises_to is not None:
        end = _bound(numbers.rises_to, lengths)
        if values[0] != 0 or values[-1] != end or (values[1:] < values[:-1]).any():
            raise Damage(f"'{name}' does not rise from 0 to {end}")


def _joined(arrays: dict[str, np.ndarray], schema: Schema) -> dict[str, Any]:
    """Cut the bytes of each list of texts into the texts."""
    values: dict[str, Any] = {}
    for name, kind in schema.items():
        values[name] = arrays[name]
        if isinstance(kind, Texts):
            flat, offsets = arrays[name].tobytes(), arrays[f"{name}_offsets"].tolist()
            texts = [flat[a:b] for a, b in itertools.pairwise(offsets)]
            values[name] = texts if kind.raw else [text.decode() for text in texts]
    return values
