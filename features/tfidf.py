"""Bags of words as sparse rows: hashing, TF-IDF weights, normalisation."""

import functools
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.sparse

DIMENSIONS = 1 << 18  # words are hashed to so many columns; few words of a binary collide


def hashed(bags: Iterable[Iterable[Any]]) -> scipy.sparse.csr_matrix:
    """Count how often each word occurs in each of n bags, csr float32 (n, DIMENSIONS)."""
    column = functools.cache(lambda word: zlib.crc32(repr(word).encode()) % DIMENSIONS)
    rows = [[column(word) for word in bag] for bag in bags]
    columns = np.array([column for row in rows for column in row], np.int32)
    offsets = np.cumsum([0] + [len(row) for row in rows])
    ones = np.ones(len(columns), np.float32)
    found = scipy.sparse.csr_matrix((ones, columns, offsets), (len(rows), DIMENSIONS))
    found.sum_duplicates()
    return found


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
