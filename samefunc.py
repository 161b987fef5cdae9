"""Make the data of a classification task: do two functions from two builds share their source?

    python samefunc.py                # by symbols -> data/samefunc/train.tsv, dev.tsv, test.tsv
    python samefunc.py twins          # without symbols -> data/twins.tsv
    python classify.py --data_file data/twins.tsv --save_dir out-twins \\
        --pretrain_file out/model_steps_<k>.pt       # fine-tune BERT so that its vectors compare

Both read the binaries that gendata.py has made pairs of. A function is the tokens of its basic
blocks, in the order of their addresses. A positive row is one function in two builds of a program.
Each positive row gets a hard negative: the same first function, and instead of the second another
one of its build with a similar number of tokens, so that the size gives no hint.

With symbols, positives are functions of the same name. The names are used only as labels and are
not in the texts. Programs of one package share library functions, so splitting by program is not
enough: a name that occurs in the programs of one split is left out of all later splits.

Twins are functions that two builds certainly share. Each import called by only one function in each
build, and each such word of a string literal, is a vote that these two functions are the same. Two
functions are twins if each has its most votes in common with the other. A model should learn what
else they have in common, so about half of the rows leave these words out.
"""

if __name__ == "__main__":
    from terminal.early import answer

    answer(__file__)  # --help and messages about wrong flags need not wait for the imports below

import dataclasses
import itertools
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt

import utils
from binary.analysis import load_analysis
from binary.instructions import clean_name, string_words
from binary.symbols import STARTUP, is_symbol
from binary.tokens import tokenise
from jobs.processes import MACHINE, Limit, limited_memory
from pairs.binaries import Binary, binaries_of, read_pairs
from pairs.folder import analysis_files, find_pairs
from pairs.twins import find_twins
from terminal import progress
from terminal.arguments import names_of
from terminal.command_line import command_line
from terminal.escape import printable

data = "data"  # the pairs that gendata.py made
train_pairs = 20000  # half of them positive, as in dev and test
other_pairs = 4000  # in dev, and in test
min_blocks = 5  # smaller functions are left out: they carry too little information
outputDir = "output/"  # analysed binaries, shared with gendata.py
to = "data/samefunc"
seed = 0
SPLITS = {"train": "train", "dev": "validation", "test": "test"}  # table -> gendata.py's name
LABELS = ("different", "same")
NEAREST = 8  # a negative is drawn from so many functions of the most similar size
Programs = str | list[str]
Row = tuple[str, str, str, str, str]  # label, both texts, where both functions come from


@dataclasses.dataclass(frozen=True)
class Function:
    """One function of one binary.

    Attributes
    ----------
    program, build : str
        Where it comes from.
    address : int
    symbol : str
        "" if the symbol table has no name for it.
    blocks, size : int
        Number of basic blocks, and of tokens.
    texts : (str, str)
        Its tokens, separated by blanks: all of them, and only those that are not in ``names``.
    names : frozenset of str
        The imports that it calls, and the words of its string literals.
    """

    program: str
    build: str
    address: int
    symbol: str
    blocks: int
    size: int
    texts: tuple[str, str]
    names: frozenset[str]

    @property
    def origin(self) -> str:
        name = self.symbol or hex(self.address)
        return printable(f"{self.program}/{self.build}/{name}")  # one cell of a TSV


def main(
    data: str = data,
    train: Programs | None = None,
    dev: Programs | None = None,
    test: Programs | None = None,
    train_pairs: PositiveInt = train_pairs,
    other_pairs: PositiveInt = other_pairs,
    min_blocks: PositiveInt = min_blocks,
    outputDir: str = outputDir,
    to: str = to,
    seed: Annotated[int, Field(ge=0)] = seed,
    memory_limit: Limit = MACHINE,
) -> None:
    """Write train.tsv, dev.tsv and test.tsv for `classify.py --task samefunc`.

    Parameters
    ----------
    data : str
        Folder written by gendata.py, with pairs of builds with symbols.
    train : str or list of str
        The programs to train on: --train chroot,ls. Default: those that gendata.py chose to train
        on.
    dev : str or list of str
        The programs for choosing settings. Default: those that gendata.py chose for validation.
    test : str or list of str
        The programs of the final test. Default: those that gendata.py chose for it.
    train_pairs : int
        Pairs of functions in train.tsv, half of them with the same source.
    other_pairs : int
        Pairs of functions in dev.tsv, and in test.tsv.
    min_blocks : int
        Functions with fewer basic blocks are left out.
    outputDir : str
        Folder where gendata.py keeps the analysed binaries.
    to : str
        Folder to write.
    seed : int
        Random seed for choosing pairs.
    memory_limit : float
        GiB of memory.
    """
    folders, _ = find_pairs(data)
    utils.check_outputs({}, whole=[*folders, outputDir], replaced={"to": to})
    chosen = {"train": train, "dev": dev, "test": test}
    with limited_memory(memory_limit, "choosing pairs of functions"):
        binaries = binaries_of(read_pairs(data), outputDir)
        splits = programs_of_splits(binaries, data, chosen)
        used: set[str] = set()  # names of functions in the programs of earlier splits
        tables = {}
        for number, (split, programs) in enumerate(splits.items()):
            ours = [binary for binary in binaries if binary.program in programs]
            functions = [
                function
                for binary in progress.bar(ours, desc=split, unit="binary")
                for function in read_functions(binary.analysis, binary.program, binary.build)
            ]
            n_pairs = train_pairs if split == "train" else other_pairs
            rng = np.random.default_rng([seed, number])
            tables[split] = draw(choose(functions, used, min_blocks), n_pairs, rng)
            used |= {function.symbol.split(".")[0] for function in functions}
    write_tables(to, tables)
    for split, rows in tables.items():
        names = {origin.split("/")[-1] for row in rows for origin in row[3:]}
        programs = ", ".join(splits[split])
        print(f"{to}/{split}.tsv: {len(rows):,} pairs, {len(names):,} names, of {programs}")


def programs_of_splits(
    binaries: list[Binary], data: str, chosen: dict[str, Programs | None]
) -> dict[str, list[str]]:
    """Return the programs of each table.

    Parameters
    ----------
    binaries : list of Binary
        Those of the pairs in ``data``.
    data : str
    chosen : dict
        Table -> its programs; None: those of gendata.py's split.

    Raises
    ------
    UserError
        A program has no pair, or a table no program.
    UsageError
        A program is in two tables.
    """
    known = {binary.program: binary.split for binary in binaries}
    splits = {}
    for table, of in SPLITS.items():
        given = chosen[table]
        programs = sorted(p for p in known if known[p] == of) if given is None else names_of(given)
        unknown = [program for program in programs if program not in known]
        if unknown:
            raise utils.UserError(
                f"--{table} {unknown[0]}: {data} holds no pair of this program; run `python "
                f"gendata.py --biname {unknown[0]}` first"
            )
        if not programs:
            raise utils.UserError(
                f"{data} holds no pair for {of}; name the programs: --{table} NAME, or run `python "
                "gendata.py` with more programs first"
            )
        splits[table] = programs
    twice = [p for p, n in Counter(itertools.chain(*splits.values())).items() if n > 1]
    if twice:
        raise utils.UsageError(f"{twice[0]} is in two splits; name the programs of all three")
    return splits


def twins(
    data: str = "data",
    outputDir: str = outputDir,
    to: str = "data/twins.tsv",
    min_blocks: PositiveInt = 4,
    rows: PositiveInt = 100_000,
    seed: Annotated[int, Field(ge=0)] = seed,
) -> None:
    """Write rows for `classify.py --task samefunc`: twins, and pairs that are not.

    Parameters
    ----------
    data : str
        Folder written by gendata.py; its validation and test pairs are not read.
    outputDir : str
        Folder where gendata.py keeps the analysed binaries.
    to : str
        File to write.
    min_blocks : int
        Functions with fewer basic blocks are left out.
    rows : int
        Maximum number of rows, shared equally between the pairs; half of them are twins.
    seed : int
        Random seed.
    """
    folders, _ = find_pairs(data)
    utils.check_outputs({"to": to}, whole=[*folders, outputDir])
    pairs = read_pairs(data, "train")
    if not pairs:
        raise utils.UserError(f"{data} holds no pair to train on; run `python gendata.py` first")
    most = max(1, rows // 2 // len(pairs))  # twins of a pair of binaries
    table = []
    for info in progress.bar(pairs, desc="pairs", unit="pair"):
        files = analysis_files(info, outputDir)
        first, second = (
            [
                dataclasses.replace(function, symbol="")
                for function in read_functions(file, info.program, build.build)
                if function.blocks >= min_blocks
            ]
            for build, file in zip(info.binaries, files, strict=True)
        )
        rng = np.random.default_rng([seed, info.pair])
        table += draw_twins(first, second, most, rng)
    if not table:
        raise utils.UserError(
            f"in the {len(pairs)} training pairs in {data}, no functions share imports or strings "
            "that identify them; run `python gendata.py` with more builds or programs first"
        )
    with utils.atomic_file(to) as file:
        file.write(to_tsv(table))
    programs = {info.program for info in pairs}
    made = {"row": len(table), "pair": len(pairs), "program": len(programs)}
    print(f"{to}: {' of '.join(f'{n:,} {utils.plural(n, noun)}' for noun, n in made.items())}")


@lru_cache(maxsize=64)
def read_functions(file: Path, program: str, build: str) -> list[Function]:
    """Return the functions of an analysed binary, including parts and copies (foo.part.0)."""
    analysis = load_analysis(file)
    n_code = analysis.code_blocks
    named: list[set[str]] = [set() for _ in range(n_code)]
    for block, literal in zip(analysis.string_block.tolist(), analysis.string, strict=True):
        named[block].update(string_words(literal))
    for block, name in analysis.import_calls():
        named[block].add(clean_name(name))
    words = tokenise(analysis).words()
    # A word that also occurs in blocks without names is not a name: "add" is an instruction, too.
    code = {word for block in range(n_code) if not named[block] for word in words[block]}
    functions = []
    order = np.argsort(analysis.function[:n_code], kind="stable").tolist()
    for number, group in itertools.groupby(order, lambda block: int(analysis.function[block])):
        blocks = list(group)
        names = set().union(*(named[block] for block in blocks)) - code
        tokens = [word for block in blocks for word in words[block]]
        symbol = analysis.function_name[number]
        function = Function(
            program,
            build,
            address=int(analysis.function_address[number]),
            symbol=symbol if is_symbol(symbol) else "",
            blocks=len(blocks),
            size=len(tokens),
            texts=(" ".join(tokens), " ".join(word for word in tokens if word not in names)),
            names=frozenset(names),
        )
        functions.append(function)
    return functions


def choose(functions: list[Function], used: set[str], min_blocks: int) -> list[Function]:
    """Return the functions to make pairs of: whole, large enough, of a name unique in the build."""
    named = Counter((function.program, function.build, function.symbol) for function in functions)
    return [
        function
        for function in functions
        if function.blocks >= min_blocks
        and function.symbol
        and "." not in function.symbol
        and function.symbol not in used | STARTUP
        and named[function.program, function.build, function.symbol] == 1
    ]


def unique_names(functions: list[Function]) -> dict[str, int]:
    """Return name -> index of the function, for names that only one function has."""
    times = Counter(name for function in functions for name in function.names)
    return {
        name: i
        for i, function in enumerate(functions)
        for name in sorted(function.names)
        if times[name] == 1
    }


def draw(functions: list[Function], n_pairs: int, rng: np.random.Generator) -> list[Row]:
    """Draw pairs of functions of the same name, and as many negatives, in random order.

    Raises
    ------
    UserError
        There are fewer different pairs.
    """
    by_name: dict[tuple[str, str], list[Function]] = {}
    by_build: dict[tuple[str, str], list[Function]] = {}
    for function in functions:
        by_name.setdefault((function.program, function.symbol), []).append(function)
        by_build.setdefault((function.program, function.build), []).append(function)
    groups = [group for _, group in sorted(by_name.items()) if len(group) > 1]

    rows: list[Row] = []
    seen: set[tuple[str, str]] = set()
    for _ in range(20 * n_pairs if groups else 0):
        if len(rows) >= n_pairs:
            break
        group = groups[rng.integers(len(groups))]
        first, second = (group[i] for i in rng.choice(len(group), 2, replace=False))
        if (first.origin, second.origin) in seen:
            continue
        made = two_rows(first, second, by_build[second.program, second.build], 0, rng)
        if made:
            seen.add((first.origin, second.origin))
            rows += made
    if len(rows) < n_pairs:
        raise utils.UserError(
            f"{len(functions):,} functions with {len(groups):,} names give only {len(rows):,} "
            f"pairs, not {n_pairs:,}; ask for fewer pairs, or give more builds or programs"
        )
    return [rows[i] for i in rng.permutation(len(rows))]


def draw_twins(
    first: list[Function], second: list[Function], most: int, rng: np.random.Generator
) -> list[Row]:
    """Draw up to ``most`` twins of two builds, each followed by its negative."""
    rows: list[Row] = []
    found = find_twins(unique_names(first), unique_names(second))
    for i, j in rng.permutation(np.array(found).reshape(-1, 2)).tolist():
        if len(rows) < 2 * most:
            rows += two_rows(first[i], second[j], second, int(rng.integers(2)), rng)
    return rows


def two_rows(
    first: Function, second: Function, others: list[Function], view: int, rng: np.random.Generator
) -> list[Row]:
    """Return the positive row of two functions and its negative; no rows if two texts are equal.

    Parameters
    ----------
    others : list of Function
        All functions of the second's build.
    view : int
        Which of the functions' two texts to use.
    """
    sizes = np.log([function.size for function in others])
    nearest = np.argsort(abs(sizes - np.log(second.size)), kind="stable")[: NEAREST + 1]
    near = [others[i] for i in nearest if others[i] != second]
    if not near:
        return []
    other = near[rng.integers(len(near))]
    text, right, wrong = (function.texts[view] for function in (first, second, other))
    if text in (right, wrong):  # too easy, or impossible
        return []
    return [
        (LABELS[1], text, right, first.origin, second.origin),
        (LABELS[0], text, wrong, first.origin, other.origin),
    ]


def write_tables(to: str, tables: dict[str, list[Row]]) -> None:
    """Write the tables to the folder ``to``, all of them or none."""
    with utils.one_writer(to), utils.atomic_folder(to) as folder:
        for name, rows in tables.items():
            (folder / f"{name}.tsv").write_text(to_tsv(rows), encoding="utf-8", newline="\n")


def to_tsv(rows: list[Row]) -> str:
    """Return the rows as TSV: label and texts for a classifier, then where the functions are."""
    header = ("label", "text_a", "text_b", "origin_a", "origin_b")
    return "".join("\t".join(row) + "\n" for row in (header, *rows))


if __name__ == "__main__":
    command_line(main, twins=twins)
