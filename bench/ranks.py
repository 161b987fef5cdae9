"""How often the right function is found in a pool: recall, mean reciprocal rank, intervals.

For each query, count the functions of the whole collection that are nearer than the right one. The
number of these in a random pool of N functions has a hypergeometric distribution. So all figures
are exact expectations, and no pool is drawn.
"""

import functools

import numpy as np
import scipy.sparse
from scipy.stats import hypergeom

CHUNK = 512  # number of queries compared with the collection at a time
EQUAL = 1e-6  # cosines that differ by less are ties, because of rounding
TIMES = 2000  # number of samples of libraries and seeds
MEASURES = ("R@1", "R@10", "MRR")


def count_nearer(queries, collection, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the functions nearer to each query than its target, and those equally near.

    Parameters
    ----------
    queries : float32 (Q, D), collection : float32 (M, D), arrays or csr
        Vectors of length 1, or zero vectors, which are equally far from everything.
    target : int64 (Q,)
        The row of the right function in the collection.

    Returns
    -------
    int64 (Q,), int64 (Q,)
    """
    nearer, ties = np.empty(len(target), np.int64), np.empty(len(target), np.int64)
    transposed = collection.T.tocsr() if scipy.sparse.issparse(collection) else collection.T
    for start in range(0, len(target), CHUNK):
        part = slice(start, start + CHUNK)
        cosine = queries[part] @ transposed
        cosine = cosine.toarray() if scipy.sparse.issparse(cosine) else cosine
        right = cosine[np.arange(len(cosine)), target[part]][:, None]
        nearer[part] = (cosine > right + EQUAL).sum(1)
        ties[part] = (np.abs(cosine - right) <= EQUAL).sum(1) - 1  # without the target itself
    return nearer, ties


def pool_figures(nearer: np.ndarray, ties: np.ndarray, all_: int, pool: int) -> np.ndarray:
    """Return each query's expected recall@1, recall@10 and reciprocal rank, float64 (Q, 3).

    Parameters
    ----------
    nearer, ties : int64 (Q,)
        Counts of other functions; the target's position among its ties is random.
    all_, pool : int
        Number of functions in the collection, and in the pool, which contains the target.
    """
    sums = _summed_figures(all_, pool)
    return ((sums[:, nearer + ties + 1] - sums[:, nearer]) / (ties + 1)).T


@functools.cache
def _summed_figures(all_: int, pool: int) -> np.ndarray:
    """Return the sums of the three figures over 0 to x nearer functions, float64 (3, all_ + 1)."""
    x = np.arange(all_)  # number of nearer functions
    figures = [hypergeom.cdf(k - 1, all_ - 1, x, pool - 1) for k in (1, 10)]
    # E[1 / (1 + X)] in closed form: C(x, i) / (i + 1) is C(x + 1, i + 1) / (x + 1).
    none = np.where(x + 1 > all_ - pool, 0, hypergeom.pmf(0, all_, x + 1, pool))
    figures.append(all_ / pool / (x + 1) * (1 - none))
    return np.concatenate([np.zeros((3, 1)), np.cumsum(figures, axis=1)], axis=1)


def resampled_means(figures: np.ndarray, library: np.ndarray) -> np.ndarray:
    """Return the mean over queries in each of many samples of libraries and seeds.

    The samples are the same in each call, so differences of two rows are paired.

    Parameters
    ----------
    figures : float64 (S, Q)
        The figures of S trainings with different seeds.
    library : int64 (Q,)
        The library of each query.

    Returns
    -------
    float64 (TIMES,)
    """
    rng = np.random.default_rng(0)
    n = int(library.max()) + 1
    drawn = rng.multinomial(n, np.full(n, 1 / n), TIMES)  # (TIMES, libraries)
    sums = np.stack([np.bincount(library, row, n) for row in figures])
    seeds = rng.multinomial(len(figures), np.full(len(figures), 1 / len(figures)), TIMES)
    total = (drawn @ np.bincount(library, minlength=n)).astype(float)
    found = ((drawn @ sums.T) * seeds / len(figures)).sum(1)
    return np.where(total > 0, found / np.maximum(total, 1), figures.mean())


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of resampled values."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
