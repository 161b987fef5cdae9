"""Many binaries -> their analyses, each made once and kept in a folder, in parallel."""

import gc
import os
from pathlib import Path

import utils
from binary.analysis import analysis_settings, cache_file, save_analysis
from binary.disassemble import analyse, rare_collections
from jobs.processes import LIMITS
from jobs.run import run_all

SKIPPED = 3  # exit code of scripts: done, but some binaries were skipped


def analyse_all(
    binaries: list[dict[str, str]],
    output_dir: str,
    workers: int,
    limits: tuple[float, float] = LIMITS,
    cluster: str | None = None,
) -> dict[str, str]:
    """Analyse what is not cached yet; return path -> reason for the binaries that failed."""
    by_content = {binary["sha256"]: binary for binary in binaries}
    missing = {
        sha256: binary["path"]
        for sha256, binary in by_content.items()
        if not cache_file(output_dir, sha256).exists()
    }
    # The largest first, so that the workers end together.
    missing = dict(sorted(missing.items(), key=lambda item: -os.path.getsize(item[1])))
    failed = {}
    if missing and cluster is None:
        with rare_collections():
            import angr  # noqa: F401 - once, not in each worker, which is a copy of this process
        gc.freeze()  # nor need any worker look there for what is unused
    jobs = ((sha, (file, cache_file(output_dir, sha))) for sha, file in missing.items())
    where = (workers, limits, cluster, analysis_settings, ("angr",))
    for sha256, error in run_all(analyse_one, jobs, len(missing), "binaries", *where):
        if error is not None:
            failed[sha256] = error
    utils.remove_leftovers(output_dir)  # of workers that were stopped
    return {b["path"]: failed[b["sha256"]] for b in binaries if b["sha256"] in failed}


def analyse_one(file: str, cache_file: Path) -> None:
    """Analyse one binary into its cache file; runs in a worker."""
    try:
        with utils.temporary_folder(cache_file) as scratch:
            analysis = analyse(file, scratch)
    except utils.UserError:
        raise
    except Exception as error:  # a hostile file may fail anywhere; it costs itself only
        raise utils.UserError(f"{file}: {type(error).__name__} in the analysis: {error}") from error
    save_analysis(analysis, cache_file)
