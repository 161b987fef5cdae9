"""models.py against Hugging Face's BERT, and the settings of a model."""

import json
import math

import pytest
import torch
import transformers
from conftest import shake
from hypothesis import given, settings
from hypothesis import strategies as st

import models
import utils
from formats.bert import hugging_face_name

SIZES = {
    "dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "dim_ff": 72,
    "p_drop_hidden": 0.1,
    "p_drop_attn": 0.1,
    "max_len": 40,
    "n_segments": 2,
}
VOCAB_SIZE = 101


def config(**changes) -> models.Config:
    return models.Config(**{**SIZES, "vocab_size": VOCAB_SIZE, **changes})


def make_twins(dtype: torch.dtype, p_drop: float = 0.0):
    """Return our model and Hugging Face's with the same weights."""
    theirs = transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=SIZES["dim"],
            num_hidden_layers=SIZES["n_layers"],
            num_attention_heads=SIZES["n_heads"],
            intermediate_size=SIZES["dim_ff"],
            max_position_embeddings=SIZES["max_len"],
            type_vocab_size=SIZES["n_segments"],
            hidden_act="gelu",
            layer_norm_eps=1e-12,
            hidden_dropout_prob=p_drop,
            attention_probs_dropout_prob=0.0,
        )
    ).to(dtype)
    shake(theirs)
    weights = theirs.state_dict()
    ours = models.BertModel4Pretrain(config(p_drop_hidden=p_drop, p_drop_attn=0.0)).to(dtype)
    ours.load_state_dict({key: weights[hugging_face_name(key)] for key in ours.state_dict()})
    return ours, theirs


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["float32", "float64"])
def twins(request):
    """The two models and their input."""
    ours, theirs = (model.eval() for model in make_twins(request.param))

    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([40, 31, 7, 1])
    place = torch.arange(40).expand(4, 40)
    mask = (place < lengths[:, None]).long()
    batch = {
        "ids": torch.randint(VOCAB_SIZE, (4, 40), generator=generator) * mask,
        "segments": (place >= lengths[:, None] // 2).long() * mask,
        "mask": mask,
        "masked_pos": torch.stack([torch.randperm(40, generator=generator)[:6] for _ in lengths])
        % lengths[:, None],
    }
    return ours, theirs, batch


def run_both(twins):
    ours, theirs, batch = twins
    lm, clsf = ours(batch["ids"], batch["segments"], batch["mask"], batch["masked_pos"])
    out = theirs(
        input_ids=batch["ids"],
        token_type_ids=batch["segments"],
        attention_mask=batch["mask"],
        output_hidden_states=True,
    )
    at = batch["masked_pos"][:, :, None].expand(-1, -1, VOCAB_SIZE)
    return (lm, clsf), (out.prediction_logits.gather(1, at), out.seq_relationship_logits), out


def test_outputs_equal_hugging_faces(twins):
    ours, _, batch = twins
    with torch.no_grad():
        mine, hf, out = run_both(twins)
        hidden = ours.transformer(batch["ids"], batch["segments"], batch["mask"])
    assert mine[0].shape == (4, 6, VOCAB_SIZE)
    assert mine[1].shape == (4, 2)
    real = batch["mask"].bool()
    tolerance = {"rtol": 0, "atol": 1e-5 if hidden.dtype == torch.float32 else 1e-12}
    torch.testing.assert_close(hidden[real], out.hidden_states[-1][real], **tolerance)
    torch.testing.assert_close(mine, hf, **tolerance)


@pytest.mark.parametrize("twins", [torch.float64], indirect=True)
def test_every_gradient_equals_hugging_faces(twins):
    ours, theirs, _ = twins
    ours.zero_grad()
    theirs.zero_grad()
    for lm, clsf in run_both(twins)[:2]:
        (lm.log_softmax(-1)[..., 3].mean() + clsf.log_softmax(-1)[:, 0].mean()).backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        hf = gradients[hugging_face_name(name)]
        torch.testing.assert_close(p.grad, hf, rtol=1e-9, atol=1e-12, msg=name)
        # A key's bias adds the same to all scores of a query, so it has no gradient.
        assert p.grad.abs().max() > 1e-6 or name.endswith("proj_k.bias")


class Dropout(torch.nn.Module):
    """Our dropout, to replace PyTorch's in Hugging Face's model."""

    def forward(self, x):
        return models.dropout(x, 0.5)


def test_hidden_dropout_is_where_hugging_faces_is():
    ours, theirs = make_twins(torch.float64, p_drop=0.5)
    theirs.bert.embeddings.dropout = Dropout()
    for layer in theirs.bert.encoder.layer:
        layer.attention.output.dropout = layer.output.dropout = Dropout()
    ids = torch.arange(24).reshape(2, 12)
    torch.manual_seed(4)
    mine = ours.train().transformer(ids, ids % 2)
    torch.manual_seed(4)  # the same random numbers are used in the same places
    hf = theirs.train().bert(input_ids=ids, token_type_ids=ids % 2).last_hidden_state
    torch.testing.assert_close(mine, hf, rtol=0, atol=1e-12)


def test_bfloat16_is_near_float32(twins):
    """Autocast rounds to 8 bits: logits stay within 3 %, gradients point the same way."""
    ours, _, batch = twins
    if next(ours.parameters()).dtype == torch.float64:
        pytest.skip("autocast is for float32")
    arguments = (batch["ids"], batch["segments"], batch["mask"], batch["masked_pos"])
    found = []
    for rough in (False, True):
        ours.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=rough):
            lm, clsf = ours(*arguments)
        loss = lm.float().logsumexp(-1).sum() + clsf.float()[:, 0].sum()
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in ours.parameters()])
        found.append((lm.float(), clsf.float(), gradient))
    for plain, rough in list(zip(*found, strict=True))[:2]:
        assert (plain - rough).abs().max() < 0.03 * plain.abs().max()
    assert torch.cosine_similarity(found[0][2], found[1][2], dim=0) > 0.995


def test_state_dict_keys_are_those_of_the_lineage():
    model = models.BertModel4Pretrain(config(n_layers=2))
    both = ("weight", "bias")
    expected = {f"transformer.embed.{t}_embed.weight" for t in ("tok", "pos", "seg")}
    expected |= {f"transformer.embed.norm.{p}" for p in ("gamma", "beta")}
    for i in range(2):
        block = f"transformer.blocks.{i}"
        expected |= {f"{block}.attn.proj_{x}.{p}" for x in "qkv" for p in both}
        expected |= {f"{block}.{x}.{p}" for x in ("proj", "pwff.fc1", "pwff.fc2") for p in both}
        expected |= {f"{block}.norm{n}.{p}" for n in (1, 2) for p in ("gamma", "beta")}
    expected |= {f"{x}.{p}" for x in ("fc", "linear", "classifier") for p in both}
    expected |= {"norm.gamma", "norm.beta", "decoder.weight", "decoder_bias"}
    assert set(model.state_dict()) == expected


def test_the_decoder_is_the_token_embedding_also_after_loading():
    model = models.BertModel4Pretrain(config())
    other = models.BertModel4Pretrain(config())
    model.load_state_dict(other.state_dict())
    assert model.decoder.weight is model.transformer.embed.tok_embed.weight
    names = [name for name, _ in model.named_parameters()]
    assert "decoder.weight" not in names  # one parameter, so one update by the optimizer
    assert torch.equal(model.decoder.weight, other.decoder.weight)


@pytest.fixture(scope="module")
def shaken():
    torch.manual_seed(0)
    model = models.Transformer(config()).double().eval()
    shake(model)
    return model


@settings(deadline=None, max_examples=30)
@given(length=st.integers(1, 39), padding=st.integers(1, 39), seed=st.integers(0, 1000))
def test_padding_changes_nothing(shaken, length, padding, seed):
    padded = min(length + padding, 40)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB_SIZE, (1, 40), generator=generator)
    segments = ids % 2
    mask = (torch.arange(padded) < length).long()[None]
    with torch.no_grad():
        alone = shaken(ids[:, :length], segments[:, :length])
        inside = shaken(ids[:, :padded], segments[:, :padded], mask)
    torch.testing.assert_close(inside[:, :length], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_a_mask_of_ones_is_no_mask(shaken, dtype):
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        masked = shaken(ids, ids % 2, torch.ones(2, 12, dtype=dtype))
        torch.testing.assert_close(masked, shaken(ids, ids % 2), rtol=0, atol=1e-12)


def test_a_sequence_of_padding_only_is_finite(shaken):
    ids = torch.zeros(2, 5, dtype=torch.long)
    assert shaken(ids, ids, torch.zeros(2, 5)).isfinite().all()


def test_position_and_segment_matter(shaken):
    ids = torch.full((1, 6), 7)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1]])
    with torch.no_grad():
        one, two = shaken(ids, ids * 0), shaken(ids, segments)
    assert (one[:, 1:] - one[:, :-1]).abs().amax(-1).min() > 1e-3
    assert (one - two).abs().amax(-1).min() > 1e-3


def test_layer_norm_is_the_formula_with_a_small_epsilon():
    norm = models.LayerNorm(8).double()
    shake(norm)
    x = 1e-5 * torch.randn(3, 8, dtype=torch.float64)  # an epsilon of 1e-5 would show
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-12).sqrt()
    torch.testing.assert_close(norm(x), norm.gamma * expected + norm.beta)


@pytest.mark.parametrize("p", ["p_drop_hidden", "p_drop_attn"])
def test_dropout_is_on_in_training_only(p):
    only = config(**{"p_drop_hidden": 0.0, "p_drop_attn": 0.0, p: 0.5})
    model = models.Transformer(only)
    shake(model)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert not torch.equal(model(ids, ids % 2), model(ids, ids % 2))
        model.eval()
        assert torch.equal(model(ids, ids % 2), model(ids, ids % 2))


@pytest.mark.parametrize(("std", "given"), [(0.02, {}), (0.05, {"init_std": 0.05})])
def test_initial_weights_are_normal_with_the_deviation_named(std, given):
    torch.manual_seed(3)
    model = models.BertModel4Pretrain(
        config(dim=128, dim_ff=256, max_len=512, vocab_size=3000, n_segments=50, **given)
    )
    for name, p in model.named_parameters():
        if name.endswith(("bias", "beta")):
            assert (p == 0).all(), name
        elif name.endswith("gamma"):
            assert (p == 1).all(), name
        else:
            bound = 5 * std / math.sqrt(p.numel())  # five standard errors
            assert abs(p.mean()) < bound, name
            assert abs(p.std() - std) < bound, name
            # A normal distribution has 4.6 % beyond two deviations; a truncated one has none.
            assert (p.abs() > 2 * std).float().mean() > 0.02, name


def test_a_long_sequence_is_refused_with_both_numbers():
    model = models.Transformer(config())
    ids = torch.zeros(1, 41, dtype=torch.long)
    with pytest.raises(ValueError, match=r"41 tokens.*max_len 40"):
        model(ids, ids)


def test_a_model_needs_the_vocabulary_size():
    with pytest.raises(ValueError, match="vocab_size"):
        models.Transformer(models.Config(**SIZES))


# --- Config


@pytest.mark.parametrize("size", ["tiny", "small", "medium", "base"])
def test_shipped_configs_are_read(size, request):
    cfg = models.Config.from_json(request.config.rootpath / "config" / f"bert_{size}.json")
    assert cfg.vocab_size is None
    assert cfg.max_len == 512


def test_bert_base_has_as_many_parameters_as_googles(request):
    path = request.config.rootpath / "config" / "bert_base.json"
    cfg = models.Config.from_json(path).with_vocab_size(30522, path, "vocab.txt")
    with torch.device("meta"):
        model = models.Transformer(cfg)
        pooler = torch.nn.Linear(cfg.dim, cfg.dim)
    count = sum(p.numel() for m in (model, pooler) for p in m.parameters())
    assert count == 109_482_240


def test_a_config_is_read_as_written(tmp_path):
    path = tmp_path / "cfg.json"
    path.write_text(json.dumps({**SIZES, "vocab_size": 77}))
    assert models.Config.from_json(path) == config(vocab_size=77)


@pytest.mark.parametrize("key", list(SIZES))
def test_each_key_of_a_config_is_required_and_checked(tmp_path, key):
    path = tmp_path / "cfg.json"
    probability = key.startswith("p_")
    wrong = ["1", None, [1], True] + ([-0.1, 1.0, 2] if probability else [0, -1, 1.5, 2.0])
    for value in wrong:
        path.write_text(json.dumps({**SIZES, key: value}))
        with pytest.raises(utils.UserError) as error:
            models.Config.from_json(path)
        assert str(path) in str(error.value)
        assert f"'{key}'" in str(error.value), value
        assert "\n" not in str(error.value)
    path.write_text(json.dumps({k: v for k, v in SIZES.items() if k != key}))
    with pytest.raises(utils.UserError, match=f"cfg.json.*'{key}' is missing"):
        models.Config.from_json(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 4}, "unknown key 'n_head'"),
        ({"vocab_size": 0}, "'vocab_size' is 0"),
        ({"vocab_size": "many"}, "'vocab_size'"),
        ({"n_heads": 5}, "'dim' 32 is not divisible by 'n_heads' 5"),
        ({"p_drop_attn": float("nan")}, "'p_drop_attn'"),
    ],
)
def test_other_faults_of_a_config_are_named(tmp_path, changes, message):
    path = tmp_path / "cfg.json"
    path.write_text(json.dumps({**SIZES, **changes}))
    with pytest.raises(utils.UserError) as error:
        models.Config.from_json(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_the_vocabulary_fills_the_size_in():
    assert models.Config(**SIZES).with_vocab_size(7, "m.json", "v.txt") == config(vocab_size=7)
    assert config().with_vocab_size(VOCAB_SIZE, "m.json", "v.txt") == config()
    with pytest.raises(utils.UserError, match=r"m\.json .*101.*v\.txt .*7"):
        config().with_vocab_size(7, "m.json", "v.txt")


def test_a_config_does_not_change():
    with pytest.raises(AttributeError):
        config().dim = 64


def rotary(**changes):
    sizes = SIZES | {"positions": "rotary", "vocab_size": 20} | changes
    torch.manual_seed(0)
    return models.Transformer(models.Config(**sizes)).double().eval()


def test_rotation_is_that_of_the_paper():
    """Each pair of elements, as a complex number, is rotated by position times frequency."""
    x = torch.randn(2, 7, 3, 6, dtype=torch.float64)
    turned = models.rotate(x)
    frequency = 10000.0 ** (-2 * torch.arange(3) / 6)
    for position in range(7):
        pairs = torch.complex(x[:, position, :, :3], x[:, position, :, 3:])
        pairs = pairs * torch.polar(torch.ones(3), position * frequency)
        expected = torch.cat([pairs.real, pairs.imag], -1)
        assert torch.allclose(turned[:, position], expected, atol=1e-6)
    # A product depends only on the distance.
    q, k = torch.randn(2, 1, 1, 1, 6, dtype=torch.float64).expand(2, 1, 9, 1, 6)
    products = (models.rotate(q)[0, :, 0] * models.rotate(k)[0].roll(-2, 0)[:, 0]).sum(-1)[:7]
    assert torch.allclose(products, products[:1].expand(7), atol=1e-6)


def test_rotary_positions_tell_orders_apart():
    ids = torch.arange(5, 11)[None]
    swapped = ids[:, [1, 0, 2, 3, 4, 5]]
    zeros = torch.zeros_like(ids)
    model = rotary(max_len=10)
    h, other = model(ids, zeros), model(swapped, zeros)
    assert (h[:, 0] - other[:, 1]).abs().max() > 1e-6  # would be equal if the order did not matter
    assert "embed.pos_embed.weight" not in model.state_dict()
    assert (
        "embed.pos_embed.weight"
        in models.Transformer(models.Config(**SIZES | {"vocab_size": 20})).state_dict()
    )


def test_rotary_heads_have_an_even_width(tmp_path):
    sizes = SIZES | {"dim": 9, "n_heads": 3, "positions": "rotary"}
    (tmp_path / "m.json").write_text(json.dumps(sizes))
    with pytest.raises(utils.UserError, match=r"rotary 'positions' need heads .* of even width"):
        models.Config.from_json(tmp_path / "m.json")


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("precision", [torch.float64, torch.float32, torch.bfloat16])
def test_the_last_block_at_some_positions_only(positions, masked, precision):
    """Hidden states and gradients are those of a block that computes all positions."""
    torch.manual_seed(0)
    model = models.Transformer(config(positions=positions, p_drop_hidden=0.0, p_drop_attn=0.0))
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn_like(p)
    exact = precision == torch.float64
    model = model.double() if exact else model
    ids = torch.randint(VOCAB_SIZE, (3, 20))
    mask = (torch.arange(20) < torch.tensor([[20], [9], [1]])).long() if masked else None
    at = torch.tensor([[0, 3, 3, 19], [0, 8, 1, 0], [0, 0, 0, 0]])  # padded with [CLS]
    weight = torch.randn(3, 4, model.embed.norm.gamma.numel())
    found = []
    for where in (None, at):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            h = model(ids, ids % 2, mask, where)
        h = models.take(h, at) if where is None else h
        (h * weight).sum().backward()
        found.append([h, *(p.grad for p in model.parameters())])
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.03}[precision]
    for whole, some in zip(*found, strict=True):
        # Gradients of keys' biases are 0 except for rounding.
        assert (whole - some).norm() <= tolerance * whole.norm().clamp(min=1)
