"""How much time and memory diff.py takes, and how both grow with the size of the binaries.

    python bench/speed_diff.py OLD NEW --more DIR

Cold and warm: the whole command, without and with the analyses in the cache. Growth: comparing
without angr, with 1, 2, 4 and 8 times the blocks. The larger binaries are several programs
concatenated, DIR/<old build>/* and DIR/<new build>/*, the largest first.
"""

import dataclasses
import datetime
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

import utils
from binary.analysis import Analysis, cache_file, load_analysis
from binary.cache import analyse_all
from features.extract import extract_features
from matching.blocks import match_blocks
from matching.candidates import find_candidates
from matching.functions import match_functions
from matching.model import read_model
from terminal.command_line import command_line

APART = 1 << 28  # distance between the addresses of concatenated programs


def main(
    old: str,
    new: str,
    more: str | None = None,
    old_build: str = "coreutils-8.30-O0",
    new_build: str = "coreutils-8.30-O3",
    outputDir: str = "output/",
    workers: int = 2,
) -> None:
    """Print the tables.

    Parameters
    ----------
    old : str
        A binary.
    new : str
        Another build of it.
    more : str
        Folder of builds for the growth; without it only cold and warm are measured.
    old_build : str
        The build whose programs are concatenated as OLD.
    new_build : str
        The build whose programs are concatenated as NEW.
    outputDir : str
        Cache for the analyses of the larger binaries.
    workers : int
        Processes of diff.py.
    """
    print(f"{datetime.date.today()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "warm"):
            began, before = time.perf_counter(), processor_seconds()
            command = [sys.executable, str(ROOT / "diff.py"), old, new]
            options = ["--outputDir", folder, "--workers", str(workers), "--top", "0"]
            subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
            # The largest process so far, including those of the first run, which analyses.
            memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            seconds = time.perf_counter() - began
            used = processor_seconds() - before
            print(
                f"{name}: {seconds:.1f} s, {used:.1f} CPU s, {memory:.0f} MB at most in a process"
            )
    if more:
        sides = [
            programs(Path(more) / build, outputDir, workers) for build in (old_build, new_build)
        ]
        both = sorted(sides[0].keys() & sides[1].keys())
        both.sort(key=lambda name: sides[0][name].code_blocks)
        grow([[side[name] for name in both] for side in sides])


def processor_seconds() -> float:
    """Return the CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def programs(folder: Path, output_dir: str, workers: int) -> dict[str, Analysis]:
    """Analyse all programs of a build."""
    files = [{"path": str(f), "sha256": utils.sha256_of(f)} for f in sorted(folder.glob("*"))]
    failed = analyse_all(files, output_dir, workers)
    if failed or not files:
        raise utils.UserError(f"{folder}: {failed or 'no programs'}")
    return {Path(f["path"]).name: load_analysis(cache_file(output_dir, f["sha256"])) for f in files}


def grow(sides: list[list[Analysis]]) -> None:
    """Print the time of each step for an eighth, a quarter, half and all of the blocks."""
    model = read_model()
    sizes = np.cumsum([analysis.code_blocks for analysis in sides[0]])
    print("programs  blocks of both  words  candidates  functions  blocks  (CPU seconds)")
    for share in (1 / 8, 1 / 4, 1 / 2, 1):
        count = int(np.argmin(np.abs(sizes - share * sizes[-1]))) + 1
        joined = [join(side[:count]) for side in sides]
        moments = [time.process_time()]
        codes = [extract_features(analysis) for analysis in joined]
        moments.append(time.process_time())
        find_candidates(*codes, model.encoder)
        moments.append(time.process_time())
        functions = match_functions(*codes, model)
        moments.append(time.process_time())
        match_blocks(*codes, functions)
        moments.append(time.process_time())
        words, candidates, all_functions, blocks = np.diff(moments)
        total = sum(code.analysis.code_blocks for code in codes)
        print(
            f"{count:8}  {total:14,}  {words:5.1f}  {candidates:10.1f}  "
            f"{all_functions - candidates:9.1f}  {blocks:6.1f}"
        )
        sys.stdout.flush()


def join(parts: list[Analysis]) -> Analysis:
    """Concatenate programs as if they were one; imports with the same name stay separate."""
    nodes = {"code": [], "imports": []}  # old number -> new number
    functions = {"code": [], "imports": []}
    code = sum(part.code_blocks for part in parts)
    n_functions = sum(p.code_functions for p in parts)
    for i, _ in enumerate(parts):
        before = parts[:i]
        nodes["code"].append(sum(p.code_blocks for p in before))
        nodes["imports"].append(code + sum(len(p.import_name) for p in before))
        functions["code"].append(sum(p.code_functions for p in before))
        functions["imports"].append(n_functions + sum(len(p.import_name) for p in before))
    columns: dict[str, list] = {"edges": [], "kind": []}
    columns |= {"string_block": [], "variable_block": [], "variable_address": []}
    columns |= {"taker_block": [], "taken_block": []}
    columns |= {"pointer_address": [], "pointer_block": [], "label_pointer": []}
    listed: dict[str, list] = {"string": [], "variable_name": [], "label": []}
    pointers = 0
    split: dict[str, list[list]] = {
        name: [[], []]
        for name in ("address", "function", "returns", "function_address", "function_name")
    }
    texts: list[list[bytes]] = [[], []]
    for i, part in enumerate(parts):
        n, f = part.code_blocks, part.code_functions
        number = np.concatenate(
            [
                np.arange(n) + nodes["code"][i],
                np.arange(len(part.address) - n) + nodes["imports"][i],
            ]
        )
        owner = np.concatenate(
            [
                np.arange(f) + functions["code"][i],
                np.arange(len(part.import_name)) + functions["imports"][i],
            ]
        )
        columns["edges"].append(number[part.edges])
        columns["kind"].append(part.kind)
        shift = np.uint64(i * APART)
        for name in (name for name in columns if name.endswith("_block")):
            columns[name].append(number[getattr(part, name)])
        for name in ("variable_address", "pointer_address"):
            columns[name].append(getattr(part, name) + shift)
        columns["label_pointer"].append(part.label_pointer + pointers)
        pointers += len(part.pointer_block)
        for name, column in listed.items():
            column += getattr(part, name)
        for side, (inside, heads) in enumerate(
            ((slice(0, n), slice(0, f)), (slice(n, None), slice(f, None)))
        ):
            moved = shift if side == 0 else np.uint64(0)
            split["address"][side].append(part.address[inside] + moved)
            split["function"][side].append(owner[part.function[inside]])
            split["returns"][side].append(part.returns[inside])
            split["function_address"][side].append(part.function_address[heads] + moved)
            split["function_name"][side] += part.function_name[heads]
            texts[side] += part.instructions[inside]
    flat = {
        name: np.concatenate([*sides[0], *sides[1]])
        for name, sides in split.items()
        if name != "function_name"
    }
    return dataclasses.replace(
        parts[0],
        **flat,
        function_name=split["function_name"][0] + split["function_name"][1],
        import_name=[name for part in parts for name in part.import_name],
        instructions=texts[0] + texts[1],
        **{name: np.concatenate(column) for name, column in columns.items()},
        **listed,
    )


if __name__ == "__main__":
    command_line(main)
