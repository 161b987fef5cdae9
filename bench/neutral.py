"""An ablation of the encoder: its input without the words that all processors share."""

import dataclasses

import numpy as np
import scipy.sparse

from features.tfidf import DIMENSIONS
from features.words import BAG, WORD_KINDS, Positions


def without_operations(positions: Positions) -> Positions:
    """Return the encoder's input without the words that all processors share."""

    def rest(matrix: scipy.sparse.csr_matrix, left_out: int) -> scipy.sparse.csr_matrix:
        kept = matrix.indices // DIMENSIONS != left_out
        offsets = np.append(0, np.cumsum(kept))[matrix.indptr]
        return scipy.sparse.csr_matrix(
            (matrix.data[kept], matrix.indices[kept], offsets), matrix.shape
        )

    return dataclasses.replace(
        positions,
        of_line=rest(positions.of_line, WORD_KINDS.index("operation")),
        bags=rest(positions.bags, list(BAG).index("operation")),
    )
