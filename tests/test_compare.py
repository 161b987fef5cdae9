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
from compare import KINDS, WINDOWS, Comparer, ComparisonData, best_matches, one_to_one_matches
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


def encoded(model, pairs, max_len=12):
    data = ComparisonData(pairs, None, TOKENIZER, max_len)
    data.encode(model.transformer.eval(), "float32")
    return data


def tensors(data, rows):
    batch = {name: torch.from_numpy(x) for name, x in data.batch(np.array(rows)).items()}
    return {name: batch[name] for name in ("input_ids", "input_mask", "hidden")}


def logits(model, data, rows):
    with torch.no_grad():
        return model(**tensors(data, rows))


def features(model, batch):
    tokens = model.tokens(batch["input_ids"], batch["hidden"])
    return model.features(tokens, batch["input_mask"].bool())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Comparer(CFG, 2).eval()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), st.integers(5, 16))
def test_hidden_states_are_those_of_windows(pairs, max_len):
    torch.manual_seed(0)
    model = Comparer(CFG, 2).eval()
    data = encoded(model, pairs, max_len)
    assert len(data.texts) == len({text for pair in pairs for text in pair})  # each once
    batch = data.batch(np.arange(len(pairs)))
    room = max_len - 2
    for row, pair in enumerate(pairs):
        for side, text in enumerate(pair):
            words = text.split()[: WINDOWS * room]
            used = batch["input_mask"][row, side].astype(bool)
            assert used.tolist() == [True] * len(words) + [False] * (len(used) - len(words))
            ids = batch["input_ids"][row, side]
            assert TOKENIZER.convert_ids_to_tokens(ids[used]) == words
            assert not ids[~used].any()
            for start in range(0, len(words), room):
                window = ["[CLS]", *words[start : start + room], "[SEP]"]
                x = torch.tensor([TOKENIZER.convert_tokens_to_ids(window)])
                with torch.no_grad():
                    h = model.transformer(x, torch.zeros_like(x))[0, 1:-1]
                found = torch.from_numpy(batch["hidden"][row, side, start : start + len(h)])
                assert torch.allclose(found.float(), h, atol=2e-3)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(texts, texts), min_size=2, max_size=4))
def test_neither_the_other_examples_nor_the_order_of_texts_matter(pairs):
    torch.manual_seed(0)
    model = Comparer(CFG, 2).eval()
    data = encoded(model, pairs)
    together = logits(model, data, range(len(pairs)))
    for row in range(len(pairs)):
        assert torch.allclose(together[row], logits(model, data, [row])[0], atol=1e-5)
    swapped = encoded(model, [(b, a) for a, b in pairs])
    assert torch.allclose(together, logits(model, swapped, range(len(pairs))), atol=1e-5)


def test_features_by_definition(model):
    """One token after the other: its vector, its best match, its weight."""
    a, b = "t1 t2 t3 t4 t5 t6 t7 t8 t9 t1 t1", "t3 t4 t11"
    batch = tensors(encoded(model, [(a, b)], 8), [0])
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
                h = h.half().float()  # as it is kept
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
    assert torch.allclose(found, expected, atol=1e-4)


def test_equal_texts_match_wholly(model):
    batch = tensors(encoded(model, [("t1 t2 t3 " * 9, "t1 t2 t3 " * 9)]), [0])
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
    x = torch.tensor([[5, 6, 7]])
    first, second = (model.transformer(x, torch.zeros_like(x)) for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    model(**tensors(encoded(model, [("t1 t2", "t3")]), [0])).sum().backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"project", "importance", "sharpness", "norm", "combine", "classifier"}


def random_pairs(model, n):
    words = [" ".join(np.random.default_rng(i).choice(VOCAB[5:], 20)) for i in range(2 * n)]
    return encoded(model, zip(words[:n], words[n:], strict=True))


def token_rows(model, data):
    """Return project's and importance's inputs, text after text."""
    texts = zip(data.texts, data.hidden, strict=True)
    return [model.tokens(*map(torch.from_numpy, text)) for text in texts]


def calibrate(model, data):
    texts = zip(data.texts, data.hidden, strict=True)
    model.calibrate(tuple(map(torch.from_numpy, text)) for text in texts)


def test_calibrated_layers_are_the_layers_on_standardised_inputs():
    torch.manual_seed(0)
    model = Comparer(CFG, 2)
    data = random_pairs(model, 20)
    with torch.no_grad():
        x = torch.cat(token_rows(model, data))
        x_standard = (x - x.mean(0)) / x.std(0, correction=0)
        expected = [layer(x_standard) for layer in (model.project, model.importance)]
        calibrate(model, data)
        for layer, values in zip((model.project, model.importance), expected, strict=True):
            assert torch.allclose(layer(x), values, atol=1e-4)


def test_calibrated_model_tells_tokens_apart():
    """A large common direction in the hidden states hides no difference any more."""
    torch.manual_seed(0)
    model = Comparer(CFG, 2)
    with torch.no_grad():
        model.transformer.blocks[-1].norm2.beta += 20
        model.identity.weight *= 0.01
    data = random_pairs(model, 20)

    def alike():
        with torch.no_grad():
            v = F.normalize(model.project(torch.cat(token_rows(model, data))), dim=-1)
            return float((v @ v.T).mean())

    assert alike() > 0.9
    calibrate(model, data)
    assert abs(alike()) < 0.1


def test_texts_without_tokens_leave_the_start_as_it_is(model):
    before = model.project.weight.clone()
    calibrate(model, encoded(model, [("", "")]))
    assert torch.equal(model.project.weight, before)


def test_one_example_and_an_empty_text_can_be_trained_on():
    torch.manual_seed(0)
    model = Comparer(CFG, 2).train()
    data = encoded(model, [("", "t1 t2"), ("t1", "")])
    for rows in ([0], [0, 1]):
        out = model(**tensors(data, rows))
        out.sum().backward()
        assert out.isfinite().all()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_bert_alone_computes_in_bfloat16(model):
    pairs = [("t1 t2 t3", "t4 t5"), ("t6", "t7 t8")]
    plain, rough = (ComparisonData(pairs, None, TOKENIZER, 12) for _ in range(2))
    plain.encode(model.transformer, "float32")
    rough.encode(model.transformer, "bfloat16")
    assert not np.array_equal(plain.hidden[0], rough.hidden[0])
    assert np.allclose(plain.hidden[0], rough.hidden[0], atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        out = logits(model, plain, [0, 1])
    assert out.dtype == torch.float32
    assert torch.equal(out, logits(model, plain, [0, 1]))
