"""Give each name of the index to no more functions of a binary than one indexed file has of it."""

import numpy as np

from binary.symbols import is_made_up
from encoder.index import Index

# Names that are considered for each function of the binary. More than these cannot have a chance
# of 1 / 50 or more each.
NAMES = 50


def assign_names(
    index: Index, found: np.ndarray, chance: np.ndarray, allowed: np.ndarray, least: float
) -> dict[int, tuple[int, float]]:
    """Choose a function of the index for each function of one binary, the best chances first.

    A program contains a function once, so only one of its functions can have the name: the one with
    the best chance. Others only look like it, such as those with an inlined copy of it, and get
    their next best name. If some file of the index has a name several times (static functions of
    the same name), as many functions may get it.

    Parameters
    ----------
    index : Index
    found : int64 (Q, k), chance : float32 (Q, k)
        As `nearest` returns them ``by_name``.
    allowed : bool (N,)
        Which functions of the index may be found; only these count.
    least : float
        Lowest chance of a name that is given.

    Returns
    -------
    dict of int to (int, float)
        Function of the binary -> function of the index, and its chance.
    """
    rows = np.flatnonzero(allowed)
    of_file = index.binary[rows].astype(np.int64) * len(index.names) + index.name[rows]
    pairs, times = np.unique(of_file, return_counts=True)
    left = np.zeros(len(index.names), np.int64)
    np.maximum.at(left, pairs % len(index.names), times)
    given: dict[int, tuple[int, float]] = {}
    order = np.argsort(-chance, axis=None, kind="stable")
    order = order[chance.ravel()[order] >= least]
    queries, ranks = np.divmod(order, max(1, chance.shape[1]))
    for q, rank in zip(queries.tolist(), ranks.tolist(), strict=True):
        match = int(found[q, rank])
        name = index.name[match]
        if q not in given and (left[name] or is_made_up(index.name_of(match))):
            left[name] -= 1
            given[q] = match, float(chance[q, rank])
    return given
