"""Shared by all scripts: user errors, safe writing, checked settings, seeds, the device."""

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import gc
import glob
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import stat
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
STOPPING = (signal.SIGINT, signal.SIGTERM)  # how people and batch systems stop a program
# The first word of pydantic's kind of error -> the value that it expects.
EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "a text in double quotes",
    "list": "a list, like [...]",
    "dict": "an object, like {...}",
    "dataclass": "an object, like {...}",
}
BOUNDS = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}  # of a number
FAULTS = 8  # a message lists at most so many faults of a settings file
SHOWN = 100  # a message shows at most so many characters of a value
PATIENCE = 5.0  # seconds that a run waits for a folder that another run writes to
LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # as tempfile names them


class UserError(Exception):
    """A mistake that the user can fix; the message is a sentence with file, value and remedy."""


class UsageError(UserError):
    """The command itself is wrong: its flags, or their values."""


class DiskError(UserError):
    """The disk is full or not writable: the program stops, since nothing more can be written."""


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
    """Open a temporary file; rename it to ``path`` when the block ends without an error.

    Parameters
    ----------
    path : path-like
        The final name. Missing parent folders are created.
    mode : {"w", "wb"}
        Text is UTF-8 with "\\n" line ends.

    Raises
    ------
    DiskError
        Full disk, quota, file-size limit, no permission. The temporary file is removed.
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
                # Rename before closing: closing releases the lock that protects the file.
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
        while True:  # try again when another process has put its own folder there meanwhile
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
    """Yield an empty folder beside ``path``; remove it, with what it then holds, at the end."""
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
    """Remove a folder, or a link to one. It is renamed first, so that no half of it remains."""
    with temporary_folder(path) as aside:
        path.rename(aside / path.name)


def _make_folder(**name: Any) -> tuple[int, str]:
    """Make a folder as `tempfile.mkdtemp` does, and open it."""
    folder = tempfile.mkdtemp(**name)
    return os.open(folder, os.O_RDONLY), folder


def _held(path: Path, make: Callable[..., tuple[int, str]]) -> tuple[str, int]:
    """Make a temporary file or folder beside ``path`` and lock it; return its name and handle.

    What killed runs left of the same ``path`` is removed. The kernel releases the lock when this
    process ends, even when it is killed. Another process may remove the file before it is locked,
    as a leftover; then a new one is made.
    """
    with contextlib.suppress(OSError):  # a folder that cannot be read is reported below
        _remove_unlocked(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))
    while True:
        with contextlib.suppress(FileNotFoundError):
            handle, name = make(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
            with contextlib.suppress(OSError):  # some file systems have no locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(name)):
                    return name, handle
            os.close(handle)
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))


def remove_leftovers(*folders: str | os.PathLike[str]) -> None:
    """Remove temporary files that killed runs left in ``folders``.

    Files of running processes are locked and stay. On a file system without locks, all files stay.
    """
    for folder in {Path(folder) for folder in folders}:
        _remove_unlocked(folder.glob(".*.tmp"))


def _remove_unlocked(paths: Iterable[Path]) -> None:
    for path in paths:
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
    """Lock ``folders`` so that no other run writes to them; reading stays possible.

    Two runs with different settings would delete or mix each other's files. A missing folder is
    created, and removed again if nothing was written. The kernel releases the locks when this
    process ends, even when it is killed. On a file system without locks, nothing is locked.

    Raises
    ------
    UserError
        Another run still writes to one of them after PATIENCE seconds.
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
                    f"another run writes to the folder {folder}; wait until it ends, or choose "
                    "another folder"
                ) from None
            time.sleep(0.1)
        except OSError:  # a file system without locks
            return handle
        else:
            # The previous run may have replaced the folder since it was opened.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(folder)):
                    return handle
        os.close(handle)


def _remove_empty(folder: str | os.PathLike[str]) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def ahead(items: Iterator[Any], count: int) -> Iterator[Any]:
    """Yield the items in order, taking up to ``count`` of them from ``items`` in advance.

    When ``items`` starts a job for each item, this bounds how many jobs run at once.
    """
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def refuse_flags(because: str, **flags: Any) -> None:
    """Refuse flags that would be ignored: those in ``flags`` that are neither None nor False."""
    for name, value in flags.items():
        if value not in (None, False):
            raise UsageError(f"--{name} {because}; leave it out")


def check_outputs(
    outputs: Mapping[str, str | os.PathLike[str] | None],
    inputs: Iterable[str | os.PathLike[str] | None] = (),
    folders: Mapping[str, str | os.PathLike[str] | None] | None = None,
    replaced: Mapping[str, str | os.PathLike[str] | None] | None = None,
    whole: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Refuse outputs that cannot be written or would replace an input, before hours of work.

    Parameters
    ----------
    outputs : mapping of str to path-like or None
        Flag -> the file to write. None: the flag was not given.
    inputs : iterable of path-like or None
        Files that are read, and folders of files: no output file may replace one of them.
    folders : mapping of str to path-like or None
        Flag -> a folder to which files are added.
    replaced : mapping of str to path-like or None
        Flag -> a folder that is replaced as a whole; it may contain no input.
    whole : iterable of path-like
        Folders all of whose files are inputs: nothing may be written to them, as the next run would
        read it.

    Raises
    ------
    UsageError
        An output that is an input, lies in one, or is another output.
    UserError
        An output that cannot be written.
    """
    replaced = replaced or {}
    folders = {**(folders or {}), **replaced}
    read = [path for path in inputs if path is not None]
    written: dict[str, str] = {}  # real path of an output -> its flag
    for flag, path in (*outputs.items(), *folders.items()):
        if path is None:
            continue
        reason = _unwritable(os.fspath(path), flag in folders)
        if reason:
            raise UserError(f"--{flag} {path}: {reason}")
        place = os.path.realpath(path)
        for source in read:
            if _same(place, source):
                raise UsageError(f"--{flag} {path} would replace {source}, which is an input")
        for source in (*read, *whole):
            if flag in replaced and _holds(place, source):
                raise UsageError(f"--{flag} {path} would replace {source}, which is an input")
        apart = [*(read if flag in outputs else ()), *whole]
        for source in apart:
            if os.path.isdir(source) and _holds(source, place):
                raise UsageError(f"--{flag} {path} lies in {source}, which is an input")
        for other, its_flag in written.items():
            if _same(place, other):
                raise UsageError(f"--{its_flag} and --{flag} would both write {path}")
        written[place] = flag


def check_folder(path: str | os.PathLike[str], flag: str, hint: str) -> None:
    """Refuse an input folder that does not exist or cannot be read; ``hint`` says what to do."""
    if not os.path.lexists(path):
        reason = "there is no such folder"
    elif not os.path.isdir(path):
        reason = "this is not a folder"
    elif not os.access(path, os.R_OK | os.X_OK):
        reason = "there is no permission to read this folder"
    else:
        return
    raise UserError(f"--{flag} {path}: {reason}; {hint}")


def _same(path: str, other: str | os.PathLike[str]) -> bool:
    """Say whether two paths mean the same file, which may be a link or not exist yet."""
    with contextlib.suppress(OSError):
        return os.path.samefile(path, other)
    return os.path.realpath(path) == os.path.realpath(other)


def _holds(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _unwritable(path: str, is_folder: bool) -> str | None:
    """Return why a file or folder cannot be written; None if it probably can.

    Nothing is created. Missing parent folders are fine: they are created on writing.
    """
    if not path:
        return "the name is empty"
    if is_folder and os.path.lexists(path) and not os.path.isdir(path):
        return "this is not a folder; choose another name"
    if not is_folder and (os.path.isdir(path) or path.endswith("/")):
        return "this is a folder; give a file name"
    parent = os.path.realpath(os.path.dirname(path))
    kernels = parent == "/dev" or parent.split("/")[1] in ("proc", "sys")
    if kernels or (not is_folder and os.path.exists(path) and not os.path.isfile(path)):
        return "this is a device or special file; give the name of a regular file"
    above = os.path.abspath(path)
    missing = []
    while not os.path.isdir(above):
        if os.path.exists(above) and missing:
            return f"{above} is not a folder"
        above, name = os.path.split(above)
        missing.append(name)
    if not os.access(above, os.W_OK | os.X_OK):
        return f"cannot write to {above} (no permission, or a read-only file system)"
    name = os.path.basename(os.path.abspath(path))
    names = [*missing, f".{name}.12345678.tmp"]  # the temporary name is the longest
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


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file to read its bytes.

    Raises
    ------
    OSError
        It cannot be opened, or is a folder, a pipe or a device: reading those may never end.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "it is a pipe or a device; give a regular file", os.fspath(path))


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def write_json(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write a JSON object; on an error, no partial file remains."""
    with atomic_file(path) as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """Return the text of a UTF-8 file. Error messages call the file ``what``, e.g. "corpus"."""
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not a {what}: it is not UTF-8 text (byte {error.start})"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}") from error


def parse_json(text: str, path: str | os.PathLike[str]) -> Any:
    """Parse a JSON text; error messages name the file ``path``.

    Raises
    ------
    UserError
        Not JSON; a key that occurs twice in one object, because parsers disagree on which one
        counts; brackets nested too deep, or a number with too many digits, for Python.
    """

    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            twice = next(key for key, n in Counter(key for key, _ in items).items() if n > 1)
            raise UserError(f"{path}: the key {shortened(twice)} occurs twice in one object")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {_json_fault(text, error)}") from error
    except RecursionError as error:
        raise UserError(f"{path} cannot be read: its brackets are nested too deep") from error
    except ValueError as error:  # from int()
        raise UserError(
            f"{path} cannot be read: it holds a number with thousands of digits"
        ) from error


def _json_fault(text: str, error: json.JSONDecodeError) -> str:
    """Say in plain words what the parser stumbled over, and where."""
    rest = text[error.pos :].lstrip()
    before = text[: error.pos].rstrip()
    where = f"line {error.lineno} column {error.colno}"
    if not rest:
        return "the file is empty" if not before else f"it ends too early, in {where}"
    if rest.startswith(("//", "/*", "#")):
        return f"it has a comment in {where}; remove it"
    if rest[0] == "," or (before.endswith(",") and rest[0] in "]}"):  # 3.13 points to the comma
        return f"it has one comma too many before {where}; remove it"
    return str(error)


def read_json(path: str | os.PathLike[str], what: str) -> Any:
    """Read a JSON file. Error messages call the file ``what``, e.g. "settings file".

    Raises
    ------
    UserError
        See `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, what), path)


def shortened(value: Any) -> str:
    """Return a JSON value on one line, cut to fit in a message."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def read_config(cls: type, path: str | os.PathLike[str]) -> Any:
    """Build the pydantic dataclass ``cls`` from the JSON object in ``path``.

    Raises
    ------
    UserError
        No such file, not a JSON object, unknown or missing keys, wrong types, values out of range.
        The message names the file and the wrong keys.
    """
    text = read_text(path, "settings file")
    values = parse_json(text, path)
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold one JSON object, like {{...}}")
    try:
        # From the JSON text: strict mode would refuse a dict where a nested class is expected.
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
                reasons.append(at + remedy(problem))
        more = f"; and {len(reasons) - FAULTS} more" if len(reasons) > FAULTS else ""
        raise UserError(f"{path}: " + "; ".join(reasons[:FAULTS]) + more) from error


def remedy(problem: Mapping[str, Any]) -> str:
    """Say in plain words what pydantic expects instead of the value that it refused.

    Parameters
    ----------
    problem : mapping
        One of `pydantic.ValidationError.errors`.
    """
    context = problem.get("ctx", {})
    bounds = [f"{words} {context[key]}" for key, words in BOUNDS.items() if key in context]
    if bounds:
        return f"give a number {bounds[0]}"
    if problem["type"] == "literal_error":
        return "give " + context["expected"].replace("'", '"')
    kind = EXPECTED.get(problem["type"].partition("_")[0])
    quoted = ", without quotes" if isinstance(problem["input"], str) else ""
    return f"give {kind}{quoted}" if kind else problem["msg"].removeprefix("Value error, ")


def plural(n: int, noun: str) -> str:
    """Return the noun as it follows a number: file for 1, files for any other."""
    return noun if n == 1 else f"{noun}s"


def either(words: Sequence[str], joint: str = "or") -> str:
    """Return the words as a list for a sentence: "a, b or c"."""
    *first, last = words
    return f"{', '.join(first)} {joint} {last}" if first else last


def set_seed(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    import numpy as np  # both imported here, so that --help need not wait for them
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def keep_freed_memory() -> None:
    """Let this process reuse freed memory instead of returning it to the kernel.

    glibc returns large blocks at once, and the kernel maps new ones page by page, which noticeably
    slows a training step on a CPU. With other C libraries this function does nothing.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # from malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Make Python's garbage collector run less often. This is also a decorator.

    Analyses and comparisons make millions of objects and hardly any cycles. The collector takes an
    eighth of angr's time, a seventh of the time of its import, half of that of tidying its graph, a
    third of that of extracting features, and a tenth of a comparison's.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


def get_device() -> "torch.device":  # noqa: F821 - only scripts that train import torch
    """Return this process's GPU (``LOCAL_RANK`` under torchrun) if there is one, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")
