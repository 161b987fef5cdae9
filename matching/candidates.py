"""Find the pairs of functions of two binaries that may match, and measure how alike they are.

The measures are cosines of TF-IDF weighted words, one for each group of words; sizes; and cosines
of the encoder's vectors. A small network, which never sees a word, makes one score of them. It was
trained on programs that were new to the encoder, so it knows how far to trust it on new programs.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse

from encoder.inputs import SKETCH
from features.extract import Features
from features.tfidf import weigh
from features.words import GROUPS, KINDS

CANDIDATES = 80  # per function, by words; all other pairs are ignored
ENCODED = 20  # more candidates, the nearest by the encoder
PLAUSIBLE = 1e-4  # candidates below this probability are dropped before the neighbour rounds
PAIRS = 1 << 17  # pairs whose products are computed at a time
PAIR_COST = 4  # cost of a word of a pair, compared to a step in a product of sparse matrices
COMMON = 0.25  # words in a larger share of functions are not used to find candidates
SAME = [(group, group) for group in GROUPS]
# One compiler inlined what the other calls.
INLINED = [("name near", "name"), ("name", "name near"), ("number near", "number")]
INLINED += [("number", "number near"), ("name far", "name near"), ("name near", "name far")]
OWN = [f"cosine of {kind}" for kind in KINDS]  # of the functions' own words
SIZES = ("blocks", "tokens", "names", "callers")
OF_ENCODER = [
    f"{part}{what}"
    for part in ("encoder", "learned part")
    for what in ("'s cosine", ", below the first's best", ", below the second's best")
]
# The columns of a candidate's measures.
MEASURES = [f"cosine of {group}" for group, _ in SAME]
MEASURES += [f"cosine of {first} and {second}" for first, second in INLINED]
MEASURES += [f"{what} {size}" for size in SIZES for what in ("difference of", "smaller number of")]
MEASURES += ["equal tokens", "equal names", *OF_ENCODER]


@dataclasses.dataclass
class Candidates:
    """Pairs of functions that may match, n of them, sorted by (a, b).

    Attributes
    ----------
    a, b : int64 (n,)
        Functions of the first and of the second binary.
    shape : (int, int)
        Number of functions of each binary.
    measures : float32 (n, len(MEASURES))
    """

    a: np.ndarray
    b: np.ndarray
    shape: tuple[int, int]
    measures: np.ndarray

    def only(self, kept: np.ndarray) -> "Candidates":
        """Return the candidates selected by a bool array (n,)."""
        return Candidates(self.a[kept], self.b[kept], self.shape, self.measures[kept])


def find_candidates(
    first: Features,
    second: Features,
    encode: Callable[..., np.ndarray],
    known: np.ndarray | None = None,
    different: np.ndarray | None = None,
) -> Candidates:
    """Find the pairs of functions that are worth a closer look, and measure them.

    Parameters
    ----------
    encode : callable
        An `encoder.encoder.Encoder`, or what returns its vectors.
    known : int (k, 2), optional
        Pairs of functions that are always candidates. They are not encoded.
    different : int (m, 2), optional
        Those of the known pairs whose code differs. They are encoded nevertheless: without their
        vectors, a function that resembles one of them would have another one as its best.
    """
    weighed = {pair: weigh(first.words[pair[0]], second.words[pair[1]]) for pair in SAME + INLINED}
    groups = [weighed[pair] for pair in SAME]
    a, b = (scipy.sparse.hstack([pair[side] for pair in groups], "csr") for side in (0, 1))
    none = np.zeros((0, 2), np.int64)
    known, different = (none if x is None else x for x in (known, different))
    shape = first.functions, second.functions
    same = [np.setdiff1d(*sides) for sides in zip(known.T, different.T, strict=True)]
    left = [np.setdiff1d(np.arange(n), side) for n, side in zip(shape, same, strict=True)]
    encoded = [encode(first, functions=left[0]), encode(second, functions=left[1])]
    near = _nearest(encoded[0], encoded[1], ENCODED)
    rare = _rare(a, b)
    found = [_nearest(rare[0], rare[1], CANDIDATES), (left[0][near[0]], left[1][near[1]])]
    found.append((known[:, 0], known[:, 1]))
    keys = np.unique(np.concatenate([x.astype(np.int64) * shape[1] + y for x, y in found]))
    rows, columns = np.divmod(keys, shape[1])

    def columns_of_measures() -> Iterator[np.ndarray]:
        for x, y in weighed.values():
            yield _products(x, y, rows, columns)
        for x, y in zip(_sizes(first).T, _sizes(second).T, strict=True):
            yield np.abs(x[rows] - y[columns])
            yield np.minimum(x[rows], y[columns])
        for group in ("token", "name"):
            x, y = _unique_rows(first.words[group], second.words[group])
            yield (x[rows] == y[columns]) & (x[rows] >= 0)
        yield from _of_encoder(encoded, left, rows, columns, shape)

    measures = np.empty((len(rows), len(MEASURES)), np.float32)
    for i, column in enumerate(columns_of_measures()):  # one by one, to save memory
        measures[:, i] = column
    return Candidates(rows, columns, shape, measures)


def _of_encoder(
    encoded: list[np.ndarray],
    functions: list[np.ndarray],
    rows: np.ndarray,
    columns: np.ndarray,
    shape: tuple[int, int],
) -> Iterator[np.ndarray]:
    """Cosines, and how far each is below the best of each function; 0 for those not encoded.

    First those of whole vectors, then those without the sketch: what the encoder has learned.
    """
    for part in (slice(None), slice(-SKETCH)):
        x, y = (
            np.zeros((n, v[:, part].shape[1]), np.float32)
            for n, v in zip(shape, encoded, strict=True)
        )
        for side, chosen, vectors in zip((x, y), functions, encoded, strict=True):
            length = np.linalg.norm(vectors[:, part], axis=1, keepdims=True)
            side[chosen] = vectors[:, part] / np.maximum(length, 1e-9)
        cosine = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), PAIRS):
            some = slice(start, start + PAIRS)
            cosine[some] = np.einsum("nd,nd->n", x[rows[some]], y[columns[some]])
        yield cosine
        for index, n in zip((rows, columns), shape, strict=True):
            best = np.full(n, -1, np.float32)
            np.maximum.at(best, index, cosine)
            yield best[index] - cosine


def _unique_rows(
    first: scipy.sparse.csr_matrix, second: scipy.sparse.csr_matrix
) -> tuple[np.ndarray, np.ndarray]:
    """Number each row's content; -1 if it is empty or not unique in its binary."""
    numbers: dict[tuple, int] = {}
    found = []
    for m in (first, second):
        rows = [
            (m.indices[s:e].tobytes(), m.data[s:e].tobytes())
            for s, e in zip(m.indptr[:-1], m.indptr[1:], strict=True)
        ]
        times = Counter(rows)
        found.append(
            np.array(
                [
                    numbers.setdefault(r, len(numbers)) if r[0] and times[r] == 1 else -1
                    for r in rows
                ],
                np.int64,
            )
        )
    return found[0], found[1]


def _products(
    a: scipy.sparse.csr_matrix, b: scipy.sparse.csr_matrix, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Return products of pairs of rows of ``a`` and ``b``; ``rows`` is sorted.

    For small binaries it is faster to compute all products of a few rows than only the required
    ones; for large ones it is not, because the number of all products is quadratic.
    """
    words = [np.bincount(m.indices, minlength=m.shape[1]).astype(float) for m in (a, b)]
    length = [np.diff(m.indptr) for m in (a, b)]
    alone = PAIR_COST * float(length[0][rows].sum() + length[1][columns].sum())
    found = np.empty(len(rows), np.float32)
    if words[0] @ words[1] <= alone:
        b = b.T.tocsr()
        for start in range(0, a.shape[0], 512):
            part = slice(*np.searchsorted(rows, [start, start + 512]))
            products = (a[start : start + 512] @ b).toarray()
            found[part] = products[rows[part] - start, columns[part]]
    else:
        for start in range(0, len(rows), PAIRS):
            part = slice(start, start + PAIRS)
            found[part] = a[rows[part]].multiply(b[columns[part]]).sum(1).ravel()
    return found


def _sizes(code: Features) -> np.ndarray:
    """Logarithms of the numbers of SIZES: float64 (F, 4)."""
    words = [np.asarray(code.words[group].sum(1)).ravel() for group in ("token", "name")]
    callers = np.diff(code.calls.T.tocsr().indptr)
    return np.log1p(np.stack([code.sizes, *words, callers], 1))


def _rare(a: scipy.sparse.csr_matrix, b: scipy.sparse.csr_matrix) -> list[scipy.sparse.csr_matrix]:
    """Leave out words that occur in many rows, so that products take nearly linear time."""
    used, column = np.unique(np.concatenate([a.indices, b.indices]), return_inverse=True)
    rare = np.bincount(column) <= max(8, COMMON * min(a.shape[0] + b.shape[0], 2000))
    shortened = []
    for m, columns in ((a, column[: a.nnz]), (b, column[a.nnz :])):
        data = m.data * rare[columns]
        m = scipy.sparse.csr_matrix((data, columns, m.indptr.copy()), (m.shape[0], len(used)))
        m.eliminate_zeros()
        shortened.append(m)
    return shortened


def _nearest(a: Any, b: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows, columns) of the k best products of each row of a and of each row of b.

    The rows are those of arrays, or of sparse matrices: then only products above 0 count, and of
    equal products the first columns. Only the products of some rows are in memory at a time.
    """
    rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    if not a.shape[0] or not b.shape[0]:
        return rows[0], columns[0]
    for x, y, out in ((a, b, (rows, columns)), (b, a, (columns, rows))):
        sparse = scipy.sparse.issparse(y)
        y = y.T.tocsr() if sparse else y.T
        count = min(k, y.shape[1])
        for start in range(0, x.shape[0], 256):
            block = x[start : start + 256] @ y
            if sparse:
                i, j = _best(block, count)
            else:
                best = np.argpartition(-block, count - 1, axis=1)[:, :count]
                i, j = np.repeat(np.arange(len(block)), count), best.ravel()
            out[0].append(start + i)
            out[1].append(j)
    return np.concatenate(rows), np.concatenate(columns)


def _best(products: scipy.sparse.csr_matrix, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows, columns) of the k largest values of each row."""
    ends = products.indptr.tolist()
    kept = []
    for start, end in itertools.pairwise(ends):
        if end - start <= k:
            kept.append(np.arange(start, end))
        else:
            values = products.data[start:end]
            least = np.partition(values, -k)[-k]
            above, equal = np.flatnonzero(values > least), np.flatnonzero(values == least)
            first = np.argsort(products.indices[start + equal])[: k - len(above)]
            kept.append(start + np.concatenate([above, equal[first]]))
    counts = [len(places) for places in kept]
    places = np.concatenate(kept) if kept else np.zeros(0, np.int64)
    return np.repeat(np.arange(len(kept)), counts), products.indices[places]


def softmax_both_ways(candidates: Candidates, logit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each pair's probability among the candidates of its first and of its second function.

    "No match" is also a candidate, with logit 0.
    """
    shares = []
    for index, n in zip((candidates.a, candidates.b), candidates.shape, strict=True):
        highest = np.zeros(n, np.float32)
        np.maximum.at(highest, index, logit)
        e = np.exp(logit - highest[index])
        total = np.bincount(index, e, n) + np.exp(-highest)
        shares.append((e / total[index]).astype(np.float32))
    return shares[0], shares[1]


def plausible(candidates: Candidates, similarity: np.ndarray) -> np.ndarray:
    """Return which candidates are plausible by themselves, bool (n,)."""
    return np.maximum(*softmax_both_ways(candidates, similarity)) > PLAUSIBLE
