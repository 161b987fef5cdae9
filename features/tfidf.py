"""Bags of words as sparse rows: hashing, TF-IDF weights, normalisation."""

import itertools
import zlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.sparse

DIMENSIONS = 1 << 18  # words are hashed to so many columns; few words of a binary collide


def hashed(bags: Iterable[Iterable[Any]]) -> scipy.sparse.csr_matrix:
    """Count how often each word occurs in each of n bags, csr float32 (n, DIMENSIONS)."""
    rows = [list(bag) for bag in bags]
    word, words = factorised(itertools.chain.from_iterable(rows))
    row = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return counted(row, columns_of(words)[word], len(rows))


def factorised(values: Iterable[Any]) -> tuple[np.ndarray, list]:
    """Return the number of each of n values, int64 (n,), and the different values by number.

    The first value has number 0, the next that differs has 1, and so on.
    """
    index: dict[Any, int] = defaultdict(itertools.count().__next__)
    return np.fromiter(map(index.__getitem__, values), np.int64), list(index)


def columns_of(words: Iterable[Any]) -> np.ndarray:
    """Return the column of each of n words, int32 (n,)."""
    return np.array([zlib.crc32(repr(word).encode()) % DIMENSIONS for word in words], np.int32)


def counted(row: np.ndarray, column: np.ndarray, rows: int) -> scipy.sparse.csr_matrix:
    """Count how often each word occurs in each bag.

    Parameters
    ----------
    row, column : int (n,)
        The bag and the column of each word.
    rows : int
        Number of bags.

    Returns
    -------
    csr float32 (rows, DIMENSIONS)
    """
    ones = np.ones(len(row), np.float32)
    return scipy.sparse.coo_matrix((ones, (row, column)), (rows, DIMENSIONS)).tocsr()


def weigh(*counts: scipy.sparse.csr_matrix, lengths: bool = True) -> list[scipy.sparse.csr_matrix]:
    """Weigh words by TF-IDF; the rows of all matrices together are the documents.

    Parameters
    ----------
    counts : csr (n_i, words)
    lengths : bool
        Whether to give each row length 1.

    Returns
    -------
    list of csr float32
        (1 + ln count) * idf, the smoothed idf of scikit-learn.
    """
    idf = inverse_frequency(*counts)
    weighed = []
    for m in counts:
        m = m.copy()
        m.data = (1 + np.log(m.data)) * idf[m.indices]
        weighed.append(normalise(m) if lengths else m)
    return weighed


def inverse_frequency(*counts: scipy.sparse.csr_matrix) -> np.ndarray:
    """Return how rare each word is, float32 (words,): the smoothed idf of scikit-learn."""
    n = sum(m.shape[0] for m in counts)
    found = sum(np.bincount(m.indices, minlength=m.shape[1]) for m in counts)
    return (np.log((1 + n) / (1 + found)) + 1).astype(np.float32)


def normalise(m: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    """Give each row length 1; empty rows stay empty."""
    rows = np.repeat(np.arange(m.shape[0]), np.diff(m.indptr))
    length = np.sqrt(np.bincount(rows, m.data**2, m.shape[0]))
    data = m.data / np.maximum(length, 1e-9)[rows].astype(np.float32)
    return scipy.sparse.csr_matrix((data, m.indices, m.indptr), m.shape)
