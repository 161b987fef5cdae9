"""Run a function for many jobs, on this machine or on a cluster."""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jobs.processes import in_processes


def run_all(
    function: Callable[..., None],
    jobs: Iterator[tuple[Any, tuple]],
    total: int,
    what: str,
    workers: int,
    limits: tuple[float, float],
    cluster: str | None,
    settings: Callable[[], str],
    preload: tuple[str, ...] = (),
    sizes: Mapping[Any, int] | None = None,
) -> Iterator[tuple[Any, str | None]]:
    """Run a function for many jobs, here or on a cluster; see :func:`in_processes`.

    ``function`` and ``settings`` must be defined at the top level of a file of this project.

    Parameters
    ----------
    cluster : str or None
        Address of a Dask scheduler; None: this machine.
    settings : callable
        Its result must be the same on the cluster's machines as here.
    preload : tuple of str
        Modules that the cluster's workers import once instead of in each process.
    sizes : mapping, optional
        Key of each job -> its number of bytes, for the progress bar on this machine.
    """
    if cluster is None:
        return in_processes(function, jobs, total, workers, what, *limits, sizes=sizes)
    from jobs.cluster import on_cluster  # an optional dependency

    # The script that runs is called __main__ here, but not on the cluster.
    module = function.__module__
    if module == "__main__":
        module = Path(str(sys.modules[module].__file__)).stem
    named = (module, function.__name__)
    return on_cluster(cluster, named, jobs, total, what, limits, settings, preload)
