"""One function over many jobs, each job in a process under limits of time and memory.

A job that fails, dies or takes too much costs itself only. They run in processes of this machine,
or on a cluster of many, with the same results.
"""

import itertools
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import active_children, get_context
from queue import Empty, SimpleQueue
from typing import Annotated, Any

import psutil
from pebble import ProcessExpired, ProcessPool
from pydantic import Field

import utils
from terminal import progress

TIME_LIMIT = 600.0  # seconds of processor time
MACHINE = psutil.virtual_memory().total / 2**30  # GiB
MEMORY_LIMIT = min(8.0, MACHINE)  # GiB
LIMITS = TIME_LIMIT, MEMORY_LIMIT
Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# A job that waits, for a disk that does not answer, say, takes no processor time. It may be there
# for so many times the time limit; a busy machine gives a job less than all of a core.
WAITING = 20
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
    sizes: Mapping[Any, int] | None = None,
) -> Iterator[tuple[Any, str | None]]:
    """Run ``function(*arguments)`` for each (key, arguments); yield key and error text or None.

    They are yielded as they end. A worker that fails, dies, computes longer than ``time_limit``
    seconds or holds more than ``memory_limit`` GiB costs its own job only. Whoever stops iterating
    stops the jobs that are left. With ``sizes``, key -> bytes of each job, progress is measured by
    these.

    Raises
    ------
    DiskError
        Nothing can be written any more, which is no job's fault.
    """
    if total == 0:
        return
    # Forked, so that workers need not import anything again, angr above all.
    with (
        ProcessPool(
            min(workers, total),
            context=get_context(start),
            initializer=_end_with,
            initargs=(os.getpid(),),
        ) as pool,
        _memory_watched(memory_limit) as too_large,
        _bar(total, what, sizes) as bar,
    ):
        ended: SimpleQueue = SimpleQueue()

        def schedule(key: Any, arguments: tuple) -> None:
            given = (time_limit, function, *arguments)
            future = pool.schedule(_compute, given, timeout=WAITING * time_limit)
            future.add_done_callback(lambda future: ended.put((key, future)))

        try:
            for job in itertools.islice(jobs, AHEAD):
                schedule(*job)
            for _ in range(total):
                key, future = _next(ended, bar)
                for job in itertools.islice(jobs, 1):
                    schedule(*job)
                error = None
                try:
                    future.result()
                except utils.DiskError:
                    raise
                except utils.UserError as problem:
                    error = str(problem)
                except TimeoutError:
                    error = f"waited for longer than {WAITING * time_limit:g} seconds"
                except ProcessExpired as problem:
                    if problem.exitcode == -signal.SIGPROF:
                        error = (
                            f"took longer than {time_limit:g} seconds of processor time "
                            "(--time_limit)"
                        )
                    elif problem.pid in too_large:
                        error = f"took more than {memory_limit:g} GiB of memory (--memory_limit)"
                    else:
                        error = f"the worker process died ({_how_ended(problem.exitcode)})"
                bar.update(sizes[key] if sizes else 1)
                yield key, error
        except BaseException:
            pool.stop()
            raise


def _bar(total: int, what: str, sizes: Mapping[Any, int] | None) -> Any:
    """Return a progress bar over jobs, or over their bytes, by which it can tell the time left."""
    if sizes is None:
        return progress.bar(total=total, desc=what, unit=" " + what)
    return progress.bar(total=sum(sizes.values()), desc=what, unit="B", unit_scale=True)


def _next(ended: SimpleQueue, bar: Any) -> tuple[Any, Any]:
    """Wait for the next job that ends; meanwhile the bar's clock goes on."""
    while True:
        try:
            return ended.get(timeout=1)
        except Empty:
            bar.refresh()


def _compute(time_limit: float, function: Callable[..., None], *arguments: Any) -> None:
    """Run a job; after ``time_limit`` seconds of processor time the kernel ends this process."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))  # limited_memory is for the parent
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, time_limit)
    try:
        function(*arguments)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


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
                        killed.add(int(child.pid or 0))
                        child.kill()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield killed
    finally:
        ended.set()
        watcher.join()


@contextmanager
def limited_memory(limit: float, doing: str) -> Iterator[None]:
    """Let this process hold at most ``limit`` GiB within the block; ``doing`` says what for.

    The kernel's limit counts what a process may write to, so it is set to what it has now and what
    its resident memory may grow by.

    Raises
    ------
    UserError
        It would take more.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    now = psutil.Process().memory_info()
    most = now.data + max(0, int(limit * 2**30) - now.rss)
    if before[1] != resource.RLIM_INFINITY:
        most = min(most, before[1])
    resource.setrlimit(resource.RLIMIT_DATA, (most, before[1]))
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # As torch says it.
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        raise utils.UserError(
            f"{doing} takes more than {limit:g} GiB of memory (--memory_limit)"
        ) from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
