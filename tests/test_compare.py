"""compare.py: windows of long texts; best matches of tokens, against loops over the definition."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from compare import KINDS, WINDOWS, Comparer, ComparisonData, _standardise
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
    mask = batch["input_mask"].bool()
    with torch.no_grad():
        found = model.features(model.tokens(batch["input_ids"], mask), mask)[0]
        sides = []
        for text in (a, b):
            vectors = []
            words = text.split()
            for start in range(0, len(words), 6):
                window = ["[CLS]", *words[start : start + 6], "[SEP]"]
                ids = torch.tensor([TOKENIZER.convert_tokens_to_ids(window)])
                h = model.transformer(ids, torch.zeros_like(ids))[0]
                vectors += [
                    model.project(torch.cat([hidden, own]))
                    for hidden, own in zip(h, model.identity(ids[0]), strict=True)
                ]
            sides.append(vectors)
        averages, sizes = [], []
        for one, other in (sides, sides[::-1]):
            best = [max(F.cosine_similarity(v, w, dim=0) for w in other) for v in one]
            weights = torch.stack([model.importance(v) for v in one]).exp()  # (T, KINDS)
            total = weights.sum(0)
            averages.append(sum(w * m for w, m in zip(weights, best, strict=True)) / total)
            sizes.append(total.log())
    (x, y), (m, n) = averages, sizes
    expected = torch.cat([x + y, (x - y).abs(), torch.minimum(x, y), (m - n).abs()])
    assert found.shape == (4 * KINDS,)
    assert torch.allclose(found, expected, atol=1e-5)


def test_equal_texts_match_wholly(model):
    data = ComparisonData([("t1 t2 t3 " * 9, "t1 t2 t3 " * 9)], None, TOKENIZER, 12)
    batch = tensors(data, [0])
    mask = batch["input_mask"].bool()
    with torch.no_grad():
        x = model.features(model.tokens(batch["input_ids"], mask), mask)[0].view(4, KINDS)
    expected = torch.tensor([2.0, 0.0, 1.0, 0.0])[:, None].expand(4, KINDS)
    assert torch.allclose(x, expected, atol=1e-5)


def test_standardised_layer_is_the_layer_on_standardised_inputs():
    torch.manual_seed(0)
    layer, inputs = torch.nn.Linear(5, 3), torch.randn(100, 5) * 4 + 9
    with torch.no_grad():
        expected = layer((inputs - inputs.mean(0)) / inputs.std(0))
        _standardise(layer, inputs)
        assert torch.allclose(layer(inputs), expected, atol=1e-5)


def test_calibrated_model_tells_tokens_apart():
    """A large common direction in the hidden states hides no difference any more."""
    torch.manual_seed(0)
    model = Comparer(CFG, 2)
    with torch.no_grad():
        model.transformer.blocks[-1].norm2.beta += 20
        model.identity.weight *= 0.01
    words = [" ".join(np.random.default_rng(i).choice(VOCAB[5:], 20)) for i in range(40)]
    batch = tensors(
        ComparisonData(zip(words[:20], words[20:], strict=True), None, TOKENIZER, 12), range(20)
    )
    mask = batch["input_mask"].bool()

    def alike():
        with torch.no_grad():
            tokens = model.tokens(batch["input_ids"], mask)[mask[mask[..., 0]]]
            v = F.normalize(model.project(tokens), dim=-1)
            return float((v @ v.T).mean())

    assert alike() > 0.9
    model.calibrate(batch)
    assert abs(alike()) < 0.1
