"""bench/matches.py and bench/bags.py: features of two functions, against loops over definitions."""

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import test_compare
import torch
from test_compare import TOKENIZER

import classify
import models
from compare import ComparisonData

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
import bags
import matches

CFG = dataclasses.replace(test_compare.CFG, n_layers=1)


def test_whitened_states_have_no_large_direction():
    rng = np.random.default_rng(0)
    skewed = rng.standard_normal((5000, 8)) * [100, 30, 10, 3, 1, 1, 1, 1] + 50
    hidden = skewed @ np.linalg.qr(rng.standard_normal((8, 8)))[0]
    x = matches.whitening([hidden[:2000], hidden[2000:]])(hidden.astype(np.float32)).numpy()
    assert np.allclose((x**2).sum(1), 1, atol=1e-4)
    assert np.linalg.norm(x.mean(0)) < 0.05
    # The directions with less than a hundredth of the mean variance stay smaller.
    assert np.linalg.eigvalsh(np.cov(x.T))[-4:] == pytest.approx(1 / 4, rel=0.5)


def test_features_by_definition():
    rng = np.random.default_rng(0)
    a, b = [5, 6, 6, 7], [6, 8, 5]
    weights = rng.random((10, 2)).astype(np.float32)
    states = []
    for text in (a, b):
        x = rng.standard_normal((len(text), 4))
        states.append((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32))
    expected = []
    for share in matches.STATES:
        cosine = states[0] @ states[1].T
        alike = [
            [share * cosine[i][j] + (1 - share) * (x == y) for j, y in enumerate(b)]
            for i, x in enumerate(a)
        ]
        e = [[math.exp(matches.SHARPNESS * s) for s in row] for row in alike]
        down = [sum(row[j] for row in e) for j in range(len(b))]
        once = [[min(x / sum(row), x / d) for x, d in zip(row, down, strict=True)] for row in e]
        best = [max(row) for row in alike], [max(column) for column in zip(*alike, strict=True)]
        used = [sum(row) for row in once], [sum(column) for column in zip(*once, strict=True)]
        for sides in (best, used):
            averages = [
                sum(m * weights[t] for m, t in zip(side, text, strict=True)) / weights[text].sum(0)
                for side, text in zip(sides, (a, b), strict=True)
            ]
            expected += [averages[0] + averages[1], np.minimum(*averages)]
    tensors = [torch.from_numpy(np.array(x)) for x in (a, b, *states, weights)]
    assert np.allclose(matches.features(*tensors), np.concatenate(expected), atol=1e-5)


@pytest.mark.parametrize("with_bert", [False, True])
def test_other_splits_change_nothing_of_what_is_learned_from(with_bert):
    """Weights and whitening come from the training texts; equal texts match wholly."""
    torch.manual_seed(0)
    bert = models.Transformer(CFG) if with_bert else None
    train = [("t1 t2 t3 " * 9, "t1 t2 t3 " * 9), ("t1 t2 t5 t6", "t3 t4 t9")]

    def found(other):
        splits = {"train": train, "dev": other}
        data = {s: ComparisonData(pairs, None, TOKENIZER, 12, 6) for s, pairs in splits.items()}
        result = matches.match(data, bert)
        assert not data["train"].hidden
        return result

    one, two = found([("t7", "t8")]), found([("t1 t2", "t1 t19"), ("t19", "t3")])
    assert np.array_equal(one["train"], two["train"])
    assert [len(result["dev"]) for result in (one, two)] == [1, 2]
    assert one["train"][0, :6] == pytest.approx([2, 2, 2, 1, 1, 1], abs=1e-3)


def test_more_windows_read_more():
    data = [ComparisonData([("t1 " * 30, "t2")], None, TOKENIZER, 12, n) for n in (1, 2, 6)]
    assert [len(some.texts[0]) for some in data] == [10, 20, 30]


@pytest.mark.parametrize("kind", list(bags.VECTORIZERS))
def test_bags(kind):
    texts = ["mov __ctype_b_loc", "mov str", "mov"] * 5
    train = classify.Examples(texts, texts[::-1], None)
    words = bags.Bags(kind, train)
    assert set(words.words.vocabulary_) == {"mov", "__ctype_b_loc", "str"}
    equal = words.features(classify.Examples(["mov str"] * 2, ["mov str", "__ctype_b_loc"], None))
    assert equal.shape == (2, 4 + 2 * 3)
    cosine, differences, common = np.split(equal.toarray(), [1, 7], axis=1)
    assert cosine[:, 0].tolist() == pytest.approx([1, 0])
    assert not differences[0, 2:].any()
    assert common[0].sum() > 0
    assert not common[1].any()
