"""bench/word_table.py: the peer of the encoder learns, and weighs words as TF-IDF does."""

import dataclasses

import numpy as np
import pytest
from word_table import OFFSET, TableConfig, choose_words, known_words, train_encoder

from binary.symbols import source_names

CFG = TableConfig(
    seed=0, words=4096, dimensions=64, encoder_steps=60, encoder_batch=128, encoder_lr=0.005
)


@pytest.fixture(scope="module")
def fitted(codes):
    builds = [codes[build] for build in ("O0", "O1", "O2")]
    return train_encoder({"shapes": builds}, CFG, "word table")


def test_encoder_finds_what_it_learned(codes, fitted):
    """At unseen optimisation levels; with random word vectors it would find fewer."""
    first, second = codes["O0"], codes["O3-noplt"]
    (x, known), (y, _) = fitted(first), fitted(second)
    assert np.allclose(np.linalg.norm(x[known > 0], axis=1), 1, atol=1e-5)
    names = [
        {name: f for f, name in enumerate(source_names(code.analysis)) if name}
        for code in (first, second)
    ]
    both = sorted(names[0].keys() & names[1].keys())
    a, b = (np.array([side[name] for name in both]) for side in names)
    assert len(both) >= 5
    assert ((x[a] @ y[b].T).argmax(1) == np.arange(len(both))).all()


def test_weights_of_known_words_are_those_of_tfidf(codes):
    code = codes["O0"]
    words, idf = choose_words([[code], [codes["O1"]]], 100000)
    rows = known_words(code, words, idf).toarray()
    low, high = np.searchsorted(words, [OFFSET["name"], OFFSET["size"]])
    columns = words[low:high] - OFFSET["name"]
    counts = code.words["name"][:, columns].toarray()
    expected = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * idf[low:high]
    length = np.linalg.norm(expected, axis=1, keepdims=True)
    expected = expected / np.maximum(length, 1e-9)
    assert length.any()
    assert np.allclose(rows[:, low:high], expected, atol=1e-5)


def test_words_of_one_program_alone_are_not_learned(codes):
    empty = dataclasses.replace(
        codes["O1"], words={g: m[:, :0].copy() for g, m in codes["O1"].words.items()}
    )
    words, _ = choose_words([[codes["O0"]], [empty]], CFG.words)
    assert not len(words)
