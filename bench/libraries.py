"""How well does diff.py match the functions of libraries that it has not learned from?

    python bench/libraries.py --path experiment_data/packages/binaries

The libraries are those that experiment_data/recipes.py sets aside for the test, built by
experiment_data/build_packages.py. Functions with at least 3 blocks count, and a pair is right if
both names are the same; symbols are used for nothing else. Intervals are of 95 %, by bootstrap over
libraries. The peer, "words", matches one to one by the cosines of tokens, strings and imports,
weighted by TF-IDF; its threshold is the best one for each row.
"""

import datetime
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import numpy as np
from accuracy import MIN_BLOCKS, assign
from world import f1, f1_interval, words_score

import utils
from binary.analysis import load_analysis
from binary.cache import analyse_files
from binary.symbols import source_names
from experiment_data.recipes import TEST
from features.extract import Features, extract_features
from matching.functions import Matches, match_functions
from matching.model import DEFAULT, read_model
from terminal import progress
from terminal.command_line import command_line

CLANG, ARM64 = "bookworm-clang-O2", "bookworm-aarch64-linux-gnu-gcc-O2"
LTO, WINDOWS = "bookworm-O2-flto", "bookworm-x86_64-w64-mingw32-gcc"
I386, ARM = "bookworm-i686-linux-gnu-gcc-O2", "bookworm-arm-linux-gnueabihf-gcc-O2"
RISCV, MIPS = "bookworm-riscv64-linux-gnu-gcc-O2", "bookworm-mipsel-linux-gnu-gcc-O2"
# Kind -> the ends of the builds' names.
KINDS = {
    "O0-O2": ("bookworm-O0", "bookworm-O2"),
    "O0-O3": ("bookworm-O0", "bookworm-O3"),
    "O2-O3": ("bookworm-O2", "bookworm-O3"),
    "gcc-clang at O2": ("bookworm-O2", CLANG),
    "gcc at O0 to clang at O2": ("bookworm-O0", CLANG),
    "x86-64 to AArch64 at O2": ("bookworm-O2", ARM64),
    "x86-64 at O0 to AArch64 at O2": ("bookworm-O0", ARM64),
    "x86-64 to i386 at O2": ("bookworm-O2", I386),
    "x86-64 at O0 to i386 at O2": ("bookworm-O0", I386),
    "x86-64 to ARM at O2": ("bookworm-O2", ARM),
    "AArch64 to ARM at O2": (ARM64, ARM),
    "x86-64 to RISC-V at O2": ("bookworm-O2", RISCV),
    "x86-64 at O0 to RISC-V at O2": ("bookworm-O0", RISCV),
    "x86-64 to MIPS at O2": ("bookworm-O2", MIPS),
    "x86-64 at O0 to MIPS at O2": ("bookworm-O0", MIPS),
    "O2 to O2 with -flto": ("bookworm-O2", LTO),
    "O0 to O2 with -flto": ("bookworm-O0", LTO),
    "O0-O2, for Windows": (f"{WINDOWS}-O0", f"{WINDOWS}-O2"),
    "versions at O2": ("bullseye-O2", "bookworm-O2"),
    "versions, O2 to O0": ("bullseye-O2", "bookworm-O0"),
    "versions, O2 to O3": ("bullseye-O2", "bookworm-O3"),
}


def main(
    path: str = "experiment_data/packages/binaries/",
    model_file: str = str(DEFAULT),
    outputDir: str = "output/",
    workers: int = 2,
) -> None:
    """Print the table.

    Parameters
    ----------
    path : str
        Builds, DIR/<package>-<build>/<program>.
    model_file : str
        Model written by matching/train.py.
    outputDir : str
        Where analysed binaries are cached.
    workers : int
        Number of parallel processes.
    """
    model = read_model(model_file)
    pairs = {kind: list(pairs_of(Path(path), *ends)) for kind, ends in KINDS.items()}
    files = sorted({str(file) for found in pairs.values() for _, *both in found for file in both})
    if not files:
        raise utils.UserError(
            f"{path} has no two builds of {', '.join(TEST)}; `python "
            f'experiment_data/build_packages.py --levels "O0 O2 O3" --packages ...` makes some'
        )
    analyses, failed = analyse_files(files, outputDir, workers)
    print(f"{datetime.date.today()}, {os.cpu_count()} cores")
    print(f"{len(files)} files, {len(failed)} of which could not be analysed; F1 (95 %)")
    codes: dict[str, Features] = {}
    for kind, found in pairs.items():
        ours, words = defaultdict(list), defaultdict(list)
        for library, *both in progress.bar(found, desc=kind):
            if not all(str(file) in analyses for file in both):
                continue
            for file in map(str, both):
                codes.setdefault(file, extract_features(load_analysis(analyses[file])))
            first, second = (codes[str(file)] for file in both)
            truth = names_of(first, second)
            ours[library].append([judge(match_functions(first, second, model), *truth)])
            words[library].append([judge(m, *truth) for m in assign(words_score(first, second))])
        if not ours:
            continue
        counts = [
            np.array([np.sum(programs, 0) for programs in of_library.values()], float)
            for of_library in (ours, words)
        ]
        number = int(counts[0][:, 0, 2].sum())
        print(f"{kind:30} {number:5,} functions of {len(ours)} libraries", end="")
        print(f"  ours {score(counts[0])}  words {score(counts[1])}", flush=True)


def pairs_of(path: Path, first: str, second: str) -> Iterator[tuple[str, Path, Path]]:
    """Yield library, old and new file, for all programs that both builds of a library have."""
    for library in TEST:
        old, new = path / f"{library}-{first}", path / f"{library}-{second}"
        for file in sorted(old.glob("*")):
            if (new / file.name).is_file():
                yield library, file, new / file.name


def names_of(first: Features, second: Features) -> tuple[list[str], list[str], set[str]]:
    """Return the functions' names ("" if unknown), and those of the functions that count."""
    names = [source_names(code.analysis) for code in (first, second)]
    large = [
        {name for name, size in zip(n, code.sizes, strict=True) if name and size >= MIN_BLOCKS}
        for n, code in zip(names, (first, second), strict=True)
    ]
    # A function may have no partner; then a pair with it is wrong.
    alone = large[0] - set(names[1])
    return names[0], names[1], (large[0] & large[1]) | alone


def judge(found: Matches, old: list[str], new: list[str], counted: set[str]) -> np.ndarray:
    """Return the numbers of right, of claimed and of true pairs."""
    names = [(old[a], new[b]) for a, b in zip(found.a, found.b, strict=True) if old[a] in counted]
    true = counted & set(new)
    return np.array([sum(a == b for a, b in names), len(names), len(true)])


def score(counts: np.ndarray) -> str:
    """Return F1 of the best threshold, and its interval.

    Parameters
    ----------
    counts : float (libraries, thresholds, 3)
        What `judge` returns.
    """
    by_threshold = counts.swapaxes(0, 1)
    best = by_threshold[f1(by_threshold).argmax()]
    low, high = f1_interval(best)
    return f"{f1(best):.3f} [{low:.3f} {high:.3f}]"


if __name__ == "__main__":
    command_line(main)
