"""What every script needs: errors for people, safe writing, checked settings, seeds, the device."""

import contextlib
import ctypes
import dataclasses
import errno
import functools
import hashlib
import inspect
import json
import os
import random
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fire
import numpy as np
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


class UserError(Exception):
    """A mistake that the user can mend. Its text is one sentence naming the file, value and fix."""


def command_line(main: Callable[..., Any], **commands: Callable[..., Any]) -> None:
    """Run ``main``, or the command that the first argument names, with fire's flags, and exit.

    Arguments are checked against the type hints before anything runs. A :class:`UserError`
    becomes one line on stderr and exit code 1; an integer that the function returns is the exit
    code. Every other exception is our own mistake and keeps its traceback.
    """
    arguments = sys.argv[1:]
    function, name = main, Path(sys.argv[0]).name
    if arguments and arguments[0] in commands:
        function, name = commands[arguments[0]], f"{name} {arguments[0]}"
        arguments = arguments[1:]
    given: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    @functools.wraps(function)
    def record(*args: Any, **kwargs: Any) -> None:
        # fire notices a flag that nobody knows only after the call, so the real call comes later.
        nonlocal given
        given = (args, kwargs)

    fire.Fire(record, command=arguments, name=name)
    checked = pydantic.validate_call(config={"coerce_numbers_to_str": True})(function)
    try:
        code = checked(*given[0], **given[1])
    except pydantic.ValidationError as error:
        if error.title != function.__name__:
            raise
        for problem in error.errors():
            flag = problem["loc"][0]
            if isinstance(flag, int):  # fire passes what it can by position
                flag = list(inspect.signature(function).parameters)[flag]
            print(f"error: --{flag} {problem['input']}: {problem['msg']}", file=sys.stderr)
        code = 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader has seen enough: `python gendata.py show 0 | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code or 0)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a quota, a missing permission while writing ``path`` into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise UserError(f"cannot write {path}: {DISK_ERRORS[error.errno]}") from error
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
    UserError
        Full disk, quota, file-size limit, no permission. Nothing is left behind.
    """
    path = Path(path)
    encoding = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with open(handle, mode, **encoding) as file:
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
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield folder
            folder.chmod(0o777 & ~_umask())
            if path.exists():  # out of the way first: a folder is never seen half-deleted
                path.rename(folder.with_suffix(".old.tmp"))
            folder.rename(path)
            shutil.rmtree(folder.with_suffix(".old.tmp"), ignore_errors=True)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


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
        raise UserError(f"{path}: " + "; ".join(reasons)) from error


def set_seed(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
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
