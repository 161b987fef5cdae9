"""What 1, 10 and 100 times as many pairs cost: time, memory and disk of gendata and dataprocess.

    python bench/scale.py --path DIR --biname chroot --times 1,10,100

A program's builds are copied under other names, as programs of their own. Each copy has a few bytes
more at its end, so its walks are others; its analysis is the original's, for the code is the same,
and stands in the cache already. So this measures pairs, not angr (bench/throughput.py does that).

CPU seconds are those of all processes; memory is the most that the first process, and the largest
of its workers, held (VmHWM). "Tokens/s a core" is tokens of all walks per CPU second of pairing,
walking, writing and, in dataprocess.py, writing the corpus.
"""

import datetime
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from binary.analysis import cache_file, load_analysis
from binary.builds import find_binaries
from binary.cache import analyse_all
from terminal.arguments import names_of
from terminal.command_line import command_line
from utils import sha256_of


def main(
    path: str = str(ROOT / "experiment_data/coreutils/binaries"),
    biname: str = "chroot",
    times: str | list[int] | tuple[int, ...] = (1, 10, 100),
    workers: int = 2,
    outputDir: str = "output",
) -> None:
    """Print a row for each size.

    Parameters
    ----------
    path : str
        The builds, as for gendata.py.
    biname : str
        The program.
    times : str or list of int
        One number, or several: how often its pairs are made.
    workers : int
        Processes.
    outputDir : str
        Analysed binaries, as for gendata.py; used and completed.
    """
    print(f"{datetime.date.today()}, {platform.machine()}, Python {platform.python_version()},")
    print(f"{workers} workers on {os.cpu_count()} cores; memory: first process / largest worker\n")
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        originals = find_binaries(path, biname)
        analyse_all(originals, outputDir, workers)
        analyses = [load_analysis(cache_file(outputDir, b["sha256"])) for b in originals]
        (folder / "output").mkdir()
        distinct = sum(analysis.code_blocks for analysis in analyses)
        print("      pairs  step           wall s   CPU s  memory MB   disk MB  tokens/s a core")
        for factor in map(int, names_of(times)):
            copies(folder, originals, outputDir, factor)
            one_size(folder, workers, distinct)


def copies(folder: Path, originals: list[dict[str, str]], output_dir: str, factor: int) -> None:
    """Make ``factor`` programs of the original builds, with their analyses."""
    for number in range(factor):
        for original in originals:
            copy = folder / "binaries" / original["build"] / f"program{number}"
            if copy.exists():
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(original["path"], copy)
            with copy.open("ab") as file:
                file.write(f"copy {number}".encode())
            sha256 = sha256_of(copy)
            shutil.copyfile(
                cache_file(output_dir, original["sha256"]),
                cache_file(folder / "output", sha256),
            )


def one_size(folder: Path, workers: int, distinct: int) -> None:
    """Run both steps from nothing but analyses and print what they cost."""
    for made in ("data", "vocab"):
        shutil.rmtree(folder / made, ignore_errors=True)
    arguments = ["--path", "binaries", "--biname", "program*", "--workers", str(workers)]
    gen = measured(folder, "gendata.py", *arguments)
    pairs = tokens = 0
    for file in (folder / "data").glob("*/pair.json"):
        pairs += 1
        tokens += json.loads(file.read_text())["counts"]["tokens"]
    on_disk = size_of(folder / "data")
    process = measured(folder, "dataprocess.py", "--workers", str(workers))
    corpus = (folder / "data/corpus.txt").stat().st_size
    for step, cost, disk in (("gendata", gen, on_disk), ("dataprocess", process, corpus)):
        print(f"{pairs:11,}  {step:12}  {cost[0]:7.1f} {cost[1]:7.1f}  ", end="")
        print(f"{cost[2]:4.0f}/{cost[3]:4.0f}  {disk / 1e6:8.1f}  {tokens / cost[1]:15,.0f}")
    about = json.loads((folder / "data/corpus.json").read_text())
    print(
        f"             {on_disk / pairs:,.0f} bytes a pair; {tokens / (gen[1] + process[1]):,.0f} "
        f"tokens/s a core for both; {about['repeated_documents']:,} of "
        f"{about['documents'] + about['repeated_documents']:,} documents are copies; corpus: "
        f"{corpus / distinct:,.0f} bytes for each distinct block of the binaries",
        flush=True,
    )


def measured(folder: Path, script: str, *arguments: str) -> tuple[float, float, float, float]:
    """Run a script; return wall and CPU seconds, and MB of the first process and of a worker."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / script), *arguments], cwd=folder, stdout=subprocess.DEVNULL
    )
    parent = worker = 0.0
    while process.poll() is None:
        parent = max(parent, most_memory(process.pid))
        for task in Path(f"/proc/{process.pid}/task").glob("*/children"):
            try:
                pids = task.read_text().split()
            except OSError:  # that thread has ended
                continue
            worker = max([worker, *(most_memory(int(pid)) for pid in pids)])
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"{script} failed")
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, parent, worker


def most_memory(pid: int) -> float:
    """Return the most memory that a living process has held so far, in MB (Linux)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return sum(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM")) / 1000


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    command_line(main)
