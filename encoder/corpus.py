"""What the encoder learns from: the functions of many builds, and which of them are the same.

Functions of two builds of a program are the same if their symbols have the same name or, without
symbols, if they are twins (pairs/twins.py).
"""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import scipy.sparse

import utils
from binary.analysis import cache_file, load_analysis
from binary.symbols import source_names
from encoder.inputs import GROUPS, NAMES
from experiment_data.recipes import TEST, package_of
from features.extract import extract_features
from features.positions import BAG, WORD_KINDS, Positions, read_positions
from features.tfidf import DIMENSIONS
from files.arrays import Numbers, Texts, read_arrays, write_arrays
from pairs.twins import find_twins
from terminal import progress

VERSION = 1  # of the cached files: raise it if their content changes, so that they are made again
SPARSE = ("of_line", "names", "bags")
SCHEMA: dict[str, Numbers | Texts] = {
    "line": Numbers("i4", "n", below="L"),
    "offsets": Numbers("i8", "F + 1", rises_to="n"),
    "blocks": Numbers("i8", "F"),
    "name": Texts("F"),
    "processor": Texts("one"),
}
for _name, _rows in zip(SPARSE, ("L", "n", "F"), strict=True):
    SCHEMA[f"{_name} offsets"] = Numbers("i4", f"{_rows} + 1", rises_to=f"{_name} words")
    SCHEMA[f"{_name} word"] = Numbers("i4", f"{_name} words")
    SCHEMA[f"{_name} count"] = Numbers("f4", f"{_name} words")


@dataclasses.dataclass
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
    first, last : int
        Its functions are number ``first`` to ``last - 1`` of the corpus.
    """

    package: str
    program: str
    build: str
    processor: str
    sha256: str
    first: int
    last: int


@dataclasses.dataclass
class Corpus:
    """The F functions of all builds, one build after the other.

    Attributes
    ----------
    builds : list of Build
    positions : Positions
        The words of all functions.
    name : list of str
        Each function's name in the source; "" if no symbol tells it for certain.
    blocks : int64 (F,)
        Number of basic blocks.
    label : int64 (F,)
        A number for each different name; -1 for functions without a name.
    content : int64 (F,)
        Hash of the words of each function's own instructions.
    """

    builds: list[Build]
    positions: Positions
    name: list[str]
    blocks: np.ndarray

    def __post_init__(self) -> None:
        number = {"": -1}
        for name in self.name:
            number.setdefault(name, len(number) - 1)
        self.label = np.array([number[name] for name in self.name], np.int64)
        self.content = _digests(self.positions)
        self._unique_names: dict[int, dict[int, int]] = {}

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


def find_files(paths: list[str]) -> list[tuple[str, str]]:
    """Return package and file of all builds for training and validation; equal files count once."""
    files, met = [], set()
    for place in paths:
        utils.check_folder(place, "path", "`python experiment_data/build_packages.py` makes builds")
        for file in sorted(Path(place).glob("*/*")):
            package = package_of(file.parent.name)
            if package in TEST or not file.is_file():
                continue
            key = package, file.name, utils.sha256_of(file)
            if key not in met:
                met.add(key)
                files.append((package, str(file)))
    if not files:
        raise utils.UserError(
            f"no builds under {', '.join(paths)}; `python experiment_data/build_packages.py` makes "
            "some"
        )
    return files


def read_corpus(files: Iterable[tuple[str, str]], output_dir: str | os.PathLike[str]) -> Corpus:
    """Read the functions of analysed binaries.

    Parameters
    ----------
    files : iterable of (str, str)
        Package, and path of a binary, which ends in <build>/<program>.
    output_dir : path-like
        Where their analyses are, and where what is read from them is cached.

    Raises
    ------
    utils.UserError
        A binary, its analysis or a cached file cannot be read.
    """
    found = []
    for package, path in progress.bar(list(files), desc="functions"):
        sha256, place = utils.sha256_of(path), Path(path)
        origin = package, place.name, place.parent.name, sha256
        found.append((origin, read_part(cache_file(output_dir, sha256))))
    return join_parts(found)


def join_parts(found: Iterable[tuple[tuple[str, str, str, str], dict]]) -> Corpus:
    """Join parts of binaries to a corpus.

    Parameters
    ----------
    found : iterable of ((str, str, str, str), dict)
        Package, program, build and SHA-256 of a binary, and its arrays as `read_part` returns them.
    """
    builds, parts = [], []
    first = 0
    for (package, program, build, sha256), part in found:
        last = first + len(part["name"])
        builds.append(Build(package, program, build, part["processor"][0], sha256, first, last))
        parts.append(part)
        first = last
    line, offsets, lines, positions = [], [np.zeros(1, np.int64)], 0, 0
    for part in parts:
        line.append(part["line"] + lines)
        offsets.append(part["offsets"][1:] + positions)
        lines += len(part["of_line offsets"]) - 1
        positions += len(part["line"])
    columns = {"of_line": len(WORD_KINDS), "names": len(WORD_KINDS), "bags": len(BAG)}
    joined = {
        name: scipy.sparse.csr_matrix(
            (
                np.concatenate([part[f"{name} count"] for part in parts]),
                np.concatenate([part[f"{name} word"] for part in parts]),
                _joined([part[f"{name} offsets"] for part in parts]),
            ),
            (sum(len(part[f"{name} offsets"]) - 1 for part in parts), columns[name] * DIMENSIONS),
        )
        for name in SPARSE
    }
    return Corpus(
        builds,
        Positions(np.concatenate(line), np.concatenate(offsets), **joined),
        [name for part in parts for name in part["name"]],
        np.concatenate([part["blocks"] for part in parts]),
    )


def _joined(offsets: list[np.ndarray]) -> np.ndarray:
    sizes = [np.diff(some) for some in offsets]
    return np.cumsum(np.concatenate([np.zeros(1, np.int64), *sizes]))


def read_part(analysis_file: Path) -> dict:
    """Return one binary's part of the corpus, from the cache if it is there.

    Returns
    -------
    dict
        Arrays and lists of strings, as SCHEMA describes them.
    """
    kept = part_file(analysis_file)
    if not kept.exists():
        analysis = load_analysis(analysis_file)
        code = extract_features(analysis)
        positions = read_positions(code)
        part = {
            "line": positions.line,
            "offsets": positions.offsets.astype(np.int64),
            "blocks": code.sizes,
            "name": source_names(analysis),
            "processor": [analysis.processor],
        }
        for name in SPARSE:
            matrix = getattr(positions, name)
            part[f"{name} offsets"] = matrix.indptr.astype(np.int32)
            part[f"{name} word"] = matrix.indices.astype(np.int32)
            part[f"{name} count"] = matrix.data
        with utils.atomic_file(kept, "wb") as file:
            write_arrays(file, part, SCHEMA)
    return load_part(kept)


def part_file(analysis_file: Path) -> Path:
    """Return the cache file for an analysed binary's part."""
    return analysis_file.parent / "positions" / f"{analysis_file.stem}-{VERSION}.npz"


def load_part(file: Path) -> dict:
    """Read a cache file of `read_part`.

    Raises
    ------
    utils.UserError
        The file is missing or damaged.
    """
    return read_arrays(file, SCHEMA, "cache of words", "delete the file and run again")


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
