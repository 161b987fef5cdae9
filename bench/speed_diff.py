"""How much time and memory diff.py takes, and how both grow with the size of the binaries.

    python bench/speed_diff.py OLD NEW --more DIR

Cold and warm: the whole command, without and with the analyses in the cache. Growth: comparing
without angr, with 1, 2, 4 and 8 times the blocks. The larger binaries are several programs
concatenated, DIR/<old build>/* and DIR/<new build>/*, the largest first.
"""

import dataclasses
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from shared import machine

import utils
from binary.analysis import Analysis, load_analysis
from binary.cache import analyse_files
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
    print(machine())
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
    files = [str(file) for file in sorted(folder.glob("*"))]
    if not files:
        raise utils.UserError(f"{folder}: no programs")
    analyses, _ = analyse_files(files, output_dir, workers, all_or_none=True)
    return {Path(file).name: load_analysis(analyses[file]) for file in files}


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


class Order:
    """The order of joined blocks or functions: those with code first, then all imports.

    Parameters
    ----------
    sizes : list of (int, int)
        For each program, how many there are, and how many of these have code.
    """

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.first = np.cumsum([0, *(n for n, _ in sizes)])
        is_import = np.concatenate([np.arange(n) >= code for n, code in sizes])
        self.order = np.argsort(is_import, kind="stable")
        self.place = np.argsort(self.order)

    def number(self, i: int, numbers: np.ndarray) -> np.ndarray:
        """Return the new numbers of some blocks or functions of program i."""
        return self.place[numbers + self.first[i]]


def join(parts: list[Analysis]) -> Analysis:
    """Concatenate programs as if they were one; imports with the same name stay separate."""
    blocks = Order([(len(part.address), part.code_blocks) for part in parts])
    functions = Order([(len(part.function_address), part.code_functions) for part in parts])
    pointers = np.cumsum([0, *(len(part.pointer_block) for part in parts)], dtype=np.int32)

    def moved(i: int, address: np.ndarray) -> np.ndarray:
        return np.where(address > 0, address + np.uint64(i * APART), address)  # imports are at 0

    def joined(name: str, change: Callable = lambda i, column: column) -> np.ndarray:
        return np.concatenate([change(i, getattr(part, name)) for i, part in enumerate(parts)])

    def listed(name: str) -> list:
        return [value for part in parts for value in getattr(part, name)]

    referring = ("string", "variable", "taker", "taken", "pointer")
    instructions, function_name = listed("instructions"), listed("function_name")
    return dataclasses.replace(
        parts[0],
        address=joined("address", moved)[blocks.order],
        function=joined("function", functions.number)[blocks.order],
        returns=joined("returns")[blocks.order],
        instructions=[instructions[i] for i in blocks.order],
        function_address=joined("function_address", moved)[functions.order],
        function_name=[function_name[i] for i in functions.order],
        kind=joined("kind"),
        label_pointer=joined("label_pointer", lambda i, column: column + pointers[i]),
        edges=joined("edges", blocks.number),
        **{f"{name}_block": joined(f"{name}_block", blocks.number) for name in referring},
        **{name: joined(name, moved) for name in ("variable_address", "pointer_address")},
        **{name: listed(name) for name in ("string", "variable_name", "label", "import_name")},
    )


if __name__ == "__main__":
    command_line(main)
