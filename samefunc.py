"""Make the data of a classification task: two functions from two builds, same source or not?

    python samefunc.py --path DIR     # -> data/samefunc/train.tsv, dev.tsv, test.tsv

A function is the tokens of its basic blocks by address. A positive pair is a function of the same
name in two builds of a program. For each, a hard negative keeps the first function and replaces the
second by another one of that build whose number of tokens is near the second's, so that sizes tell
nothing. Names come from symbol tables and serve as labels only: no text holds them.

Programs of one package share library functions, so programs alone do not separate the splits: a
name that occurs in an earlier split's programs occurs in no later split.
"""

if __name__ == "__main__":
    from terminal.early import answer

    answer(__file__)  # --help and words on wrong flags need not wait for the imports below

import dataclasses
import itertools
import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt

import utils
from binary.analysis import cache_file, load_analysis
from binary.builds import find_binaries
from binary.cache import SKIPPED, analyse_all
from binary.symbols import STARTUP, is_symbol
from binary.tokens import tokenise
from terminal.arguments import names_of
from terminal.command_line import command_line

path = "experiment_data/coreutils/binaries/"  # builds: path/<build>/<program>
train = ["chroot", "ls"]  # programs of each split
dev = ["cp"]
test = ["sort"]
train_pairs = 20000  # half of them positive, as in the others
other_pairs = 4000  # of dev and of test
min_blocks = 5  # functions of fewer blocks are left out: they say too little
outputDir = "output/"  # analysed binaries, shared with gendata.py
to = "data/samefunc"
seed = 0
workers = os.cpu_count() or 1  # processes
LABELS = ("different", "same")
NEAREST = 8  # a negative is one of so many functions whose sizes are nearest
Programs = str | list[str]


@dataclasses.dataclass(frozen=True)
class Function:
    """One function of one binary: where it comes from and its tokens."""

    program: str
    build: str
    name: str
    text: str  # tokens, separated by blanks
    size: int  # in tokens
    blocks: int

    @property
    def origin(self) -> str:
        return f"{self.program}/{self.build}/{self.name}"


def main(
    path: str = path,
    train: Programs = train,
    dev: Programs = dev,
    test: Programs = test,
    train_pairs: PositiveInt = train_pairs,
    other_pairs: PositiveInt = other_pairs,
    min_blocks: PositiveInt = min_blocks,
    outputDir: str = outputDir,
    to: str = to,
    seed: Annotated[int, Field(ge=0)] = seed,
    workers: PositiveInt = workers,
) -> int:
    """Write train.tsv, dev.tsv and test.tsv for `classify.py --task samefunc`.

    Ends with exit code 3 when binaries were skipped.

    Parameters
    ----------
    path : str
        Folder whose sub-folders each hold one build of the programs, with symbols.
    train : str or list of str
        The programs to train on: --train chroot,ls.
    dev : str or list of str
        The programs to choose settings by.
    test : str or list of str
        The programs of the last test.
    train_pairs : int
        Pairs of functions in train.tsv, half of them of one source function.
    other_pairs : int
        Pairs of functions in dev.tsv, and in test.tsv.
    min_blocks : int
        Functions of fewer basic blocks are left out.
    outputDir : str
        Where analysed binaries are cached.
    to : str
        The folder to write.
    seed : int
        Seed of the choice of pairs.
    workers : int
        Processes that work at the same time.
    """
    splits = {
        name: names_of(programs)
        for name, programs in (("train", train), ("dev", dev), ("test", test))
    }
    twice = [p for p, n in Counter(itertools.chain(*splits.values())).items() if n > 1]
    if twice:
        raise utils.UsageError(f"{twice[0]} stands in two splits; a program can be in one only")
    utils.check_outputs({}, [path], {"outputDir": outputDir, "to": to})
    used: set[str] = set()  # names of functions that an earlier split's programs have
    skipped: dict[str, str] = {}
    tables = {}
    for number, (split, programs) in enumerate(splits.items()):
        functions = []
        for program in programs:
            binaries = find_binaries(path, program)
            skipped |= analyse_all(binaries, outputDir, workers)
            for binary in binaries:
                if binary["path"] not in skipped:
                    functions += read_functions(binary, program, outputDir)
        n_pairs = train_pairs if split == "train" else other_pairs
        rng = np.random.default_rng([seed, number])
        tables[split] = draw(choose(functions, used, min_blocks), n_pairs, rng)
        used |= {function.name.split(".")[0] for function in functions}
    with utils.one_writer(to), utils.atomic_folder(to) as folder:
        for split, rows in tables.items():
            write_tsv(folder / f"{split}.tsv", rows)
            names = {function.name for _, *pair in rows for function in pair}
            programs = ", ".join(splits[split])
            print(f"{to}/{split}.tsv: {len(rows):,} pairs, {len(names):,} names, of {programs}")
    for file, reason in skipped.items():
        print(f"skipped {file}: {reason}")
    return SKIPPED if skipped else 0


def read_functions(binary: dict[str, str], program: str, output_dir: str) -> list[Function]:
    """Return a binary's functions that have a symbol, parts and copies (foo.part.0) included."""
    analysis = load_analysis(cache_file(output_dir, binary["sha256"]))
    words = tokenise(analysis).words()
    blocks: dict[int, list[int]] = {}
    for block, function in enumerate(analysis.function[: analysis.code_blocks].tolist()):
        blocks.setdefault(function, []).append(block)
    found = []
    for number, inside in blocks.items():
        name = analysis.function_name[number]
        if not is_symbol(name):
            continue
        tokens = [word for block in inside for word in words[block]]
        function = Function(
            program, binary["build"], name, " ".join(tokens), len(tokens), len(inside)
        )
        found.append(function)
    return found


def choose(functions: list[Function], used: set[str], min_blocks: int) -> list[Function]:
    """Return those that pairs can be made of: whole, named once in their build, of some size."""
    named = Counter((function.program, function.build, function.name) for function in functions)
    return [
        function
        for function in functions
        if function.blocks >= min_blocks
        and "." not in function.name
        and function.name not in used | STARTUP
        and named[function.program, function.build, function.name] == 1
    ]


def draw(
    functions: list[Function], n_pairs: int, rng: np.random.Generator
) -> list[tuple[str, Function, Function]]:
    """Draw pairs, half of them positive: (label, first, second), in random order.

    Raises
    ------
    UserError
        There are not so many different pairs.
    """
    by_name: dict[tuple[str, str], list[Function]] = {}
    by_build: dict[tuple[str, str], list[Function]] = {}
    for function in functions:
        by_name.setdefault((function.program, function.name), []).append(function)
        by_build.setdefault((function.program, function.build), []).append(function)
    groups = [group for _, group in sorted(by_name.items()) if len(group) > 1]
    sizes = {build: np.array([f.size for f in inside]) for build, inside in by_build.items()}

    rows: list[tuple[str, Function, Function]] = []
    seen: set[tuple[str, str]] = set()
    for _ in range(20 * n_pairs if groups else 0):
        if len(rows) >= n_pairs:
            break
        group = groups[rng.integers(len(groups))]
        first, second = (group[i] for i in rng.choice(len(group), 2, replace=False))
        build = second.program, second.build
        distance = abs(np.log(sizes[build] / second.size))
        near = [by_build[build][i] for i in np.argsort(distance, kind="stable")[: NEAREST + 1]]
        others = [function for function in near if function.name != second.name]
        if not others:
            continue
        other = others[rng.integers(len(others))]
        # Equal texts would be no question, or one without an answer.
        if first.text in (second.text, other.text) or (first.origin, second.origin) in seen:
            continue
        seen.add((first.origin, second.origin))
        rows += [(LABELS[1], first, second), (LABELS[0], first, other)]
    if len(rows) < n_pairs:
        raise utils.UserError(
            f"{len(functions):,} functions of {len(groups):,} names give only {len(rows):,} pairs, "
            f"not {n_pairs:,}; ask for fewer pairs, or give more builds or programs"
        )
    return [rows[i] for i in rng.permutation(len(rows))]


def write_tsv(file: Path, rows: list[tuple[str, Function, Function]]) -> None:
    """Write the rows; ``file`` is in a folder that takes its name when it is whole."""
    file.write_text(to_tsv(rows), encoding="utf-8", newline="\n")


def to_tsv(rows: list[tuple[str, Function, Function]]) -> str:
    """Return the rows as text: what a classifier reads, then where both functions come from."""
    lines = ["\t".join(("label", "text_a", "text_b", "origin_a", "origin_b"))]
    lines += ["\t".join((label, a.text, b.text, a.origin, b.origin)) for label, a, b in rows]
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    command_line(main)
