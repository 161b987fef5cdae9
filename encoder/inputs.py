"""What the encoder reads of a function: its words, in order and as a bag, as rows of a table."""

import dataclasses

import numpy as np
import scipy.sparse

from features.tfidf import DIMENSIONS
from features.words import BAG, WORD_KINDS, Positions, ranges

BUCKETS = 4096  # rows of the table that all words outside the vocabulary share, by hash
GROUPS = list(BAG)
OFFSET = np.array([WORD_KINDS.index(kind) * DIMENSIONS for kind in BAG.values()])
# Groups of words that are names (the function's own, or of others), or come from its surroundings.
NAMES = np.array([BAG[group] == "name" for group in GROUPS])
AROUND = np.array([" " in group or group == "size" for group in GROUPS])
# Groups that go into the sketch. Mnemonics and operations do not: most functions share them.
SKETCHED = np.array([group not in ("token", "gram", "operation") for group in GROUPS])
SKETCH = 256  # width of a sketch
CONTEXT = 2  # positions before the instructions, with the words of callees and of callers
NEAR = [GROUPS.index("name near"), GROUPS.index("number near")]  # groups of the first position
UP = [GROUPS.index("name up"), GROUPS.index("number up")]  # groups of the second position


@dataclasses.dataclass
class Vocabulary:
    """The V words that have a row of their own.

    Attributes
    ----------
    words : int32 (V,)
        Sorted numbers of words; `features.positions` says how words are numbered.
    idf : float32 (V + 1,)
        Inverse document frequency of each word among the functions trained on; the last one is for
        all words outside the vocabulary.
    """

    words: np.ndarray
    idf: np.ndarray

    @property
    def rows(self) -> int:
        """Number of rows of the table."""
        return len(self.words) + BUCKETS

    def row(self, word: np.ndarray) -> np.ndarray:
        """Return the row of the table of each word, int (n,) -> int32 (n,)."""
        at = np.minimum(np.searchsorted(self.words, word), max(len(self.words) - 1, 0))
        known = self.words[at] == word if len(self.words) else np.zeros(len(word), bool)
        return np.where(known, at, len(self.words) + word % BUCKETS).astype(np.int32)


@dataclasses.dataclass
class Inputs:
    """F functions like `Positions`, but with weighted rows of the table (R rows) instead of words.

    Attributes
    ----------
    line, offsets
        As in `Positions`.
    of_line : csr float32 (L, R)
        The rows whose sum stands for an instruction.
    names : csr float32 (n, R)
        The rows whose sum stands for the names at a position.
    bags : csr float32 (F * len(GROUPS), R)
        TF-IDF weights of the words of each group of each function; rows of length 1.
    exact : csr float32 (F * len(GROUPS), len(GROUPS) * DIMENSIONS)
        The same weights by words instead of rows of the table, for `sketch`.
    """

    line: np.ndarray
    offsets: np.ndarray
    of_line: scipy.sparse.csr_matrix
    names: scipy.sparse.csr_matrix
    bags: scipy.sparse.csr_matrix
    exact: scipy.sparse.csr_matrix
    _sketches: dict[bytes, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)

    def sketches(self, read: np.ndarray) -> np.ndarray:
        """Return `sketch` of all functions in half precision, float16 (F, SKETCH).

        It is computed once for each choice of groups.
        """
        key = read.tobytes()
        if key not in self._sketches:
            self._sketches[key] = sketch(self, read).astype(np.float16)
        return self._sketches[key]

    def length(self, functions: np.ndarray) -> np.ndarray:
        """Return the number of instructions of each of these functions, int64 (n,)."""
        return self.offsets[functions + 1] - self.offsets[functions]

    def only(self, functions: np.ndarray) -> "Inputs":
        """Return the inputs of these functions, int64 (n,), in this order."""
        length = self.length(functions)
        at = ranges(self.offsets[functions], length)
        lines, line = np.unique(self.line[at], return_inverse=True)
        group = (functions[:, None] * len(GROUPS) + np.arange(len(GROUPS))).ravel()
        offsets = np.append(0, np.cumsum(length))
        return Inputs(
            *(line, offsets, self.of_line[lines], self.names[at]),
            *(self.bags[group], self.exact[group]),
        )


def look_up(positions: Positions, vocabulary: Vocabulary) -> Inputs:
    """Look words up in a vocabulary, and weigh them.

    The weight of a word in a bag is (1 + log count) times its IDF, scaled to rows of length 1.
    """
    rows = vocabulary.rows
    of_line, names, bags = positions.of_line, positions.names, positions.bags
    lines = scipy.sparse.csr_matrix(
        (np.ones(of_line.nnz, np.float32), vocabulary.row(of_line.indices), of_line.indptr),
        (of_line.shape[0], rows),
    )
    several = np.maximum(np.diff(names.indptr), 1)  # so that long texts do not count more
    data = np.repeat(several.astype(np.float32) ** -0.5, np.diff(names.indptr))
    named = scipy.sparse.csr_matrix(
        (data, vocabulary.row(names.indices), names.indptr), (names.shape[0], rows)
    )
    group, column = np.divmod(bags.indices, DIMENSIONS)
    row = vocabulary.row(OFFSET[group] + column)
    function = np.repeat(np.arange(bags.shape[0]), np.diff(bags.indptr))
    segment = function * len(GROUPS) + group
    known = np.minimum(row, len(vocabulary.words))  # the last IDF is for all other words
    weight = (1 + np.log(bags.data)) * vocabulary.idf[known]
    length = np.sqrt(np.bincount(segment, weight**2, bags.shape[0] * len(GROUPS)))
    weight /= np.maximum(length, 1e-9)[segment].astype(np.float32)
    offsets = np.searchsorted(segment, np.arange(bags.shape[0] * len(GROUPS) + 1))
    bag = scipy.sparse.csr_matrix(
        (weight.astype(np.float32), row, offsets), (len(offsets) - 1, rows)
    )
    exact = scipy.sparse.csr_matrix(
        (bag.data, bags.indices, offsets), (len(offsets) - 1, bags.shape[1])
    )
    return Inputs(positions.line, positions.offsets, lines, named, bag, exact)


def sketch(inputs: Inputs, read: np.ndarray) -> np.ndarray:
    """Return short vectors whose cosines approximate those of the functions' TF-IDF vectors.

    A function's vector is the weighted sum of its words' vectors, which are random signs made from
    a hash. So a word that occurs in no training program counts as much as any other.

    Parameters
    ----------
    inputs : Inputs
        F functions.
    read : bool (len(GROUPS),)
        The groups of words to use.

    Returns
    -------
    float32 (F, SKETCH)
        Vectors of length 1; zero if a function has none of these words.

    References
    ----------
    Achlioptas, "Database-friendly random projections", 2003, theorem 1.1.
    """
    functions = len(inputs.offsets) - 1
    found = np.zeros((functions, SKETCH), np.float32)
    kept = np.flatnonzero((read & SKETCHED)[inputs.exact.indices // DIMENSIONS])
    word, weight = inputs.exact.indices[kept], inputs.exact.data[kept]
    offsets = np.searchsorted(kept, inputs.exact.indptr[:: len(GROUPS)])
    for start in range(0, functions, 1024):  # limits the memory for signs
        end = min(start + 1024, functions)
        some = slice(offsets[start], offsets[end])
        words, column = np.unique(word[some], return_inverse=True)
        rows = scipy.sparse.csr_matrix(
            (weight[some], column, offsets[start : end + 1] - offsets[start]),
            (end - start, len(words)),
        )
        found[start:end] = rows @ signs(words)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


def signs(words: np.ndarray) -> np.ndarray:
    """Return SKETCH random signs for each word: numbers (n,) -> float32 (n, SKETCH), +1 or -1.

    They are the bits of a hash of the word's number, splitmix64 (Steele et al., "Fast Splittable
    Pseudorandom Number Generators", 2014), so they are the same on each machine.
    """
    parts = np.arange(SKETCH // 64, dtype=np.uint64)
    x: np.ndarray = words.astype(np.uint64)[:, None] * np.uint64(len(parts)) + parts
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    x ^= x >> np.uint64(31)
    bits = np.unpackbits(x.astype("<u8").view(np.uint8), axis=1)
    return bits.astype(np.float32) * 2 - 1


def choose_words(packages: list[list[Positions]], size: int) -> Vocabulary:
    """Choose the words that occur in most packages, at least in two, and compute their IDFs.

    Parameters
    ----------
    packages : list of list of Positions
        The builds of each package.
    size : int
        Maximum number of words.
    """
    total = len(WORD_KINDS) * DIMENSIONS
    in_packages, in_functions = np.zeros(total, np.int32), np.zeros(total, np.int64)
    n = 0
    own = ~np.array([" " in group for group in GROUPS])
    for builds in packages:
        met = np.zeros(total, bool)
        for positions in builds:
            n += positions.bags.shape[0]
            group, column = np.divmod(positions.bags.indices, DIMENSIONS)
            columns = (OFFSET[group] + column)[own[group]]
            met[columns] = True
            in_functions += np.bincount(columns, minlength=total)
        in_packages += met
    often = np.lexsort((-in_functions, -in_packages))[:size]
    words = np.sort(often[in_packages[often] >= min(2, len(packages))]).astype(np.int32)
    count = np.append(in_functions[words], 0)
    return Vocabulary(words, (np.log((1 + n) / (1 + count)) + 1).astype(np.float32))
