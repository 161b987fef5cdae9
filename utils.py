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
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
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
FAULTS = 8  # of a settings file that are named
SHOWN = 100  # characters of a value that a message shows
PATIENCE = 5.0  # seconds that a run waits for a folder that another one writes into
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
        name, handle = _held(path, tempfile.mkstemp)
        try:
            with open(handle, mode, **encoding) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                # Before the file is closed, which unlocks it.
                os.chmod(name, 0o666 & ~_umask())
                os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``path`` when the block ends without error."""
    path = Path(path)
    with (
        disk_errors(path),
        temporary_folder(path) as folder,
        contextlib.ExitStack() as replaced,
    ):
        yield folder
        folder.chmod(0o777 & ~_umask())
        while True:  # until no other process puts its own folder there in between
            try:
                folder.rename(path)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            aside = replaced.enter_context(temporary_folder(path))
            with contextlib.suppress(FileNotFoundError):
                path.rename(aside / path.name)


@contextmanager
def temporary_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` and named like it; what is there in the end goes."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        name, handle = _held(path, _make_folder)
    try:
        yield Path(name)
    finally:
        shutil.rmtree(name, ignore_errors=True)
        os.close(handle)


def remove_folder(path: Path) -> None:
    """Remove a folder, or a link to one, without ever leaving half of it under its name."""
    with temporary_folder(path) as aside:
        path.rename(aside / path.name)


def _make_folder(**name: Any) -> tuple[int, str]:
    """Make a folder as `tempfile.mkdtemp` does, and open it."""
    folder = tempfile.mkdtemp(**name)
    return os.open(folder, os.O_RDONLY), folder


def _held(path: Path, make: Callable[..., tuple[int, str]]) -> tuple[str, int]:
    """Make a temporary file or folder beside ``path`` and lock it; return its name and handle.

    The kernel unlocks it when this process ends, however. Between making and locking, another
    process may take it for a leftover and remove it; then the next one is made.
    """
    while True:
        with contextlib.suppress(FileNotFoundError):
            handle, name = make(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
            with contextlib.suppress(OSError):  # a file system without locks: remove_leftovers
                fcntl.flock(handle, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(name)):
                    return name, handle
            os.close(handle)
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))


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


@contextmanager
def one_writer(*folders: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other runs out of ``folders``; they may read them, and write into others.

    Two runs with other settings would remove or mix each other's files. A folder that is not there
    is made, and goes again if nothing was written. The kernel unlocks the folders when this process
    ends, however. A file system without locks keeps nobody out.

    Raises
    ------
    UserError
        Another run writes into one of them, and goes on with it for PATIENCE seconds.
    """
    with contextlib.ExitStack() as opened:
        for _, folder in sorted({os.path.realpath(folder): folder for folder in folders}.items()):
            missing = not os.path.exists(folder)
            opened.callback(os.close, _lock_folder(Path(folder)))
            if missing:
                opened.callback(_remove_empty, folder)
        yield


def _lock_folder(folder: Path) -> int:
    """Make and lock a folder; return the handle that holds the lock until it is closed."""
    until = time.monotonic() + PATIENCE
    while True:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(handle)
                raise UserError(
                    f"another run writes into the folder {folder}; wait for its end, or choose "
                    "another folder"
                ) from None
            time.sleep(0.1)
        except OSError:  # a file system without locks
            return handle
        else:
            # The run before may have put another folder there.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(folder)):
                    return handle
        os.close(handle)


def _remove_empty(folder: str | os.PathLike[str]) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(folder)


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


def refuse_flags(because: str, **flags: Any) -> None:
    """Refuse flags that would be ignored: those of ``flags`` that are not None, nor False."""
    for name, value in flags.items():
        if value not in (None, False):
            raise UsageError(f"--{name} {because}; leave it out")


def check_outputs(
    outputs: Mapping[str, str | os.PathLike[str] | None],
    inputs: Iterable[str | os.PathLike[str] | None] = (),
    folders: Mapping[str, str | os.PathLike[str] | None] | None = None,
    replaced: Mapping[str, str | os.PathLike[str] | None] | None = None,
) -> None:
    """Refuse, before hours of work, outputs that could not be written or would replace an input.

    Parameters
    ----------
    outputs : mapping of str to path-like or None
        Flag -> the file to write. None: it is not asked for.
    inputs : iterable of path-like or None
        What is read and must stay: no output may be one of them.
    folders : mapping of str to path-like or None
        Flag -> the folder that files are added to.
    replaced : mapping of str to path-like or None
        Flag -> the folder that is replaced as a whole; no input may lie in it.

    Raises
    ------
    UsageError
        An output that is an input, or another output.
    UserError
        An output that cannot be written.
    """
    replaced = replaced or {}
    folders = {**(folders or {}), **replaced}
    read = [path for path in inputs if path is not None]
    written: dict[str, str] = {}  # where an output really lies -> its flag
    for flag, path in (*outputs.items(), *folders.items()):
        if path is None:
            continue
        reason = _unwritable(os.fspath(path), flag in folders)
        if reason:
            raise UserError(f"--{flag} {path}: {reason}")
        place = os.path.realpath(path)
        for source in read:
            if _same(place, source) or (flag in replaced and _holds(place, source)):
                raise UsageError(f"--{flag} {path} would replace {source}, which is read")
        for other, its_flag in written.items():
            if _same(place, other):
                raise UsageError(f"--{its_flag} and --{flag} would both write {path}")
        written[place] = flag


def _same(path: str, other: str | os.PathLike[str]) -> bool:
    """Say whether two names mean one file, which may have several names or not be there yet."""
    with contextlib.suppress(OSError):
        return os.path.samefile(path, other)
    return os.path.realpath(path) == os.path.realpath(other)


def _holds(folder: str, path: str | os.PathLike[str]) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(folder)


def _unwritable(path: str, is_folder: bool) -> str | None:
    """Return why a file, or a folder, cannot be written there; None if nothing speaks against it.

    Nothing is made. What is missing above it will be made when it is written.
    """
    if not path:
        return "the name is empty"
    if is_folder and os.path.lexists(path) and not os.path.isdir(path):
        return "this is no folder; choose another name"
    if not is_folder and (os.path.isdir(path) or path.endswith("/")):
        return "this is a folder; give the name of a file"
    parent = os.path.realpath(os.path.dirname(path))
    kernels = parent == "/dev" or parent.split("/")[1] in ("proc", "sys")
    if kernels or (not is_folder and os.path.exists(path) and not os.path.isfile(path)):
        return "this is a device or the like; give the name of a file"
    above = os.path.abspath(path)
    missing = []
    while not os.path.isdir(above):
        if os.path.exists(above) and missing:
            return f"{above} is no folder"
        above, name = os.path.split(above)
        missing.append(name)
    if not os.access(above, os.W_OK | os.X_OK):
        return f"nothing can be written into {above} (permissions, or a read-only file system)"
    name = os.path.basename(os.path.abspath(path))
    names = [*missing, f".{name}.12345678.tmp"]  # under which it is written
    longest = max(len(os.fsencode(name)) for name in names)
    if longest > os.pathconf(above, "PC_NAME_MAX"):
        return "the name is too long"
    if len(os.fsencode(os.path.join(above, *names))) >= os.pathconf(above, "PC_PATH_MAX"):
        return "the path is too long"
    return None


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


def parse_json(text: str, path: str | os.PathLike[str]) -> Any:
    """Return what a JSON text says; ``path`` names its file in the error.

    Raises
    ------
    UserError
        No JSON; a key that stands twice in one object, of which readers would take either; brackets
        nested too deep or a number too long for Python.
    """

    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            twice = next(key for key, n in Counter(key for key, _ in items).items() if n > 1)
            raise UserError(f"{path}: the key {shortened(twice)} stands twice in one object")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path} is no JSON of ours: its brackets are nested too deep") from error
    except ValueError as error:  # of int()
        raise UserError(
            f"{path} is no JSON of ours: it holds a number of thousands of digits"
        ) from error


def read_json(path: str | os.PathLike[str], what: str) -> Any:
    """Return what a JSON file says; ``what`` says in the error what the file should have been.

    Raises
    ------
    UserError
        What `read_text` and `parse_json` raise.
    """
    return parse_json(read_text(path, what), path)


def shortened(value: Any) -> str:
    """Return a value of a JSON in one line that a message can hold."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def read_config(cls: type, path: str | os.PathLike[str]) -> Any:
    """Build the pydantic dataclass ``cls`` from the JSON object in ``path``.

    Raises
    ------
    UserError
        No such file, no JSON object, unknown or missing keys, wrong types, values out of range:
        one sentence with the file and every key at fault.
    """
    text = read_text(path, "settings file")
    values = parse_json(text, path)
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold one JSON object, like {{...}}")
    try:
        # From JSON, so that a strict class may hold others.
        return pydantic.TypeAdapter(cls).validate_json(text)
    except pydantic.ValidationError as error:
        known = ", ".join(field.name for field in dataclasses.fields(cls))
        reasons = []
        for problem in error.errors():
            key = json.dumps(".".join(str(part) for part in problem["loc"]))[1:-1][:SHOWN]
            if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
                reasons.append(f"unknown key '{key}' (known: {known})")
            elif problem["type"].startswith("missing"):
                reasons.append(f"key '{key}' is missing")
            else:
                at = f"'{key}' is {shortened(problem['input'])}: " if key else ""
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
