"""How much time and memory diff.py takes, and how both grow with the size of the binaries.

    python bench/speed_diff.py OLD NEW --more DIR
    python bench/speed_diff.py hub

Cold and warm: the whole command, without and with the analyses in the cache. Growth: comparing
without angr, with 1, 2, 4 and 8 times the blocks. The larger binaries are several programs
concatenated, DIR/<old build>/* and DIR/<new build>/*, the largest first. Hub: comparing two
versions of a made-up program of so many functions, one of which calls all others and is called by
all.
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
from binary.analysis import CALL, JUMP, Analysis, load_analysis
from binary.cache import analyse_files
from features.extract import extract_features
from matching.blocks import match_blocks
from matching.candidates import find_candidates
from matching.changes import compare
from matching.functions import match_functions
from matching.model import read_model
from terminal.arguments import names_of
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
        Folder of builds for the growth; without it, growth is not measured.
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
    measure_command(old, new, workers)
    if more:
        sides = [
            programs(Path(more) / build, outputDir, workers) for build in (old_build, new_build)
        ]
        both = sorted(sides[0].keys() & sides[1].keys())
        both.sort(key=lambda name: sides[0][name].code_blocks)
        grow([[side[name] for name in both] for side in sides])


def measure_command(old: str, new: str, workers: int) -> None:
    """Print time and memory of diff.py, without and with the analyses in the cache."""
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


def hub(sizes: str | list[int] = "1000,2000,4000,8000") -> None:
    """Print the time of comparing two versions of `hub_program`, and memory so far.

    Parameters
    ----------
    sizes : str or list of int
        Numbers of functions.
    """
    print(machine())
    model = read_model()
    print("functions  features  comparing  (CPU seconds)      MB")
    for n in map(int, names_of(sizes)):
        moments = [time.process_time()]
        codes = [extract_features(hub_program(n, seed)) for seed in (1, 2)]
        moments.append(time.process_time())
        compare(*codes, model)
        moments.append(time.process_time())
        features, comparing = np.diff(moments)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(f"{n:9,}  {features:8.1f}  {comparing:9.1f}  {memory:22,}", flush=True)


def hub_program(n: int, seed: int) -> Analysis:
    """Make a program in which one function calls all others, and is called by all.

    It has a block and a number of its own for each. A third of the other functions have a number
    that depends on the seed, and one of twenty is missing.
    """
    common, own = np.random.default_rng(0), np.random.default_rng(seed)
    numbers = common.integers(0, 3000, (n, 4)).tolist()
    registers = common.integers(0, 4, (n, 4)).tolist()
    edited, there = own.random(n) < 1 / 3, np.flatnonzero(own.random(n) < 19 / 20)
    m = len(there)
    hub = np.arange(m)  # its blocks; the last of them, which returns, has number m
    entry = m + 1 + 2 * hub  # each of the others has two blocks
    ends = [(hub, hub + 1), (entry, entry + 1), (hub, entry), (entry + 1, np.zeros(m, int))]
    edges = np.concatenate([np.stack(pair, 1) for pair in ends]).astype(np.int32)
    kind = np.repeat(np.array([JUMP, JUMP, CALL, CALL], np.uint8), m)
    order = np.lexsort(edges.T[::-1])
    code = [b"cmp edi, 0x%x\ncall 0x401000" % i for i in there.tolist()] + [b"ret "]
    name = [b"rax", b"rbx", b"rcx", b"rdx"]
    for i in there.tolist():
        (a, b, c, d), (x, y, z, w) = numbers[i], (name[r] for r in registers[i])
        code.append(b"push rbp\nmov %s, [rdi + 0x%x]\nadd %s, 0x%x" % (x, a % 64 * 8, y, b))
        edit = int(own.integers(1000)) if edited[i] else 0
        code.append(b"xor %s, 0x%x\nsub %s, 0x%x\ncall 0x401000\nret " % (z, c + edit, w, d))
    blocks, lines = len(code), [text.count(b"\n") + 1 for text in code]
    address = 0x401000 + 64 * np.arange(blocks, dtype=np.uint64)
    nothing = "variable_block", "variable_address", "taker_block", "taken_block", "pointer_address"
    nothing += "pointer_block", "label_pointer", "operand_string"
    return Analysis(
        address=address,
        function=np.append(np.zeros(m + 1, np.int32), 1 + np.repeat(hub, 2)).astype(np.int32),
        edges=edges[order],
        kind=kind[order],
        returns=np.ones(blocks, bool),
        function_address=address[np.append(0, entry)],
        function_name=["hub", *(f"f{i}" for i in there.tolist())],
        string_block=entry[::8].astype(np.int32),
        string=[b"words of %d" % numbers[i][0] for i in there[::8].tolist()],
        instructions=code,
        first_instruction=np.append(0, np.cumsum(lines)),
        instruction_form=np.zeros(sum(lines), np.int32),
        form=["one"],
        **{name: np.zeros(0, np.int32) for name in nothing},
        **{name: [] for name in ("variable_name", "label", "import_name")},
    )


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
    command_line(main, hub=hub)
