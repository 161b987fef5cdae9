"""diff.py's encoder: each word has a vector, and a function's vector is the sum over its words.

matching/train.py trains the vectors so that two builds of one source function are near each other.
Unlike the TF-IDF measures, they remember which words distinguish the functions of the libraries in
the training programs.
"""

import dataclasses

import numpy as np
import scipy.sparse

from features.extract import GROUPS, Features
from features.tfidf import DIMENSIONS, normalise

OFFSET = {group: i * DIMENSIONS for i, group in enumerate(GROUPS)}


@dataclasses.dataclass
class WordVectors:
    """V words with vectors of D dimensions.

    Attributes
    ----------
    words : int32 (V,)
        A word's column in `features` plus its group's OFFSET; sorted.
    idf : float32 (V,)
        How rare each word is in the training programs.
    table : float16 (V, D)
    """

    words: np.ndarray
    idf: np.ndarray
    table: np.ndarray

    def __call__(self, code: Features) -> tuple[np.ndarray, np.ndarray]:
        """Encode the functions of a binary.

        Returns
        -------
        float32 (F, D)
            Vectors of length 1; zero for functions without a known word.
        float32 (F,)
            The share of each function's words that is known.
        """
        rows = known_words(code, self.words, self.idf)
        vectors = rows @ self.table.astype(np.float32)
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        had = sum(np.diff(code.words[group].indptr) for group in GROUPS)
        known = np.diff(rows.indptr) / np.maximum(had, 1)
        return vectors / np.maximum(length, 1e-6), known.astype(np.float32)


def known_words(code: Features, words: np.ndarray, idf: np.ndarray) -> scipy.sparse.csr_matrix:
    """Return the weights of known words, csr float32 (F, V); each group has length 1."""
    parts = []
    for group in GROUPS:
        low, high = np.searchsorted(words, [OFFSET[group], OFFSET[group] + DIMENSIONS])
        m = code.words[group]
        if low == high:
            continue
        column = words[low:high] - OFFSET[group]
        place = np.minimum(np.searchsorted(column, m.indices), len(column) - 1)
        weight = (1 + np.log(m.data)) * idf[low:high][place] * (column[place] == m.indices)
        part = scipy.sparse.csr_matrix((weight, place, m.indptr.copy()), (m.shape[0], high - low))
        part.eliminate_zeros()
        parts.append(normalise(part))
    if not parts:
        return scipy.sparse.csr_matrix((code.functions, len(words)), dtype=np.float32)
    return scipy.sparse.hstack(parts, "csr", np.float32)


def choose_words(programs: list[list[Features]], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose the words that occur in the most programs, at least two, and weigh them.

    Parameters
    ----------
    programs : list of list of Features
        Builds of each program.
    size : int
        Maximum number of words.

    Returns
    -------
    int32 (V,), float32 (V,)
        `WordVectors.words` and `WordVectors.idf`.
    """
    total = len(GROUPS) * DIMENSIONS
    in_programs = np.zeros(total, np.int64)
    in_functions = np.zeros(total, np.int64)
    n = 0
    for codes in programs:
        met = np.zeros(total, bool)
        for code in codes:
            n += code.functions
            for group in GROUPS:
                columns = code.words[group].indices + OFFSET[group]
                met[columns] = True
                np.add.at(in_functions, columns, 1)
        in_programs += met
    often = np.lexsort((-in_functions, -in_programs))[:size]
    words = np.sort(often[in_programs[often] >= min(2, len(programs))])
    idf = np.log((1 + n) / (1 + in_functions[words])) + 1
    return words.astype(np.int32), idf.astype(np.float32)
