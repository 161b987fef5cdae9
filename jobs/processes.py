"""Run a function for many jobs, each in a process with limits of time and memory.

A job that fails, crashes or exceeds a limit does not affect the others.
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
# A job that waits, e.g. for a disk that does not answer, uses no processor time. So there is also
# a limit of elapsed time: this many times the time limit, as on a busy machine a job gets less than
# a whole core.
WAITING = 20
AHEAD = 1000  # jobs that are queued in advance, so that not all have to be in memory


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

    Results are yielded in the order in which jobs end. A job that raises an error, crashes, uses
    more than ``time_limit`` seconds of processor time or more than ``memory_limit`` GiB fails by
    itself; the others go on. If the caller stops iterating, the remaining jobs are stopped. With
    ``sizes``, key -> bytes of each job, progress is measured in bytes.

    Raises
    ------
    DiskError
        Nothing can be written any more, so all other jobs would fail, too.
    """
    if total == 0:
        return
    # With "fork", workers need not import anything again; angr takes long.
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
    """Return a progress bar over jobs, or over bytes, which predict the remaining time better."""
    if sizes is None:
        return progress.bar(total=total, desc=what, unit=" " + what)
    return progress.bar(total=sum(sizes.values()), desc=what, unit="B", unit_scale=True)


def _next(ended: SimpleQueue, bar: Any) -> tuple[Any, Any]:
    """Wait for the next job to end; meanwhile keep the bar's clock running."""
    while True:
        try:
            return ended.get(timeout=1)
        except Empty:
            bar.refresh()


def _compute(time_limit: float, function: Callable[..., None], *arguments: Any) -> None:
    """Run a job; after ``time_limit`` seconds of processor time the kernel kills this process."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))  # undo the parent's limited_memory
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, time_limit)
    try:
        function(*arguments)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _end_with(parent: int) -> None:
    """End this worker when its parent was killed: nobody else would limit its time."""

    def watch() -> None:
        # Watch the process that made the pool: unless forked, the direct parent is the forkserver.
        with suppress(psutil.NoSuchProcess):
            while psutil.Process(parent).status() != psutil.STATUS_ZOMBIE:
                time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _how_ended(exitcode: int) -> str:
    """Return "exit code 1", or the signal's name (SIGKILL if the system ran out of memory)."""
    with suppress(ValueError):
        return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"


@contextmanager
def _memory_watched(limit: float) -> Iterator[set[int]]:
    """Kill child processes that use more than ``limit`` GiB; yield the set of their process ids.

    With a kernel limit (RLIMIT_AS) allocations would fail instead, and a library that catches the
    error could return an incomplete result.
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
    """Limit this process to ``limit`` GiB within the block; the error says ``doing`` what.

    RLIMIT_DATA counts writable memory, resident or not. So it is set to the present amount plus
    what the resident memory may still grow by.

    Raises
    ------
    UserError
        More memory is needed.
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
        # torch raises a RuntimeError where others raise a MemoryError.
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        raise utils.UserError(
            f"{doing} takes more than {limit:g} GiB of memory; raise --memory_limit"
        ) from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
