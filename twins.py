"""Find functions that two builds surely share, without any symbol: what pre-training ends with.

    python twins.py                                    # -> data/twins.tsv
    python classify.py --data_file data/twins.tsv --save_dir out-twins \\
        --pretrain_file out/model_steps_<k>.pt         # the same BERT, whose vectors now compare

The *names* in a function are the imports that it calls and the words of its string literals. Each
name that only one function of each build has is a vote for these two. Twins are two functions that
give each other most of their votes.

What a model shall learn from twins is what else they have in common: every second row has no names.
"""

if __name__ == "__main__":
    from terminal.early import answer

    answer(__file__)  # --help and words on wrong flags need not wait for the imports below

import itertools
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt
from tqdm import tqdm

import samefunc
import utils
from binary.analysis import load_analysis
from binary.instructions import clean_name, string_words
from binary.tokens import tokenise
from pairs.folder import analysis_files, find_pairs, read_info
from terminal.command_line import command_line

data = "data"  # the folder that gendata.py wrote
outputDir = "output/"  # where it keeps the analysed binaries
to = "data/twins.tsv"
min_blocks = 4  # functions of fewer blocks are left out: they say too little
rows = 100_000  # at most
seed = 0


@dataclass(frozen=True)
class Function:
    """One function of one binary.

    Attributes
    ----------
    names : frozenset of str
        Imports that it calls, and words of its string literals.
    texts : (Function, Function) of samefunc
        Whole, and without names.
    """

    names: frozenset[str]
    texts: tuple[samefunc.Function, samefunc.Function]


def main(
    data: str = data,
    outputDir: str = outputDir,
    to: str = to,
    min_blocks: PositiveInt = min_blocks,
    rows: PositiveInt = rows,
    seed: Annotated[int, Field(ge=0)] = seed,
) -> None:
    """Write rows for `classify.py --task samefunc`: twins, and functions that are none.

    Parameters
    ----------
    data : str
        The folder that gendata.py wrote; pairs that it holds out are not read.
    outputDir : str
        Where gendata.py keeps the analysed binaries.
    to : str
        The file to write.
    min_blocks : int
        Functions of fewer basic blocks are left out.
    rows : int
        At most so many, as many of each pair; one half are twins.
    seed : int
        Seed of all choices.
    """
    utils.check_outputs({"to": to})
    infos = [read_info(folder) for folder in find_pairs(data)[0]]
    pairs = [info for info in infos if info.split == "train"]
    if not pairs:
        raise utils.UserError(f"{data} holds no pair to train on; run `python gendata.py` first")
    most = max(1, rows // 2 // len(pairs))  # twins of a pair of binaries
    table = []
    for info in tqdm(pairs, desc="pairs", unit="pair", disable=None):
        files = analysis_files(info, outputDir)
        first, second = (
            read_functions(info.program, build.build, file, min_blocks)
            for build, file in zip(info.binaries, files, strict=True)
        )
        rng = np.random.default_rng([seed, info.pair])
        table += draw(first, second, find_twins(first, second), most, rng)
    if not table:
        raise utils.UserError(
            f"the {len(pairs)} pairs to train on in {data} share no names that tell functions; run "
            "`python gendata.py` with more builds or programs first"
        )
    with utils.atomic_file(to) as file:
        file.write(samefunc.to_tsv(table))
    programs = {info.program for info in pairs}
    print(f"{to}: {len(table):,} rows of {len(pairs):,} pairs of {len(programs):,} programs")


@lru_cache(maxsize=64)
def read_functions(program: str, build: str, file: Path, min_blocks: int) -> list[Function]:
    """Return a binary's functions of ``min_blocks`` basic blocks or more, by address."""
    analysis = load_analysis(file)
    n_code = analysis.code_blocks
    names: list[set[str]] = [set() for _ in range(n_code)]
    for block, literal in zip(analysis.string_block.tolist(), analysis.string, strict=True):
        names[block].update(string_words(literal))
    for block, name in analysis.import_calls():
        names[block].add(clean_name(name))
    words = tokenise(analysis).words()
    # What blocks without names say is no name, even if a string says "add", too.
    code = {word for block in range(n_code) if not names[block] for word in words[block]}
    functions = []
    order = np.argsort(analysis.function[:n_code], kind="stable").tolist()
    for number, group in itertools.groupby(order, lambda block: int(analysis.function[block])):
        blocks = list(group)
        if len(blocks) < min_blocks:
            continue
        own = set().union(*(names[block] for block in blocks)) - code
        whole = [word for block in blocks for word in words[block]]
        texts = tuple(
            samefunc.Function(
                program,
                build,
                hex(int(analysis.function_address[number])),
                " ".join(tokens),
                len(tokens),
                len(blocks),
            )
            for tokens in (whole, [word for word in whole if word not in own])
        )
        functions.append(Function(frozenset(own), texts))
    return functions


def find_twins(first: list[Function], second: list[Function]) -> list[tuple[int, int]]:
    """Return which functions are twins, (of the first, of the second), sorted."""
    votes: Counter[tuple[int, int]] = Counter()
    theirs = _only(second)
    for name, i in _only(first).items():
        if name in theirs:
            votes[i, theirs[name]] += 1
    best: tuple[dict[int, int], dict[int, int]] = ({}, {})
    for i, j in sorted(votes, key=lambda pair: (-votes[pair], pair)):
        best[0].setdefault(i, j)
        best[1].setdefault(j, i)
    return sorted((i, j) for i, j in best[0].items() if best[1][j] == i)


def _only(functions: list[Function]) -> dict[str, int]:
    """Return name -> function for names that one function alone has."""
    times = Counter(name for function in functions for name in function.names)
    return {
        name: i
        for i, function in enumerate(functions)
        for name in sorted(function.names)
        if times[name] == 1
    }


def draw(
    first: list[Function],
    second: list[Function],
    twins: list[tuple[int, int]],
    most: int,
    rng: np.random.Generator,
) -> list[tuple[str, samefunc.Function, samefunc.Function]]:
    """Return rows: twins, ``most`` of them, each followed by its first with another function."""
    sizes = np.log([max(1, function.texts[0].size) for function in second])
    rows: list[tuple[str, samefunc.Function, samefunc.Function]] = []
    for i, j in rng.permutation(np.array(twins).reshape(-1, 2)).tolist():
        nearest = np.argsort(abs(sizes - sizes[j]), kind="stable")[: samefunc.NEAREST + 1]
        others = nearest[nearest != j]
        if not len(others) or len(rows) >= 2 * most:
            break
        k = int(others[rng.integers(len(others))])
        view = int(rng.integers(2))  # whole, or without names
        a, b, c = (function.texts[view] for function in (first[i], second[j], second[k]))
        if a.text not in (b.text, c.text):  # equal texts would be no question
            rows += [(samefunc.LABELS[1], a, b), (samefunc.LABELS[0], a, c)]
    return rows


if __name__ == "__main__":
    command_line(main)
