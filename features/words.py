"""The kinds of words that functions consist of, and the arrays that hold them.

This needs nothing that reads binaries, so it serves training, too.
"""

import dataclasses

import numpy as np
import scipy.sparse

KINDS = ("token", "gram", "number", "field", "name")  # kinds of a block's words
# Groups of a function's words: its own; `near`: with those of the functions that it calls; `far`:
# also with those that these call; `up`: those of its callers.
GROUPS = (*KINDS, "size", "name near", "name far", "name up", "number near", "number up")
LONGEST = 256  # maximum number of instructions of a function
# A word's number is its column, plus DIMENSIONS times the index of its kind here.
WORD_KINDS = (*KINDS, "size", "operation")
# Groups of a bag: group as in GROUPS, and the kind of its words.
BAG = {group: group.split(" ")[0] for group in GROUPS} | {"operation": "operation"}


@dataclasses.dataclass
class Positions:
    """F functions as n positions of L distinct instructions, and as bags of words.

    Attributes
    ----------
    line : int32 (n,)
        The instruction at each position, 0..L - 1.
    block : int32 (n,)
        The basic block that each position is from; its positions are consecutive.
    offsets : int64 (F + 1,)
        Function f has the positions offsets[f] up to offsets[f + 1].
    of_line : csr float32 (L, W)
        The words of each instruction, by their numbers.
    names : csr float32 (n, W)
        The names at each position.
    bags : csr float32 (F, len(BAG) * DIMENSIONS)
        How often each function has each word, in the groups of BAG.
    """

    line: np.ndarray
    block: np.ndarray
    offsets: np.ndarray
    of_line: scipy.sparse.csr_matrix
    names: scipy.sparse.csr_matrix
    bags: scipy.sparse.csr_matrix


def ranges(start: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return start[0], ..., start[0] + size[0] - 1, start[1], ..., as int64 (sum of sizes,)."""
    size = size.astype(np.int64)
    return np.repeat(start - (np.cumsum(size) - size), size) + np.arange(size.sum())
