"""What data tells about functions: which use the same variables, and where they are in tables.

A compiler may change everything in a function, but rarely which variables it uses. Tables of
functions (commands, comparators, methods of a class) have the same order in every build. Symbols
are not used, except those of imports.
"""

import dataclasses

import numpy as np
import scipy.sparse

from binary.analysis import Analysis
from binary.instructions import literal_words

COMMON = 64  # ignore variables that more functions use
GAP = 8  # words without a pointer that end a table
MANY = 16  # ignore functions to which more pointers point


@dataclasses.dataclass
class Tables:
    """The p pointers to functions in data, grouped into tables: runs with small gaps.

    Attributes
    ----------
    function : int64 (p,)
        The function to which each points, 0..F - 1.
    table : int64 (p,)
        The table of each pointer, counted from 0.
    place : int64 (p,)
        Distance from the table's first pointer, in words of the processor, so that tables of 32-bit
        and of 64-bit code agree.
    """

    function: np.ndarray
    table: np.ndarray
    place: np.ndarray


def read_tables(analysis: Analysis) -> Tables:
    """Find the tables of pointers to the entries of functions."""
    entry = analysis.function_address[: analysis.code_functions]
    target = analysis.address[analysis.pointer_block]
    function = np.minimum(np.searchsorted(entry, target), len(entry) - 1)
    at_entry = entry[function] == target
    address = analysis.pointer_address[at_entry].astype(np.int64) // int(analysis.pointers[0])
    starts = np.diff(address, prepend=address[:1] - GAP - 1) > GAP
    table = np.cumsum(starts) - 1
    return Tables(function[at_entry], table, address - address[starts][table])


def pointer_labels(analysis: Analysis) -> list[list]:
    """Return each function's features from the texts that stand beside it in tables."""
    found: list[list] = [[] for _ in range(analysis.code_functions)]
    entry = {a: f for f, a in enumerate(analysis.function_address[: len(found)].tolist())}
    target = analysis.address[analysis.pointer_block[analysis.label_pointer]]
    for address, literal in zip(target.tolist(), analysis.label, strict=True):
        if address in entry:
            found[entry[address]] += literal_words(literal)
    return found


def shared_variables(analysis: Analysis) -> scipy.sparse.csr_matrix:
    """Return the weight of the variables that two functions share, csr float32 (F, F).

    It is the sum of squared IDFs over the variables that both use; the diagonal is 0.
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
