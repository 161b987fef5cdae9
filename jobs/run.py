"""Run a function over many jobs, on this machine or on a cluster."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jobs.processes import in_processes


def run_all(
    function: Callable[..., None],
    jobs: Iterator[tuple[Any, tuple]],
    total: int,
    workers: int,
    what: str,
    limits: tuple[float, float],
    cluster: str | None,
) -> Iterator[tuple[Any, str | None]]:
    """Run a function of one of our files, here or on a cluster; see :func:`in_processes`."""
    if cluster is None:
        return in_processes(function, jobs, total, workers, what, *limits)
    from jobs.cluster import on_cluster  # an optional dependency

    # A script that is run is __main__ here, but not on the cluster.
    module = function.__module__
    if module == "__main__":
        module = Path(sys.modules[module].__file__).stem
    return on_cluster(cluster, (module, function.__name__), jobs, total, what, limits)
