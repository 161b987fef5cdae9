"""One function over many jobs, each job in a process under limits of time and memory.

A job that fails, dies or takes too much costs itself only. They run in processes of this machine,
or on a cluster of many, with the same results.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import active_children, get_context
from typing import Any

import psutil
from pebble import ProcessExpired, ProcessPool
from tqdm import tqdm

import utils

TIME_LIMIT = 600.0  # seconds
MEMORY_LIMIT = min(8.0, psutil.virtual_memory().total / 2**30)  # GiB
LIMITS = TIME_LIMIT, MEMORY_LIMIT
AHEAD = 1000  # jobs that wait for a process: so many are in memory, not all


def in_processes(
    function: Callable[..., None],
    jobs: Iterator[tuple[Any, tuple]],
    total: int,
    workers: int,
    what: str,
    time_limit: float = TIME_LIMIT,
    memory_limit: float = MEMORY_LIMIT,
    start: str = "fork",
) -> Iterator[tuple[Any, str | None]]:
    """Run ``function(*arguments)`` for each (key, arguments); yield key and error text or None.

    A worker that fails, dies, takes longer than ``time_limit`` seconds or holds more than
    ``memory_limit`` GiB costs its own job only.

    Raises
    ------
    DiskError
        Nothing can be written any more, which is no job's fault.
    """
    if total == 0:
        return
    # Forked, so that workers need not import anything again, angr above all.
    kind = {"context": get_context(start), "initializer": _end_with, "initargs": (os.getpid(),)}
    with (
        ProcessPool(min(workers, total), **kind) as pool,
        _memory_watched(memory_limit) as too_large,
        tqdm(total=total, desc=what, unit=" " + what, disable=None) as bar,
    ):
        try:
            futures = ((k, pool.schedule(function, a, timeout=time_limit)) for k, a in jobs)
            for key, future in utils.ahead(futures, AHEAD):
                error = None
                try:
                    future.result()
                except utils.DiskError:
                    raise
                except utils.UserError as problem:
                    error = str(problem)
                except TimeoutError:
                    error = f"took longer than {time_limit:g} seconds (--time_limit)"
                except ProcessExpired as problem:
                    if problem.pid in too_large:
                        error = f"took more than {memory_limit:g} GiB of memory (--memory_limit)"
                    else:
                        error = f"the worker process died ({_how_ended(problem.exitcode)})"
                bar.update()
                yield key, error
        except BaseException:
            pool.stop()
            raise


def _end_with(parent: int) -> None:
    """Let this worker end when its parent was killed, for nobody else would limit its time."""

    def watch() -> None:
        # Of a forked worker, the parent is what the system calls so; of others a process between.
        with suppress(psutil.NoSuchProcess):
            while psutil.Process(parent).status() != psutil.STATUS_ZOMBIE:
                time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _how_ended(exitcode: int) -> str:
    """Return "exit code 1", or the signal's name; SIGKILL is how the system frees memory."""
    with suppress(ValueError):
        return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"


@contextmanager
def _memory_watched(limit: float) -> Iterator[set[int]]:
    """Kill child processes that hold more than ``limit`` GiB; yield the set of their numbers.

    A limit of the kernel's (RLIMIT_AS) would make allocations fail, and a library that catches that
    would give half a result.
    """
    killed: set[int] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            for child in active_children():
                with suppress(psutil.Error):
                    if psutil.Process(child.pid).memory_info().rss > limit * 2**30:
                        killed.add(child.pid)
                        child.kill()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield killed
    finally:
        ended.set()
        watcher.join()
