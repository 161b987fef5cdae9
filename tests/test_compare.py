"""compare.py: windows of long texts; best matches of tokens, against loops over the definition."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from compare import (
    KINDS,
    WINDOWS,
    Comparer,
    ComparisonData,
    best_matches,
    inner,
    one_to_one_matches,
)
from tokenization import SPECIAL_TOKENS, CorpusTokenizer

VOCAB = [*SPECIAL_TOKENS, *(f"t{i}" for i in range(20))]
TOKENIZER = CorpusTokenizer({token: i for i, token in enumerate(VOCAB)})
CFG = models.Config(
    dim=24,
    n_layers=2,
    n_heads=3,
    dim_ff=40,
    p_drop_hidden=0.0,
    p_drop_attn=0.0,
    max_len=16,
    n_segments=2,
    vocab_size=len(VOCAB),
)
texts = st.lists(st.sampled_from(VOCAB[5:]), max_size=40).map(" ".join)


def tensors(data, rows):
    return {name: torch.from_numpy(x) for name, x in data.batch(np.array(rows)).items()}


def logits(model, data, rows):
    batch = tensors(data, rows)
    with torch.no_grad():
        return model(batch["input_ids"], batch["input_mask"])


def features(model, batch):
    used = batch["input_mask"][..., 0].bool()
    tokens = model.tokens(batch["input_ids"][used], batch["input_mask"][used])
    return model.features(tokens, batch["input_mask"])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Comparer(CFG, 2).eval()


@given(texts, texts, st.integers(5, 16))
def test_windows_hold_the_text(a, b, max_len):
    batch = ComparisonData([(a, b)], None, TOKENIZER, max_len).batch(np.array([0]))
    assert batch["input_ids"].shape[-1] <= max_len
    for text, ids, mask in zip((a, b), batch["input_ids"][0], batch["input_mask"][0], strict=True):
        read = []
        for window, used in zip(ids, mask.astype(bool), strict=True):
            tokens = TOKENIZER.convert_ids_to_tokens(window[used])
            assert set(window[~used]) <= {0}
            if tokens:
                assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
                read += tokens[1:-1]
        assert read == text.split()[: WINDOWS * (max_len - 2)]
        assert mask[0, :2].all()  # an empty text is a window, too


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(texts, texts), min_size=2, max_size=4))
def test_neither_the_other_examples_nor_the_order_of_texts_matter(pairs):
    torch.manual_seed(0)
    model = Comparer(CFG, 2).eval()
    data = ComparisonData(pairs, None, TOKENIZER, 12)
    together = logits(model, data, range(len(pairs)))
    for row in range(len(pairs)):
        assert torch.allclose(together[row], logits(model, data, [row])[0], atol=1e-5)
    swapped = ComparisonData([(b, a) for a, b in pairs], None, TOKENIZER, 12)
    assert torch.allclose(together, logits(model, swapped, range(len(pairs))), atol=1e-5)


def test_features_by_definition(model):
    """One token after the other: its vector, its best match, its weight."""
    a, b = "t1 t2 t3 t4 t5 t6 t7 t8 t9 t1 t1", "t3 t4 t11"
    data = ComparisonData([(a, b)], None, TOKENIZER, 8)
    batch = tensors(data, [0])
    with torch.no_grad():
        found = features(model, batch)[0]
        sides = []
        for text in (a, b):
            vectors = []
            words = text.split()
            for start in range(0, len(words), 6):
                window = ["[CLS]", *words[start : start + 6], "[SEP]"]
                ids = torch.tensor([TOKENIZER.convert_tokens_to_ids(window)])
                h = model.transformer(ids, torch.zeros_like(ids))[0]
                own = model.identity(ids[0])
                vectors += [torch.cat([h[i], own[i]]) for i in range(1, len(window) - 1)]
            sides.append(vectors)
        best, matched, sizes = [], [], []
        for one, other in (sides, sides[::-1]):
            cosine = [
                [F.cosine_similarity(model.project(v), model.project(w), dim=0) for w in other]
                for v in one
            ]
            sharp = [[(c * model.sharpness.exp()).exp() for c in row] for row in cosine]
            columns = [sum(row[j] for row in sharp) for j in range(len(other))]
            share = [
                sum(min(x / sum(row), x / all_) for x, all_ in zip(row, columns, strict=True))
                for row in sharp
            ]
            weights = torch.stack([model.importance(v) for v in one]).exp()  # (T, KINDS)
            total = weights.sum(0)
            for averages, values in ((best, [max(row) for row in cosine]), (matched, share)):
                averages.append(sum(w * m for w, m in zip(weights, values, strict=True)) / total)
            sizes.append(total.log1p())
    expected = []
    for x, y in (best, matched):
        expected += [x + y, (x - y).abs(), torch.minimum(x, y)]
    expected = torch.cat([*expected, (sizes[0] - sizes[1]).abs(), sizes[0] + sizes[1]])
    assert found.shape == (8 * KINDS,)
    assert torch.allclose(found, expected, atol=1e-5)


def test_equal_texts_match_wholly(model):
    data = ComparisonData([("t1 t2 t3 " * 9, "t1 t2 t3 " * 9)], None, TOKENIZER, 12)
    batch = tensors(data, [0])
    with torch.no_grad():
        x = features(model, batch)[0].view(8, KINDS)
    best, matched, sizes = x[:3], x[3:6], x[6]
    expected = torch.tensor([2.0, 0.0, 1.0])[:, None].expand(3, KINDS)
    assert torch.allclose(best, expected, atol=1e-5)
    assert torch.allclose(matched[0], 2 * matched[2])  # the same from both sides
    assert torch.allclose(torch.cat([matched[1], sizes]), torch.zeros(2 * KINDS), atol=1e-5)


words = st.lists(st.sampled_from("abc"), min_size=1, max_size=7)


@given(words, words, st.integers(0, 3))
def test_matches_of_words_are_the_intersection_of_bags(a, b, padding):
    mask = torch.zeros(1, 2, 7 + padding, dtype=torch.bool)
    mask[0, 0, : len(a)] = mask[0, 1, : len(b)] = True
    similarity = torch.rand(1, 7 + padding, 7 + padding)  # what padding is like says nothing
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            similarity[0, i, j] = float(x == y)
    best = best_matches(similarity, mask)[0]
    assert best[0, : len(a)].tolist() == [float(x in b) for x in a]
    assert best[1, : len(b)].tolist() == [float(x in a) for x in b]
    found = one_to_one_matches(similarity * 200, mask)[0]
    assert not found[~mask[0]].any()
    common = Counter(a) & Counter(b)
    alone = not common  # then all similarities are alike, and something is matched anyway
    for text, shares in zip((a, b), found, strict=True):
        for word in set(text) if not alone else ():
            mine = sum(share for x, share in zip(text, shares.tolist(), strict=False) if x == word)
            if word in common:
                assert mine == pytest.approx(common[word], abs=1e-4)


@pytest.mark.parametrize("mode", [True, False])
def test_training_leaves_bert_as_it_is(mode):
    torch.manual_seed(0)
    model = Comparer(dataclasses.replace(CFG, p_drop_hidden=0.5), 2).train(mode)
    batch = tensors(ComparisonData([("t1 t2", "t3")], None, TOKENIZER, 12), [0])
    ids, mask = (batch[name][batch["input_mask"][..., 0] == 1] for name in batch if "input" in name)
    first, second = (model.tokens(ids, mask) for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    model(batch["input_ids"], batch["input_mask"]).sum().backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"project", "importance", "sharpness", "norm", "combine", "classifier"}


def random_pairs(n):
    words = [" ".join(np.random.default_rng(i).choice(VOCAB[5:], 20)) for i in range(2 * n)]
    return ComparisonData(zip(words[:n], words[n:], strict=True), None, TOKENIZER, 12)


def token_rows(model, batch):
    """Return project's and importance's inputs."""
    used = batch["input_mask"][..., 0].bool()
    tokens = model.tokens(batch["input_ids"][used], batch["input_mask"][used])
    return tokens[inner(batch["input_mask"])[used]]


def test_calibrated_layers_are_the_layers_on_standardised_inputs():
    torch.manual_seed(0)
    model, data = Comparer(CFG, 2), random_pairs(20)
    batch = tensors(data, range(20))
    with torch.no_grad():
        x = token_rows(model.eval(), batch)
        x_standard = (x - x.mean(0)) / x.std(0, correction=0)
        expected = [layer(x_standard) for layer in (model.project, model.importance)]
        model.calibrate([tensors(data, range(12)), tensors(data, range(12, 20))])
        for layer, values in zip((model.project, model.importance), expected, strict=True):
            assert torch.allclose(layer(x), values, atol=1e-4)


def test_calibrated_model_tells_tokens_apart():
    """A large common direction in the hidden states hides no difference any more."""
    torch.manual_seed(0)
    model = Comparer(CFG, 2)
    with torch.no_grad():
        model.transformer.blocks[-1].norm2.beta += 20
        model.identity.weight *= 0.01
    batch = tensors(random_pairs(20), range(20))

    def alike():
        with torch.no_grad():
            v = F.normalize(model.project(token_rows(model, batch)), dim=-1)
            return float((v @ v.T).mean())

    assert alike() > 0.9
    model.calibrate([batch])
    assert abs(alike()) < 0.1


def test_one_example_and_an_empty_text_can_be_trained_on():
    torch.manual_seed(0)
    model = Comparer(CFG, 2).train()
    batch = tensors(ComparisonData([("", "t1 t2"), ("t1", "")], None, TOKENIZER, 12), [0, 1])
    for rows in (slice(0, 1), slice(0, 2)):
        out = model(batch["input_ids"][rows], batch["input_mask"][rows])
        out.sum().backward()
        assert out.isfinite().all()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_bert_alone_computes_in_bfloat16(model):
    batch = tensors(random_pairs(20), range(20))
    with torch.no_grad():
        plain = model(batch["input_ids"], batch["input_mask"])
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(batch["input_ids"], batch["input_mask"])
    assert rough.dtype == torch.float32
    assert not torch.equal(plain, rough)
    assert torch.allclose(plain, rough, atol=0.05)
