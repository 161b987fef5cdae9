"""What the matches found so far say about each candidate pair: calls, shared data, order."""

from collections.abc import Callable

import numpy as np
import scipy.sparse

from binary.shared_data import MANY, Tables
from features.extract import Features
from features.normalised import IDENTICAL_SIZE, numbered
from features.tfidf import normalise
from matching.candidates import MEASURES, OWN, Candidates, softmax_both_ways

FAINT = 1e-3  # matches with a lower probability are no evidence for the position of a table


def agreement(
    tables: tuple[Tables, Tables], pairs: tuple[np.ndarray, np.ndarray, tuple], share: np.ndarray
) -> list[np.ndarray]:
    """Return the evidence of tables of pointers for pairs of functions, given uncertain matches.

    A pair whose functions are in two tables aligns the tables; all pairs that are then at the same
    positions support it. Their support is the sum of the logarithms of their probabilities: an
    alignment that is half right, however certain, gets less than one that is likely throughout.

    Parameters
    ----------
    tables : (Tables, Tables)
    pairs : int64 (n,), int64 (n,), (F, G)
        As `matching.candidates.Candidates` has them.
    share : float32 (n,)
        Probability of each pair.

    Returns
    -------
    list of float (n,)
        The share of the tables that agrees; the number s of pairs that agree, as s / (1 + s); the
        same compared to the best for each function of the first, and of the second; whether both
        functions are in tables, or only one of them.
    """
    a, b, shape = pairs
    held = [np.bincount(t.function, minlength=n) for t, n in zip(tables, shape, strict=True)]
    held = [np.where(count > MANY, 0, count) for count in held]
    in_a, in_b = held[0][a] > 0, held[1][b] > 0
    of, s, t = _pointer_pairs(tables, a, b, held)
    part, total = np.zeros(len(a)), np.zeros(len(a))
    if len(of):
        speaks = (np.log1p(share / FAINT) / np.log1p(1 / FAINT))[of]
        first, second = tables
        reach = 1 + max(int(x.place.max()) for x in tables)
        upon = first.table[s] * (1 + second.table.max()) + second.table[t]
        upon = upon * 2 * reach + first.place[s] - second.place[t] + reach
        _, where = np.unique(upon, return_inverse=True)
        support = np.bincount(where, speaks)[where] - speaks
        length = [np.bincount(x.table)[x.table[i]] for x, i in ((first, s), (second, t))]
        np.maximum.at(part, of, support / np.maximum(np.sqrt(length[0] * length[1]) - 1, 1))
        np.maximum.at(total, of, support)
    against = []
    for index, n in ((a, shape[0]), (b, shape[1])):
        best = np.zeros(n)
        np.maximum.at(best, index, total)
        against.append((total + 0.1) / (best[index] + 0.1))
    return [part, total / (1 + total), *against, in_a & in_b, in_a != in_b]


def _pointer_pairs(
    tables: tuple[Tables, Tables], a: np.ndarray, b: np.ndarray, held: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (pair, pointer at its a, pointer at its b), all combinations."""
    order = [np.argsort(t.function, kind="stable") for t in tables]
    start = [
        np.searchsorted(t.function[o], i) for t, o, i in zip(tables, order, (a, b), strict=True)
    ]
    count = held[0][a] * held[1][b]
    of = np.repeat(np.arange(len(a)), count)
    nth = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
    in_b = held[1][b][of]
    s = order[0][start[0][of] + nth // np.maximum(in_b, 1)]
    t = order[1][start[1][of] + nth % np.maximum(in_b, 1)]
    return of, s, t


ROUNDS = 6  # rounds in which matches are evidence for their neighbours
OFTEN = 1000  # columns with more entries are multiplied separately
PRODUCT = 1 << 24  # maximum number of entries of a product in memory
LIKELY = 0.02  # pairs with a lower probability are no evidence
BESIDE = (1, 6)  # number of near, and of wide, neighbours on each side of a function
RELATIONS = ("callees", "callers", "shared variables")
# The columns of the evidence for a candidate.
EVIDENCE = ["similarity", "logit", "log share among the first's", "log share among the second's"]
EVIDENCE += [f"{name}, less the typical" for name in OWN] + [f"typical {name}" for name in OWN]
EVIDENCE += [
    f"{relation}: {what}"
    for relation in RELATIONS
    for what in ("matched", "both have some", "difference of numbers")
]
EVIDENCE += ["near neighbours: matched", "wide neighbours: matched"]
EVIDENCE += ["tables: part that agrees", "tables: pairs that agree", "tables: against the first's"]
EVIDENCE += ["tables: against the second's", "tables: list both", "tables: list one"]


class Evidence:
    """Evidence for candidates from the matches so far: calls, variables, order of functions."""

    def __init__(self, first: Features, second: Features) -> None:
        self.codes = first, second
        self.calls = [_rare_first(code.calls) for code in (first, second)]
        self.callers = [_rare_first(code.calls.T.tocsr()) for code in (first, second)]
        self.shared = [normalise(code.shared) for code in (first, second)]
        self.tables = first.tables, second.tables
        self.beside = [
            [_beside(code.functions, reach) for code in (first, second)] for reach in BESIDE
        ]

    def rounds(
        self,
        candidates: Candidates,
        similarity: np.ndarray,
        network: Callable[[np.ndarray], np.ndarray],
        rounds: int = ROUNDS,
    ) -> np.ndarray:
        """Return each candidate's logit after several rounds; each uses the previous one's result.

        Parameters
        ----------
        similarity : float32 (n,)
            The candidates' logits by themselves.
        network : callable
            Evidence -> logits.
        """
        logit = similarity
        for _ in range(rounds):
            logit = network(self.columns(candidates, similarity, logit))
        return logit

    def same_code(self, candidates: Candidates) -> np.ndarray:
        """Return which candidates are the same code except for addresses, bool (n,).

        Functions with hardly any code are left out.
        """
        whole = [
            [tuple(code.forms[b] for b in inside.tolist()) for inside in code.blocks]
            for code in self.codes
        ]
        first, second = numbered(*whole)
        enough = np.array([sum(map(len, function)) >= IDENTICAL_SIZE for function in whole[0]])
        a, b = candidates.a, candidates.b
        return (first[a] == second[b]) & enough[a]

    def columns(
        self, candidates: Candidates, similarity: np.ndarray, logit: np.ndarray
    ) -> np.ndarray:
        """Return the evidence for each candidate, float32 (n, len(EVIDENCE))."""
        a, b, shape = candidates.a, candidates.b, candidates.shape
        share_a, share_b = softmax_both_ways(candidates, logit)
        share = np.sqrt(share_a * share_b)
        likely = share > LIKELY
        pairs = scipy.sparse.csr_matrix((share[likely], (a[likely], b[likely])), shape)
        columns = [similarity, logit, np.log(share_a + 1e-4), np.log(share_b + 1e-4)]
        # Differences weigh more when the builds are otherwise similar, so centre each measure on
        # its typical value.
        own = candidates.measures[:, [MEASURES.index(name) for name in OWN]]
        typical = share[likely] @ own[likely] / max(share[likely].sum(), 1e-6)
        columns += [*(own - typical).T, *np.broadcast_to(typical, own.shape).T]
        for x, y in (self.calls, self.callers, self.shared):
            columns.append(_spread(x, pairs, y, a, b))
            degree_x, degree_y = np.diff(x.indptr)[a], np.diff(y.indptr)[b]
            columns += [
                (degree_x > 0) & (degree_y > 0),
                np.abs(np.log1p(degree_x) - np.log1p(degree_y)),
            ]
        for x, y in self.beside:
            columns.append(_spread(x, pairs, y, a, b))
        columns += agreement(self.tables, (a, b, shape), share)
        return np.stack(columns, 1).astype(np.float32)


def _spread(
    x: scipy.sparse.csr_matrix,
    pairs: scipy.sparse.csr_matrix,
    y: scipy.sparse.csr_matrix,
    a: np.ndarray,
    b: np.ndarray,
) -> np.ndarray:
    """Return ``(x @ pairs @ y.T)[a, b]``, float (n,); ``a`` is sorted.

    Only these entries are needed. The whole product can be quadratic in the number of functions,
    e.g. if all call one function. So it is computed a few rows at a time, and columns of ``y`` with
    many entries are multiplied only for the needed entries.
    """
    if not len(a):
        return np.zeros(0, np.float32)
    through = (x @ pairs).tocsr()
    often = np.bincount(y.indices, minlength=y.shape[1])
    few = y.copy()
    few.data = few.data * (often <= OFTEN)[few.indices]
    few.eliminate_zeros()
    few = few.T.tocsr()
    size = np.append(0, np.cumsum(np.diff(few.indptr)[through.indices]))[through.indptr]
    found = np.zeros(len(a), np.float32)
    start = 0
    while start < len(size) - 1:
        end = max(start + 1, int(np.searchsorted(size, size[start] + PRODUCT, "right")) - 1)
        part = slice(*np.searchsorted(a, [start, end]))
        if part.start < part.stop:
            product = through[start:end] @ few
            found[part] = np.asarray(product[a[part] - start, b[part]]).ravel()
        start = end
    columns_x, columns_y = through.tocsc(), y.tocsc()
    for column in np.flatnonzero(often > OFTEN).tolist():
        sides = [np.asarray(m[:, [column]].todense()).ravel() for m in (columns_x, columns_y)]
        found += sides[0][a] * sides[1][b]
    return found


def _rare_first(relation: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    """Weigh rare columns more, and give each row length 1: rare shared callees are more telling."""
    n = relation.shape[0]
    had = np.bincount(relation.indices, minlength=n)
    m = relation.copy()
    m.data = np.log((1 + n) / (1 + had))[m.indices].astype(np.float32)
    rows = np.repeat(np.arange(n), np.diff(m.indptr))
    length = np.sqrt(np.bincount(rows, m.data**2, n))
    m.data /= np.maximum(length, 1e-6)[rows].astype(np.float32)
    return m


def _beside(n: int, reach: int) -> scipy.sparse.csr_matrix:
    """Return pairs of functions at most ``reach`` places apart in the order of addresses."""
    steps = [d for d in range(-reach, reach + 1) if d and abs(d) < n]
    if not steps:
        return scipy.sparse.csr_matrix((n, n), dtype=np.float32)
    band = scipy.sparse.diags([np.ones(n - abs(d)) for d in steps], steps, (n, n), "csr")
    return (band / np.sqrt(len(steps))).astype(np.float32)
