"""What a binary's data says of its functions: who uses the same variables, and what tables list.

A compiler changes all of a function, but hardly which variables it uses; and tables of functions
(commands, comparators, methods of a class) keep their order in every build. No symbol is looked at
but those of imports.
"""

import dataclasses

import numpy as np
import scipy.sparse

from binary.analysis import Analysis
from binary.instructions import literal_words

COMMON = 64  # functions; a variable that more of them use says nothing
GAP = 64  # bytes without a pointer that end a table
MANY = 16  # pointers; a function that more of them point at stands for nothing in particular


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


def pointer_labels(analysis: Analysis) -> list[list]:
    """Return the names that tables give each function: words as those of its own literals."""
    found: list[list] = [[] for _ in range(analysis.code_functions)]
    entry = {a: f for f, a in enumerate(analysis.function_address[: len(found)].tolist())}
    target = analysis.address[analysis.pointer_block[analysis.label_pointer]]
    for address, literal in zip(target.tolist(), analysis.label, strict=True):
        if address in entry:
            found[entry[address]] += literal_words(literal)
    return found


def shared_variables(analysis: Analysis) -> scipy.sparse.csr_matrix:
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
