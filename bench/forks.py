"""Run scripts in forks of a process that has imported angr and torch, which takes ten seconds."""

import contextlib
import os
import resource
import runpy
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import angr  # noqa: F401 - these are imported before the forks

import classify  # noqa: F401
import dataprocess  # noqa: F401
import diff  # noqa: F401
import encoder.train  # noqa: F401
import gendata  # noqa: F401
import matching.train  # noqa: F401
import samefunc  # noqa: F401
import search  # noqa: F401

BUG = 70  # exit code of a script that ended with a traceback; no script uses it itself


def start(
    command: list[str], folder: Path, errors: IO[str], limits: Mapping[int, int] | None = None
) -> int:
    """Start a script in a fork that leads a process group of its own; return the process id.

    Parameters
    ----------
    command : list of str
        A script ("diff.py") or a module ("matching.train") of this project, and its arguments.
    folder : Path
        Where it runs.
    errors : text file
        Takes what it writes to stderr; what it prints is thrown away.
    limits : mapping of int to int, optional
        Of `resource.setrlimit`: resource -> limit.
    """
    child = os.fork()
    if child:
        return child
    code: object = BUG
    try:
        os.setsid()
        for number, limit in (limits or {}).items():
            resource.setrlimit(number, (limit, limit))
        code = _run(command, folder, errors)
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def wait(child: int, seconds: float) -> int | None:
    """Return the exit code of a fork, or None if it still runs after this time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def _run(command: list[str], folder: Path, errors: IO[str]) -> object:
    """Be the script; return its exit code."""
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(errors.fileno(), 2)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 - it ends with the fork
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.argv = [str(ROOT / command[0]), *command[1:]]
    try:
        if command[0].endswith(".py"):
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            sys.modules.pop(command[0], None)  # or runpy warns that it runs twice
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code
    except BaseException:
        traceback.print_exc()
        return BUG
    return 0
