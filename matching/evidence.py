"""What the matches found so far say about each candidate pair: calls, shared data, order."""

from collections.abc import Callable

import numpy as np
import scipy.sparse

from binary.shared_data import MANY, Tables
from features.extract import Features
from features.normalised import IDENTICAL_SIZE, numbered
from features.tfidf import normalise
from matching.candidates import MEASURES, OWN, Candidates, softmax_both_ways

FAINT = 1e-3  # share of a match that hardly speaks for the place of a table any more


def agreement(
    tables: tuple[Tables, Tables], pairs: tuple[np.ndarray, np.ndarray, tuple], share: np.ndarray
) -> list[np.ndarray]:
    """Return what tables say for pairs of functions, if matches are right.

    A pair that two tables list lays one table upon the other; all pairs that then lie upon each
    other speak for it. They do by the logarithm of their shares: of an order that is half right,
    however sure, less is left than of one that is likely throughout.

    Parameters
    ----------
    tables : (Tables, Tables)
    pairs : int64 (n,), int64 (n,), (F, G)
        As `matching.candidates.Candidates` has them.
    share : float32 (n,)
        How sure each is.

    Returns
    -------
    list of float (n,)
        The part of the tables that agrees; how many pairs do, s / (1 + s); the same against the
        best of each function of the first, and of the second; whether tables list both, or only
        one of them.
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


ROUNDS = 6  # in which matches speak for their neighbours
OFTEN = 1000  # entries of a column that is multiplied by itself
PRODUCT = 1 << 24  # entries of a product that is in memory at a time
LIKELY = 0.02  # share from which on a pair speaks
BESIDE = (1, 6)  # functions to each side that are a function's near and wide neighbours
RELATIONS = ("callees", "callers", "shared variables")
# The columns of what speaks for a candidate.
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
    """What the matches so far say of candidates: by calls, variables, order of functions."""

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
        """Return each candidate's logit after rounds, each on the evidence of the one before.

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
        """Return which candidates differ in addresses only, if not in everything; bool (n,).

        Functions of hardly any code are left out.
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
        """Return what speaks for each candidate, float32 (n, len(EVIDENCE))."""
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

    Only these entries are asked for. The whole product can have the square of all functions of
    them, as where all call one function; so it is made a few rows at a time, and the columns of
    ``y`` with many entries are multiplied for the asked entries only.
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
    """Weigh what few have more, each row to length 1: shared rare callees say more."""
    n = relation.shape[0]
    had = np.bincount(relation.indices, minlength=n)
    m = relation.copy()
    m.data = np.log((1 + n) / (1 + had))[m.indices].astype(np.float32)
    rows = np.repeat(np.arange(n), np.diff(m.indptr))
    length = np.sqrt(np.bincount(rows, m.data**2, n))
    m.data /= np.maximum(length, 1e-6)[rows].astype(np.float32)
    return m


def _beside(n: int, reach: int) -> scipy.sparse.csr_matrix:
    """Functions up to ``reach`` places away, in the order of their addresses."""
    steps = [d for d in range(-reach, reach + 1) if d and abs(d) < n]
    band = scipy.sparse.diags([np.ones(n - abs(d)) for d in steps], steps, (n, n), "csr")
    return (band / np.sqrt(max(len(steps), 1))).astype(np.float32)
