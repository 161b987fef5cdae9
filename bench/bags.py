"""What bags of words tell of two functions: baselines of samefunc.py."""

from pathlib import Path

import numpy as np
import scipy.sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.preprocessing import MaxAbsScaler

from tasks.catalogue import Samefunc
from tasks.tables import read_examples
from tasks.task import Examples

# Strings and names of imports are words too; what occurs in fewer than 5 functions is left out.
WORDS = {"token_pattern": r"(?u)\S+", "lowercase": False, "min_df": 5}
VECTORIZERS = {
    "bag of tokens": lambda: CountVectorizer(**WORDS),
    "TF-IDF": lambda: TfidfVectorizer(**WORDS, sublinear_tf=True),
}


def read(file: Path) -> Examples:
    """Read labelled pairs that the root's samefunc.py made."""
    return read_examples(Samefunc, file, labelled=True)


class Bags:
    """Features of pairs of texts: how alike they are, their sizes, each word's count and match.

    Parameters
    ----------
    kind : {"bag of tokens", "TF-IDF"}
    train : tasks.task.Examples
        What words and scales are taken from.
    """

    def __init__(self, kind: str, train: Examples) -> None:
        self.words = VECTORIZERS[kind]().fit(train.text_a + train.text_b)
        self.scaler = MaxAbsScaler().fit(self.raw(train))

    def features(self, examples: Examples) -> scipy.sparse.csr_matrix:
        """Return features of the pairs, scaled to -1..1: (N, 4 + 2 words)."""
        return self.scaler.transform(self.raw(examples)).tocsr()

    def raw(self, examples: Examples) -> scipy.sparse.csr_matrix:
        a, b = (self.words.transform(texts) for texts in (examples.text_a, examples.text_b))
        norms = [np.sqrt(x.multiply(x).sum(1)) for x in (a, b)]
        cosine = np.asarray(a.multiply(b).sum(1)) / np.maximum(np.multiply(*norms), 1e-9)
        sums = [np.log1p(x.sum(1)) for x in (a, b)]
        parts = [cosine, *sums, abs(sums[0] - sums[1]), abs(a - b), a.minimum(b)]
        return scipy.sparse.hstack(parts).tocsr()
