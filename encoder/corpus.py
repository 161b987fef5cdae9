"""What the encoder learns from: the functions of many builds, which are the same, and walks.

`python dataprocess.py functions` writes all of it to one file, from the pairs of gendata.py and the
analysed binaries; training reads this file alone. Functions of two builds of a program are the same
if their symbols have the same name or, without symbols, if they are twins (pairs/twins.py).
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import scipy.sparse

import utils
from encoder.file import MOST
from encoder.inputs import GROUPS, NAMES, Vocabulary, choose_words
from features.tfidf import DIMENSIONS
from features.words import BAG, LONGEST, WORD_KINDS, Positions, ranges
from files.arrays import LARGEST, Numbers, Schema, Texts, read_arrays, write_arrays
from pairs.twins import find_twins

COLUMNS = {"of_line": len(WORD_KINDS), "names": len(WORD_KINDS), "bags": len(BAG)}
FUNCTIONS: dict[str, Numbers | Texts] = {
    "line": Numbers("i4", "n", below="L"),
    "offsets": Numbers("i8", "F + 1", rises_to="n"),
    "blocks": Numbers("i8", "F", above=-1),
    "name": Texts("F"),
    "begin": Numbers("i4", "B", above=-1),
    "size": Numbers("i4", "B", above=-1),
}
for _name, _rows in zip(COLUMNS, ("L", "n", "F"), strict=True):
    FUNCTIONS[f"{_name} offsets"] = Numbers("i4", f"{_rows} + 1", rises_to=f"{_name} words")
    FUNCTIONS[f"{_name} word"] = Numbers("i4", f"{_name} words", below=COLUMNS[_name] * DIMENSIONS)
    FUNCTIONS[f"{_name} count"] = Numbers("f4", f"{_name} words", above=0)
ABOUT = ("package", "program", "build", "processor", "sha256", "split")
SCHEMA: Schema = FUNCTIONS | {
    **{name: Texts("builds") for name in ABOUT},
    "functions": Numbers("i8", "builds + 1", rises_to="F"),
    "all blocks": Numbers("i8", "builds + 1", rises_to="B"),
    "walk": Numbers("i4", "v", below="B"),
    "walks": Numbers("i8", "W + 1", rises_to="v"),
    "words": Numbers("i4", "V", below=len(WORD_KINDS) * DIMENSIONS),
    "idf": Numbers("f4", "V + 1", above=0, most=MOST),
    "analysis": Texts(1),
}


@dataclasses.dataclass(frozen=True)
class Build:
    """One binary of the corpus.

    Attributes
    ----------
    package, program, build : str
        The package, and the name and folder of the file: <build>/<program>.
    processor : str
        As in `binary.analysis.Analysis`.
    sha256 : str
        Hash of the file.
    split : str
        "train" or "validation".
    first, last : int
        Its functions are number ``first`` to ``last - 1`` of the corpus.
    first_block, last_block : int
        The same for its basic blocks, as walks number them; imports count.
    """

    package: str
    program: str
    build: str
    processor: str
    sha256: str
    split: str
    first: int
    last: int
    first_block: int
    last_block: int


@dataclasses.dataclass
class Walks:
    """W paths over merged control-flow graphs (pairs/walks.py) that cross between two builds.

    Attributes
    ----------
    block : int32 (v,), offsets : int64 (W + 1,)
        Path w visits the blocks ``block[offsets[w]:offsets[w + 1]]``.
    begin, size : int32 (B,)
        Each block's positions: the first one, and how many. A block without any is an import, or
        beyond the `LONGEST` instructions of its function.
    """

    block: np.ndarray
    offsets: np.ndarray
    begin: np.ndarray
    size: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def positions(self, walk: int, first_block: np.ndarray, which: int, most: int) -> np.ndarray:
        """Return at most ``most`` positions of a path around a crossing, int64.

        ``first_block`` are the first blocks of the builds; ``which`` is the number of the crossing,
        modulo how many the path has.
        """
        block = self.block[self.offsets[walk] : self.offsets[walk + 1]]
        at = ranges(self.begin[block].astype(np.int64), self.size[block])
        build = np.repeat(np.searchsorted(first_block, block, side="right"), self.size[block])
        crossings = np.flatnonzero(np.diff(build)) + 1
        middle = crossings[which % len(crossings)] if len(crossings) else 0
        start = max(0, min(middle - most // 2, len(at) - most))
        return at[start : start + most]


@dataclasses.dataclass
class Corpus:
    """The F functions of all builds, one build after the other.

    Attributes
    ----------
    builds : list of Build
    positions : Positions
        The words of all functions; ``block`` is empty.
    name : list of str
        Each function's name in the source; "" if no symbol tells it for certain.
    blocks : int64 (F,)
        Number of basic blocks.
    walks : Walks
    first_block : int64 (len(builds),)
        The first basic block of each build, as walks number them.
    """

    builds: list[Build]
    positions: Positions
    name: list[str]
    blocks: np.ndarray
    walks: Walks

    def __post_init__(self) -> None:
        self.first_block = np.array([build.first_block for build in self.builds], np.int64)
        self._unique_names: dict[int, dict[int, int]] = {}

    @functools.cached_property
    def label(self) -> np.ndarray:
        """A number for each different name, int64 (F,); -1 for functions without a name."""
        number = {"": -1}
        for name in self.name:
            number.setdefault(name, len(number) - 1)
        return np.array([number[name] for name in self.name], np.int64)

    @functools.cached_property
    def content(self) -> np.ndarray:
        """Hash of the words of each function's own instructions, int64 (F,)."""
        return _digests(self.positions)

    def only(self, chosen: Iterable[Build]) -> "Corpus":
        """Return the part of these builds, in the order here, and walks that visit no other."""
        builds, kept = [], np.zeros(len(self.name), bool)
        is_ours = np.zeros(len(self.walks.begin), bool)
        first = 0
        for build in chosen:
            kept[build.first : build.last] = True
            is_ours[build.first_block : build.last_block] = True
            last = first + build.last - build.first
            builds.append(dataclasses.replace(build, first=first, last=last))
            first = last
        functions = np.flatnonzero(kept)
        positions, length = self.positions, np.diff(self.positions.offsets)
        at = np.repeat(kept, length)
        number = np.cumsum(at) - at  # of each position that is kept
        begin = np.append(number, at.sum())[self.walks.begin].astype(np.int32)
        visited = np.diff(self.walks.offsets)
        walk = np.repeat(np.arange(len(visited)), visited)
        inside = np.bincount(walk[is_ours[self.walks.block]], minlength=len(visited)) == visited
        return Corpus(
            builds,
            dataclasses.replace(
                positions,
                line=positions.line[at],
                offsets=np.append(0, np.cumsum(length[functions])),
                names=positions.names[np.flatnonzero(at)],
                bags=positions.bags[functions],
            ),
            [self.name[f] for f in functions.tolist()],
            self.blocks[functions],
            Walks(
                self.walks.block[inside[walk]],
                np.append(0, np.cumsum(visited[inside])),
                begin,
                np.where(is_ours, self.walks.size, 0).astype(np.int32),
            ),
        )

    def same(self, a: Build, b: Build) -> np.ndarray:
        """Return the pairs of functions that have the same name, int64 (k, 2)."""
        sides = []
        for build in (a, b):
            label = self.label[build.first : build.last]
            inside = np.flatnonzero(label >= 0)
            sides.append((label[inside], inside + build.first))
        _, i, j = np.intersect1d(sides[0][0], sides[1][0], return_indices=True)
        return np.stack([sides[0][1][i], sides[1][1][j]], 1)

    def twins(self, a: Build, b: Build) -> np.ndarray:
        """Return the pairs of functions that are twins, int64 (k, 2); symbols are not used."""
        found = find_twins(self._unique(a), self._unique(b))
        return np.array(found, np.int64).reshape(-1, 2)

    def _unique(self, build: Build) -> dict[int, int]:
        """Return word -> function for imports and words of strings that only one function uses."""
        if build.first not in self._unique_names:
            own = self.positions.bags[build.first : build.last].tocoo()
            is_name = own.col // DIMENSIONS == GROUPS.index("name")
            word, row = own.col[is_name], own.row[is_name]
            found, first, times = np.unique(word, return_index=True, return_counts=True)
            only = times == 1
            functions = (row[first[only]] + build.first).tolist()
            self._unique_names[build.first] = dict(
                zip(found[only].tolist(), functions, strict=True)
            )
        return self._unique_names[build.first]


@dataclasses.dataclass
class Functions:
    """The content of the file that `python dataprocess.py functions` writes.

    ``analysis`` says how the binaries were analysed.
    """

    corpus: Corpus
    vocabulary: Vocabulary
    analysis: str

    def split(self, name: str) -> Corpus:
        """Return the builds of one split, "train" or "validation"."""
        return self.corpus.only(build for build in self.corpus.builds if build.split == name)


def write_functions(file: str | Path, functions: Functions) -> None:
    """Write the file that training reads.

    Raises
    ------
    utils.UserError
        It would be too large to be read.
    """
    corpus, vocabulary = functions.corpus, functions.vocabulary
    positions, walks, builds = corpus.positions, corpus.walks, corpus.builds
    values = {
        **arrays_of(positions),
        "blocks": corpus.blocks,
        "name": corpus.name,
        "begin": walks.begin,
        "size": walks.size,
        "walk": walks.block,
        "walks": walks.offsets,
        "functions": np.array([0, *(build.last for build in builds)], np.int64),
        "all blocks": np.array([0, *(build.last_block for build in builds)], np.int64),
        "words": vocabulary.words,
        "idf": vocabulary.idf,
        "analysis": [functions.analysis],
        **{name: [getattr(build, name) for build in builds] for name in ABOUT},
    }
    size = sum(value.nbytes for value in values.values() if isinstance(value, np.ndarray))
    if size > LARGEST:
        raise utils.UserError(
            f"{file} would hold {size / 2**30:.1f} GiB, and {LARGEST / 2**30:.0f} GiB can be read; "
            "give fewer builds, or train on --part 1/2"
        )
    with utils.atomic_file(file, "wb") as out:
        write_arrays(out, values, SCHEMA)


def read_functions(file: str | Path) -> Functions:
    """Read the file that training reads.

    Raises
    ------
    utils.UserError
        It is missing or damaged.
    """
    make = "make it with `python dataprocess.py functions`"
    if not Path(file).exists():
        raise utils.UserError(f"{file} does not exist; {make}")
    arrays = read_arrays(file, SCHEMA, "file of functions", make)
    ends = [itertools.pairwise(arrays[name].tolist()) for name in ("functions", "all blocks")]
    builds = [
        Build(*about, *functions, *blocks)
        for *about, functions, blocks in zip(*(arrays[n] for n in ABOUT), *ends, strict=True)
    ]
    fault = _fault(arrays)
    if fault:
        raise utils.UserError(f"the file of functions {file} is damaged ({fault}); {make}")
    walks = Walks(arrays["walk"], arrays["walks"], arrays["begin"], arrays["size"])
    corpus = Corpus(builds, positions_of(arrays), arrays["name"], arrays["blocks"], walks)
    return Functions(corpus, Vocabulary(arrays["words"], arrays["idf"]), arrays["analysis"][0])


def _fault(arrays: dict) -> str | None:
    """Say what is wrong with arrays whose shapes and bounds are as in SCHEMA; None: nothing."""
    ends = arrays["begin"].astype(np.int64) + arrays["size"]
    if ends.max(initial=0) > len(arrays["line"]):
        return "a block ends after the last instruction"
    if np.diff(arrays["offsets"]).max(initial=0) > LONGEST:
        return f"a function has more than {LONGEST} instructions"
    if (np.diff(arrays["words"]) <= 0).any():
        return "'words' is not sorted"
    word, offsets = arrays["bags word"], arrays["bags offsets"]
    falls = np.flatnonzero(np.diff(word) <= 0) + 1  # `look_up` needs each bag's words in order
    if not np.isin(falls, offsets).all():
        return "'bags word' is not sorted"
    if {*arrays["split"]} - {"train", "validation"}:
        return "a build is neither for training nor for validation"
    return None


def arrays_of(positions: Positions) -> dict[str, np.ndarray]:
    """Return the arrays that stand for positions in a file."""
    arrays = {"line": positions.line, "offsets": positions.offsets.astype(np.int64)}
    for name in COLUMNS:
        matrix = getattr(positions, name)
        arrays[f"{name} offsets"] = matrix.indptr.astype(np.int32)
        arrays[f"{name} word"] = matrix.indices.astype(np.int32)
        arrays[f"{name} count"] = matrix.data
    return arrays


def positions_of(arrays: dict) -> Positions:
    """Return the positions that arrays of a file stand for."""
    matrices = {
        name: scipy.sparse.csr_matrix(
            (arrays[f"{name} count"], arrays[f"{name} word"], arrays[f"{name} offsets"]),
            (len(arrays[f"{name} offsets"]) - 1, columns * DIMENSIONS),
        )
        for name, columns in COLUMNS.items()
    }
    no_blocks = np.zeros(0, np.int32)
    return Positions(arrays["line"], no_blocks, arrays["offsets"], **matrices)


def part_of(packages: Iterable[str], k: int, n: int) -> set[str]:
    """Return the k-th of n parts of packages: in the order of names, the k-th and every n-th after.

    Packages may occur several times.
    """
    return set(sorted(set(packages))[k - 1 :: n])


def with_vocabulary(corpus: Corpus, size: int, analysis: str) -> Functions:
    """Choose the words that occur in most packages for training; at most ``size``."""
    packages: dict[str, list[Positions]] = {}
    for build in corpus.builds:
        if build.split == "train":
            part = dataclasses.replace(
                corpus.positions, bags=corpus.positions.bags[build.first : build.last]
            )
            packages.setdefault(build.package, []).append(part)
    return Functions(corpus, choose_words(list(packages.values()), size), analysis)


def _digests(positions: Positions) -> np.ndarray:
    """Return a hash of the words of each function's own instructions, int64 (F,).

    Neither names nor what lies around a function count.
    """
    own = np.array([" " not in group and group != "size" for group in GROUPS]) & ~NAMES
    bags, found = positions.bags, []
    for start, end in itertools.pairwise(bags.indptr.tolist()):
        word, count = bags.indices[start:end], bags.data[start:end]
        inside = own[word // DIMENSIONS]
        text = word[inside].tobytes() + count[inside].tobytes()
        found.append(
            int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
        )
    return np.array(found, np.int64)
