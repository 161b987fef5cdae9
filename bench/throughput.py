"""What gendata.py costs: all pairs of a program's builds, cold and warm, against angr alone.

    python bench/throughput.py --path DIR --biname chroot --workers 2
    python bench/throughput.py --path DIR --biname '*' --runs 1

Cold: nothing cached. Warm: analyses cached, data/ deleted, every pair written anew. "angr alone"
is one CFGFast of each distinct binary, one after the other, divided by the workers; "at once" is
the same in so many processes at once, each slower where they share caches and memory. angr's
import, which takes seconds, counts in the cold run only. All take turns, for machines that are
shared become quicker and slower; medians are printed. "Each pair anew" is what analysing both
binaries again for every pair would cost in one process, as DeepBinDiff's scripts do.
"""

import datetime
import importlib.metadata
import json
import logging
import multiprocessing
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from binary.builds import find_programs
from terminal.arguments import names_of
from terminal.command_line import command_line


def main(
    path: str = str(ROOT / "experiment_data/coreutils/binaries"),
    biname: str | list[str] = "chroot",
    workers: int = 2,
    runs: int = 3,
) -> None:
    """Print the table.

    Parameters
    ----------
    path : str
        The builds, as for gendata.py.
    biname : str or list of str
        The program, or several, or a pattern.
    workers : int
        Processes.
    runs : int
        How often each is repeated.
    """
    programs = find_programs(path, names_of(biname))
    binaries = [binary for builds in programs.values() for binary in builds]
    with tempfile.TemporaryDirectory() as folder:

        def run() -> float:
            shutil.rmtree(Path(folder, "data"), ignore_errors=True)
            began = time.perf_counter()
            command = [
                sys.executable,
                str(ROOT / "gendata.py"),
                "--path",
                str(Path(path).resolve()),
            ]
            command += ["--biname", ",".join(programs), "--workers", str(workers)]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - began

        files = [binary["path"] for binary in binaries]
        colds, alones, at_onces = [], [], []
        for _ in range(runs):
            alones.append(angr_alone(files, 1) / workers)
            at_onces.append(angr_alone(files, workers))
            shutil.rmtree(Path(folder, "output"), ignore_errors=True)
            colds.append(run())
        cold, alone, at_once = (float(np.median(x)) for x in (colds, alones, at_onces))
        # of the largest process, which is one that ran angr
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        warm = float(np.median([run() for _ in range(runs)]))
        counts = [
            json.loads(f.read_text())["counts"] for f in Path(folder, "data").glob("*/pair.json")
        ]
        size = sum(f.stat().st_size for f in Path(folder, "data").rglob("*") if f.is_file())
    tokens = sum(count["tokens"] for count in counts)
    lengths = [n for c in counts for n, k in enumerate(c["document_lengths"]) for _ in range(k)]
    print(
        f"{datetime.date.today()}, {platform.machine()}, Python {platform.python_version()},",
        end=" ",
    )
    print(f"angr {importlib.metadata.version('angr')}, {workers} workers")
    builds = f"{len(binaries)} builds of {', '.join(programs)}"
    print(f"{builds}, {len(counts)} pairs, {tokens:,} tokens")
    print(f"  cold              {cold:7.1f} s")
    print(f"  warm              {warm:7.1f} s   {tokens / warm / 1e6:.1f} million tokens/s")
    print(f"  angr alone        {alone:7.1f} s   cold is {cold / alone:.2f} x")
    print(f"  angr at once      {at_once:7.1f} s   cold is {cold / at_once:.2f} x")
    anew = alone * workers * 2 * len(counts) / len(binaries)
    print(f"  each pair anew    {anew:7.1f} s   in one process")
    print(f"  memory            {memory / 1e6:7.0f} MB  of the largest process")
    print(f"  bytes a pair      {size / len(counts):9,.0f}")
    print(f"  blocks a document, quartiles {np.percentile(lengths, [25, 50, 75])}")


def angr_alone(files: list[str], processes: int) -> float:
    """Return the seconds that CFGFast takes for all files, the import of angr aside."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        # One process takes both of these first jobs at times, so they are not short.
        list(pool.map(analyse, files[:1] * processes))
        began = time.perf_counter()
        list(pool.map(analyse, files))
        return time.perf_counter() - began


def analyse(file: str) -> None:
    import angr

    logging.getLogger("angr").setLevel(logging.CRITICAL)
    angr.Project(file, auto_load_libs=False).analyses.CFGFast(normalize=True)


if __name__ == "__main__":
    command_line(main)
