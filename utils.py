"""What every script needs: errors for people, safe writing, checked settings, seeds, the device."""

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import random
import re
import shutil
import signal
import tempfile
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pydantic

# For pydantic.dataclasses.dataclass(config=STRICT): no unknown keys, no "1" for 1, no NaN.
STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "the file would pass the size limit (ulimit -f); raise it and run again",
    errno.EACCES: "no permission to write there; choose another place or change the permissions",
    errno.EROFS: "the file system is read-only; choose another place",
}


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
STOPPING = (signal.SIGINT, signal.SIGTERM)  # what people and batch systems end a program with
# What reading a broken .npz ends in; RuntimeError where its zip file says that it is encrypted.
NPZ_ERRORS = (OSError, ValueError, TypeError, LookupError, EOFError, RuntimeError)
NPZ_ERRORS += (zipfile.BadZipFile, zlib.error)
FAULTS = 8  # of a settings file that are named
LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # as tempfile names them


class UserError(Exception):
    """A mistake that the user can mend. Its text is one sentence naming the file, value and fix."""


class UsageError(UserError):
    """The command itself is wrong: its flags, or their values."""


class DiskError(UserError):
    """The disk is full, or the like: whoever reads it stops, for nothing more can be written."""


def default_signals() -> None:
    """Let the next Ctrl-C or SIGTERM end this process at once."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL)


def printable(name: str | os.PathLike[str]) -> str:
    """Return a file's name as text of one line: what is not printable becomes ``\\n``, ``\\xff``.

    A name may hold any bytes but "/" and NUL, and Python keeps those that are not UTF-8 as lone
    surrogates, which no UTF-8 file can hold.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a quota, a missing permission while writing ``path`` into a DiskError."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise DiskError(f"cannot write {path}: {DISK_ERRORS[error.errno]}") from error
        raise


@contextmanager
def atomic_file(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` that takes its name when the block ends without error.

    Parameters
    ----------
    path : path-like
        The final name; parent folders are made.
    mode : {"w", "wb"}
        Text is UTF-8 with "\\n" line ends.

    Raises
    ------
    DiskError
        Full disk, quota, file-size limit, no permission. Nothing is left behind.
    """
    path = Path(path)
    encoding = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with open(handle, mode, **encoding) as file:
                _hold(handle)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``path`` when the block ends without error."""
    path = Path(path)
    with disk_errors(path), temporary_folder(path) as folder:
        yield folder
        folder.chmod(0o777 & ~_umask())
        aside = _set_aside(path) if os.path.lexists(path) else None
        folder.rename(path)
        if aside is not None:
            shutil.rmtree(aside)


@contextmanager
def temporary_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` and named like it; what is there in the end goes."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    handle = os.open(folder, os.O_RDONLY)
    try:
        _hold(handle)
        yield folder
    finally:
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder, or a link to one, without ever leaving half of it under its name."""
    shutil.rmtree(_set_aside(path))


def _set_aside(path: Path) -> Path:
    """Move ``path`` into a temporary folder, which `remove_leftovers` knows."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    path.rename(aside / path.name)
    return aside


def _hold(handle: int) -> None:
    """Lock a temporary file or folder; the kernel unlocks it when this process ends, however."""
    with contextlib.suppress(OSError):  # a file system without locks: see remove_leftovers
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_leftovers(*folders: str | os.PathLike[str]) -> None:
    """Remove what killed runs left half-written in ``folders``: temporary files nobody holds.

    What a running process writes is locked, and stays. So does everything on a file system that
    knows no locks.
    """
    for folder in {Path(folder) for folder in folders}:
        for path in folder.glob(".*.tmp"):
            if not LEFTOVER.fullmatch(path.name) or path.is_symlink():
                continue
            with contextlib.suppress(OSError):
                handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink()
                finally:
                    os.close(handle)


def ahead(items: Iterator[Any], count: int) -> Iterator[Any]:
    """Yield the items in their order; from ``items``, up to ``count`` more are taken at any time.

    So a bounded number of futures, which an iterator makes, is under way at once.
    """
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def write_json(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    with atomic_file(path) as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """Return a UTF-8 file's text. ``what`` says in the error what the file should have been."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}), so no {what}") from error
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}") from error


def read_config(cls: type, path: str | os.PathLike[str]) -> Any:
    """Build the pydantic dataclass ``cls`` from the JSON object in ``path``.

    Raises
    ------
    UserError
        No such file, no JSON object, unknown or missing keys, wrong types, values out of range:
        one sentence with the file and every key at fault.
    """
    text = read_text(path, "settings file")
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold one JSON object, like {{...}}")
    try:
        # From JSON, so that a strict class may hold others.
        return pydantic.TypeAdapter(cls).validate_json(text)
    except pydantic.ValidationError as error:
        known = ", ".join(field.name for field in dataclasses.fields(cls))
        reasons = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
                reasons.append(f"unknown key '{key}' (known: {known})")
            elif problem["type"].startswith("missing"):
                reasons.append(f"key '{key}' is missing")
            else:
                at = f"'{key}' is {json.dumps(problem['input'])}: " if key else ""
                reasons.append(at + problem["msg"].removeprefix("Value error, "))
        more = f"; and {len(reasons) - FAULTS} more" if len(reasons) > FAULTS else ""
        raise UserError(f"{path}: " + "; ".join(reasons[:FAULTS]) + more) from error


def set_seed(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    import numpy as np  # both imported late: --help comes quicker without
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for the next allocation.

    glibc returns large blocks to the kernel at once, and each new one is mapped page by page, which
    shows in the time of a training step on a CPU. Elsewhere than on glibc this does nothing.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # names and numbers of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)


def get_device() -> "torch.device":  # noqa: F821 - torch is imported by those who train only
    """Return this process's GPU (``LOCAL_RANK`` under torchrun) if there is one, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")
