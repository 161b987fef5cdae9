"""What a binary's data says of its functions: who uses the same variables, and what tables list.

A compiler changes all of a function, but hardly which variables it uses; and tables of functions
(commands, comparators, methods of a class) keep their order in every build. No symbol is looked at
but those of imports.
"""

import dataclasses

import numpy as np
import scipy.sparse

import preprocessing
from preprocessing import Analysis

COMMON = 64  # functions; a variable that more of them use says nothing
GAP = 64  # bytes without a pointer that end a table
MANY = 16  # pointers; a function that more of them point at stands for nothing in particular
FAINT = 1e-3  # share of a match that hardly speaks for the place of a table any more


@dataclasses.dataclass
class Tables:
    """Pointers at functions, p of them, in runs that lie close together.

    Attributes
    ----------
    function : int64 (p,)
        What each points at, 0..F - 1.
    table : int64 (p,)
        The run that it is in, counted from 0.
    place : int64 (p,)
        Bytes behind the run's first pointer.
    """

    function: np.ndarray
    table: np.ndarray
    place: np.ndarray


def read_tables(analysis: Analysis) -> Tables:
    """Find the tables of pointers at the entries of functions."""
    entry = analysis.function_address[: analysis.code_functions]
    target = analysis.address[analysis.pointer_block]
    function = np.minimum(np.searchsorted(entry, target), len(entry) - 1)
    at_entry = entry[function] == target
    address = analysis.pointer_address[at_entry].astype(np.int64)
    starts = np.diff(address, prepend=address[:1] - GAP - 1) > GAP
    table = np.cumsum(starts) - 1
    return Tables(function[at_entry], table, address - address[starts][table])


def labels(analysis: Analysis) -> list[list]:
    """Return the names that tables give each function: words as those of its own literals."""
    found: list[list] = [[] for _ in range(analysis.code_functions)]
    entry = {a: f for f, a in enumerate(analysis.function_address[: len(found)].tolist())}
    target = analysis.address[analysis.pointer_block[analysis.label_pointer]]
    for address, literal in zip(target.tolist(), analysis.label, strict=True):
        if address in entry:
            found[entry[address]] += preprocessing.literal_words(literal)
    return found


def shared(analysis: Analysis) -> scipy.sparse.csr_matrix:
    """Return how much functions have in common of variables, csr float32 (F, F), 0 with itself.

    The sum of the squares of idf over the variables that both use: rare ones say more.
    """
    n = analysis.code_functions
    _, variable = np.unique(analysis.variable_address, return_inverse=True)
    function = analysis.function[analysis.variable_block]
    uses = np.unique(np.stack([function, variable], 1), axis=0).reshape(-1, 2)
    used_by = np.bincount(uses[:, 1])
    idf = np.log((1 + n) / (1 + used_by)) * ((used_by > 1) & (used_by <= COMMON))
    weights = idf[uses[:, 1]].astype(np.float32)
    has = scipy.sparse.csr_matrix((weights, tuple(uses.T)), (n, len(used_by)))
    both = (has @ has.T).tocsr()
    both -= scipy.sparse.diags(both.diagonal(), format="csr")
    both.eliminate_zeros()
    both.sort_indices()
    return both


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
        As `similarity.Candidates` has them.
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
