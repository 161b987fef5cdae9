"""tasks/comparer.py: windows, vectors, features and the contrastive loss, against plain loops."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_bert
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.comparer import TEMPERATURE, TRAINED, WINDOWS, Comparer, ComparisonData, contrast
from tokenization import SPECIAL_TOKENS, CorpusTokenizer

VOCAB = [*SPECIAL_TOKENS, *(f"t{i}" for i in range(20))]
TOKENIZER = CorpusTokenizer({token: i for i, token in enumerate(VOCAB)})
CFG = tiny_bert(len(VOCAB), p_drop_hidden=0.0, p_drop_attn=0.0, max_len=16)
texts = st.lists(st.sampled_from(VOCAB[5:]), max_size=60).map(" ".join)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Comparer(CFG, 2)
    torch.nn.init.normal_(model.alike.weight)
    torch.nn.init.normal_(model.words.weight)
    return model.eval()


def tensors(data, rows):
    batch = data.batch(np.array(rows))
    return [torch.from_numpy(batch[name]) for name in ("input_ids", "input_mask", "counts")]


def vector(model, ids, room):
    """A text's vector: the mean of the hidden states of all windows, scaled to length 1."""
    states = []
    for start in range(0, max(1, len(ids)), room):
        window = [2, *ids[start : start + room], 3]
        with torch.no_grad():
            states.append(
                model.transformer(torch.tensor([window]), torch.zeros(1, len(window)).long())[0]
            )
    return F.normalize(torch.cat(states).mean(0), dim=0)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), st.integers(5, 16))
def test_vectors_are_those_of_windows(pairs, max_len):
    torch.manual_seed(0)
    model = Comparer(CFG, 2).eval()
    data = ComparisonData(pairs, None, TOKENIZER, max_len)
    assert len(data.texts) == len({text for pair in pairs for text in pair})  # each once
    found = data.encode(model)
    for row, pair in enumerate(pairs):
        for side, text in enumerate(pair):
            number = data.rows[row, side]
            assert TOKENIZER.convert_ids_to_tokens(data.texts[number]) == text.split()
            ids = data.texts[number][: WINDOWS * (max_len - 2)]
            assert torch.allclose(found[number], vector(model, ids, max_len - 2), atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_batches_hold_a_stretch_of_each_text(pairs):
    room = 4
    data = ComparisonData(pairs, None, TOKENIZER, room + 2)
    rows = np.arange(len(pairs))
    batch = data.batch(rows)
    assert all(map(np.array_equal, batch.values(), data.batch(rows).values()))
    for row, pair in enumerate(pairs):
        for side, text in enumerate(pair):
            used = batch["input_mask"][row, side].astype(bool)
            tokens = TOKENIZER.convert_ids_to_tokens(batch["input_ids"][row, side][used])
            inside = [token for token in tokens if token not in ("[CLS]", "[SEP]")]
            windows = max(1, -(-len(inside) // room))
            assert tokens.count("[CLS]") == tokens.count("[SEP]") == windows
            assert len(inside) == min(len(text.split()), TRAINED * room)
            assert " ".join(inside) in text
            assert not batch["input_ids"][row, side][~used].any()
            counts = {VOCAB[i]: n for i, n in enumerate(batch["counts"][row, side]) if n}
            assert counts == Counter(text.split())  # of the whole text


def test_texts_connected_by_pairs_of_the_same_are_a_group():
    pairs = [("t1", "t2"), ("t3", "t2"), ("t4", "t5"), ("t1", "t4"), ("t6", "t7")]
    data = ComparisonData(pairs, np.array([1, 1, 1, 0, 0]), TOKENIZER, 8)
    group = data.batch(np.arange(5))["group"]
    assert group[0, 0] == group[0, 1] == group[1, 0] == group[1, 1] == group[3, 0]
    assert group[2, 0] == group[2, 1] == group[3, 1]
    assert len(set(group.ravel().tolist())) == 4
    assert len(set(ComparisonData(pairs, None, TOKENIZER, 8).group.tolist())) == 7


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(texts, texts), min_size=2, max_size=4))
def test_neither_the_other_examples_nor_the_order_of_texts_matter(pairs):
    torch.manual_seed(0)
    model = Comparer(CFG, 2).eval()
    torch.nn.init.normal_(model.words.weight)
    torch.nn.init.normal_(model.alike.weight)
    both = []
    for some in (pairs, [(b, a) for a, b in pairs]):
        data = ComparisonData(some, None, TOKENIZER, 12)
        with torch.no_grad():
            vectors = data.encode(model)[data.rows]
            counts = torch.from_numpy(data.counts(data.rows))
            logits = model.compare(vectors, counts)
            for row in range(len(pairs)):
                alone = model.compare(vectors[row : row + 1], counts[row : row + 1])
                assert torch.allclose(logits[row], alone[0], atol=1e-4)
        both.append(logits)
    assert torch.allclose(*both, atol=1e-4)


def test_training_and_prediction_agree(model):
    """For short texts, training and prediction read the same."""
    data = ComparisonData([("t1 t2 t3", "t4"), ("t5 t6 " * 9, "")], None, TOKENIZER, 12)
    with torch.no_grad():
        logits, vectors = model(*tensors(data, [0, 1]))
        whole = data.encode(model)[data.rows]
        assert torch.allclose(vectors, whole, atol=1e-5)
        expected = model.compare(whole, torch.from_numpy(data.counts(data.rows)))
        assert torch.allclose(logits, expected, atol=1e-4)


def test_word_features_equal_their_definition():
    a, b = ["t1", "t1", "t1", "t2", "t3"], ["t1", "t3", "t3", "t4"]
    others = [("t1 t5", "t2 t2"), ("t1", "t1 t6")]
    data = ComparisonData([(" ".join(a), " ".join(b)), *others], None, TOKENIZER, 12)
    model = Comparer(CFG, 2)
    counts = torch.from_numpy(data.counts(data.rows))
    model.calibrate(counts)
    known = [a, b] + [text.split() for pair in others for text in pair]
    idf = {w: math.log(7 / (1 + sum(w in text for text in known))) + 1 for w in VOCAB}

    def tf_idf(text):
        return {w: (1 + math.log(n)) * idf[w] for w, n in Counter(text).items()}

    def unit(text):
        x = tf_idf(text)
        length = math.sqrt(sum(value**2 for value in x.values()))
        return {w: value / length for w, value in x.items()}

    x, y = unit(a), unit(b)
    expected = [sum(x.get(w, 0) * y.get(w, 0) for w in VOCAB)]
    shares = [
        [
            sum(n * idf[w] ** power for w, n in (Counter(a) & Counter(b)).items())
            / sum(idf[w] ** power for w in text)
            for power in (0, 1, 2)
        ]
        for text in (a, b)
    ]
    expected += [sum(pair) for pair in zip(*shares, strict=True)]
    expected += [min(pair) for pair in zip(*shares, strict=True)]
    sizes = [(math.log1p(len(t)), math.log1p(sum(tf_idf(t).values()))) for t in (a, b)]
    expected += [abs(p - q) for p, q in zip(*sizes, strict=True)]
    expected += [sizes[0][1] + sizes[1][1]]
    largest = {w: max(unit(text).get(w, 0) for text in known) or 1 for w in VOCAB}
    differences = [abs(x.get(w, 0) - y.get(w, 0)) / largest[w] for w in VOCAB]
    smaller = [min(x.get(w, 0), y.get(w, 0)) / largest[w] for w in VOCAB]
    alike, words = model.word_features(counts)
    assert alike[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert words[0].tolist() == pytest.approx(differences + smaller, abs=1e-5)
    # The classifier's inputs have mean 0 and variance 1, unless they are constant.
    scaled = (alike - model.mean) / model.deviation
    assert torch.allclose(scaled.mean(0), torch.zeros(10), atol=1e-5)
    assert torch.allclose(scaled.std(0, correction=0), torch.ones(10), atol=1e-3)


def test_the_contrastive_loss_equals_its_definition():
    torch.manual_seed(0)
    vectors = F.normalize(torch.randn(4, 2, 6), dim=-1)
    group = torch.tensor([[0, 0], [1, 2], [0, 0], [3, 3]])
    label = torch.tensor([1, 0, 1, 1])
    weight = torch.full((4,), 1 / 4)
    flat, of = vectors.reshape(8, 6), group.reshape(8).tolist()
    expected = 0.0
    for row in (0, 2, 3):
        for one, partner in ((2 * row, 2 * row + 1), (2 * row + 1, 2 * row)):
            seen = [j for j in range(8) if of[j] != of[one] or j == partner]
            scores = {j: math.exp(float(flat[one] @ flat[j]) / TEMPERATURE) for j in seen}
            expected -= math.log(scores[partner] / sum(scores.values())) / 4
    assert float(contrast(vectors, group, label, weight)) == pytest.approx(expected, rel=1e-4)
    assert float(contrast(vectors, group, 0 * label, weight)) == 0


def test_all_weights_are_trained_and_finite():
    """One example, an empty text, two equal texts."""
    torch.manual_seed(0)
    model = Comparer(CFG, 2).train()
    data = ComparisonData([("", "t1 t2"), ("t1", "t1")], np.array([0, 1]), TOKENIZER, 12)
    for rows in ([0], [0, 1]):
        logits, vectors = model(*tensors(data, rows))
        batch = {k: torch.from_numpy(x) for k, x in data.batch(np.array(rows)).items()}
        loss = contrast(vectors, batch["group"], batch["label"], batch["weight"])
        (F.cross_entropy(logits, batch["label"]) + loss).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    untrained = {name for name, p in model.named_parameters() if p.grad is None}
    assert not untrained


def test_only_bert_computes_in_bfloat16(model):
    data = ComparisonData([("t1 t2 t3", "t4 t5"), ("t6", "t7 t8")], None, TOKENIZER, 12)
    with torch.no_grad():
        plain, _ = model(*tensors(data, [0, 1]))
        with torch.autocast("cpu", torch.bfloat16):
            rough, vectors = model(*tensors(data, [0, 1]))
    assert rough.dtype == vectors.dtype == torch.float32
    assert not torch.equal(plain, rough)
    assert torch.allclose(plain, rough, atol=0.1)
    others = torch.arange(4).view(2, 2), torch.ones(2, dtype=torch.int64), torch.ones(2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrast(vectors, *others)
    assert torch.equal(loss, contrast(vectors, *others))
