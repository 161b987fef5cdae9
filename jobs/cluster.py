"""Run jobs on many machines: a Dask scheduler distributes them to its workers.

    export PYTHONPATH=. DASK_DISTRIBUTED__WORKER__DAEMON=False   # in this project's folder
    dask scheduler                                # on one machine
    dask worker tcp://HOST:8786 --nthreads 2      # on each machine
    python gendata.py --cluster tcp://HOST:8786

A worker runs each job as it would run here: in its own process, with the same limits. If a worker
dies, only time is lost: the scheduler gives its jobs to other workers. All machines must share a
file system, with the same paths.
"""

import importlib
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from typing import Any

import utils
from jobs.processes import in_processes
from terminal import progress

try:
    import distributed
except ImportError as error:
    raise utils.UserError(
        "--cluster needs Dask: pip install -r requirements-cluster.txt"
    ) from error
AHEAD = 400  # batches submitted in advance; many, because more workers may join at any time
LARGEST_BATCH = 64  # jobs that a worker gets at a time
PATIENCE = 60  # seconds to wait for the scheduler, and for a worker: both may still be starting


def on_cluster(
    address: str,
    function: tuple[str, str],
    jobs: Iterator[tuple[Any, tuple]],
    total: int,
    what: str,
    limits: tuple[float, float],
    settings: Callable[[], str],
    preload: tuple[str, ...],
) -> Iterator[tuple[Any, str | None]]:
    """Run a function for each (key, arguments); yield key and error text or None.

    Parameters
    ----------
    function : (str, str)
        Its module and name.
    settings, preload
        See :func:`jobs.run.run_all`.

    Raises
    ------
    UserError
        No scheduler answers, it has no workers, they cannot run this project, or their settings
        differ from those here.
    """
    if total == 0:
        return
    try:
        client = distributed.Client(address, timeout=PATIENCE)
    except (OSError, ValueError) as error:
        raise utils.UserError(f"no Dask scheduler answers at --cluster {address}") from error
    with client, progress.bar(total=total, desc=what, unit=" " + what) as bar:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as error:
            raise utils.UserError(
                f"the scheduler at {address} has no workers; start some first"
            ) from error
        size = max(1, min(LARGEST_BATCH, total // (8 * sum(client.nthreads().values()))))
        same = os.getcwd(), settings, settings(), limits, preload
        futures = (
            ([key for key, _ in batch], client.submit(
                run_batch, function, [arguments for _, arguments in batch], *same, pure=False
            ))
            for batch in batches(jobs, size)
        )  # fmt: skip
        for keys, future in utils.ahead(futures, AHEAD):
            try:
                errors = future.result()
            except distributed.KilledWorker:
                errors = ["all workers that tried it died"] * len(keys)
            except (ImportError, RuntimeError) as error:
                missing = error.__cause__ if isinstance(error, RuntimeError) else error
                if not isinstance(missing, ImportError):
                    raise
                raise utils.UserError(
                    f"the scheduler or the workers of {address} cannot import this project "
                    f"({missing}); start them in its folder and environment, with PYTHONPATH=."
                ) from error
            bar.update(len(keys))
            yield from zip(keys, errors, strict=True)


def batches(jobs: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Yield the jobs in lists of ``size``; the last may be shorter."""
    while batch := list(itertools.islice(jobs, size)):
        yield batch


def run_batch(
    function: tuple[str, str],
    arguments: list[tuple],
    folder: str,
    settings: Callable[[], str],
    expected: str,
    limits: tuple[float, float],
    preload: tuple[str, ...],
) -> list[str | None]:
    """Run some jobs, one after the other, in a child process of a worker of the cluster."""
    os.chdir(folder)
    if settings() != expected:
        raise utils.UserError(
            f"a worker has {settings()}, but this machine has {expected}; install the same "
            "requirements everywhere"
        )
    if multiprocessing.current_process().daemon:
        raise utils.UserError(
            "the cluster's workers may not start processes; start them with "
            "DASK_DISTRIBUTED__WORKER__DAEMON=False in the environment"
        )
    # Not "fork": a worker has threads, and the copy of a process with threads may hang.
    module, name = function
    multiprocessing.set_forkserver_preload([module, *preload])
    jobs = enumerate(arguments), len(arguments), 1, "jobs"
    called = getattr(importlib.import_module(module), name)
    done = in_processes(called, *jobs, *limits, start="forkserver")
    return [error for _, error in done]
