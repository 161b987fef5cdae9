"""checkpoint.py: .pt files are read safely, TensorFlow's rightly, and into the right model only."""

import collections
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import models
from checkpoint import load_model, load_model_file, load_pt, save_pt
from utils import UserError


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_round_trip(tmp_path):
    content = {"a": torch.arange(3), "b": {"c": [1, 2.5, "x", None, True]}}
    save_pt(content, tmp_path / "x.pt")
    loaded = load_pt(tmp_path / "x.pt")
    assert loaded["a"].tolist() == [0, 1, 2]
    assert loaded["b"] == content["b"]


def test_old_format_is_read(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert load_pt(tmp_path / "x.pt")["a"].tolist() == [1, 1]


@pytest.mark.parametrize("form", ["zip", "old", "pickle", "in a state dict"])
def test_nothing_is_run(tmp_path, form):
    path, target = tmp_path / "x.pt", tmp_path / "made"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Bomb(target)))
    else:
        content = {"w": Bomb(target)} if form == "in a state dict" else Bomb(target)
        torch.save(content, path, _use_new_zipfile_serialization=form != "old")
    with pytest.raises(UserError, match=r"x\.pt is damaged, or holds more than tensors"):
        load_pt(path)
    assert not target.exists()
    if form == "pickle":  # the bomb is live
        pickle.loads(path.read_bytes())
        assert target.exists()


def test_compressed_archive(tmp_path):
    save_pt({"a": torch.zeros(100_000)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as plain,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(UserError, match=r"y\.pt is a compressed archive"):
        load_pt(tmp_path / "y.pt")


def test_missing(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*x\.pt: No such file"):
        load_pt(tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        load_pt(tmp_path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_broken_files_are_user_errors(tmp_path, data):
    path = tmp_path / "x.pt"
    zipped = data.draw(st.booleans())
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    kind = data.draw(st.sampled_from(["cut", "foreign"]))
    if kind == "cut":
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) // 2))])
    else:
        path.write_bytes(data.draw(st.binary(max_size=200)))
    with pytest.raises(UserError, match=r"x\.pt is "):
        load_pt(path)


def test_model_round_trip(tmp_path):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save_pt(model.state_dict(), tmp_path / "x.pt")
    load_model_file(other, tmp_path / "x.pt")
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)


def test_keys_that_do_not_fit_are_named(tmp_path):
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    save_pt({"weight": torch.zeros(2, 4), "extra": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(UserError) as error:
        load_model_file(model, tmp_path / "x.pt")
    message = str(error.value)
    assert "x.pt does not fit the model" in message
    assert "lacks bias" in message
    assert "has unknown extra" in message
    assert "weight (2x4 instead of 2x3)" in message
    assert torch.equal(model.weight, before)


def test_many_keys_are_counted(tmp_path):
    save_pt({}, tmp_path / "x.pt")
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(5)])
    with pytest.raises(UserError, match=r"lacks 0\.weight, 0\.bias, 1\.weight and 7 more$"):
        load_model_file(model, tmp_path / "x.pt")


@pytest.mark.parametrize("content", [[1], {"a": 1}, {1: torch.zeros(1)}, torch.zeros(1)])
def test_no_state_dict(tmp_path, content):
    save_pt(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt is no state dict"):
        load_model_file(nn.Linear(1, 1), tmp_path / "x.pt")


# Sizes that all differ, so that nothing fits in a wrong place.
D, LAYERS, FF, VOCAB, POSITIONS = 24, 2, 40, 53, 30
CFG = models.Config(
    dim=D,
    n_layers=LAYERS,
    n_heads=3,
    dim_ff=FF,
    p_drop_hidden=0.1,
    p_drop_attn=0.1,
    max_len=POSITIONS,
    n_segments=2,
    vocab_size=VOCAB,
)


def google_variables() -> dict[str, np.ndarray]:
    """Random values for all variables that Google's run_pretraining.py leaves, by name."""
    shapes = {
        "bert/embeddings/word_embeddings": (VOCAB, D),
        "bert/embeddings/position_embeddings": (POSITIONS, D),
        "bert/embeddings/token_type_embeddings": (2, D),
        "cls/predictions/output_bias": (VOCAB,),
        "cls/seq_relationship/output_weights": (2, D),
        "cls/seq_relationship/output_bias": (2,),
    }
    dense = {"bert/pooler/dense": (D, D), "cls/predictions/transform/dense": (D, D)}
    norms = ["bert/embeddings/LayerNorm", "cls/predictions/transform/LayerNorm"]
    for i in range(LAYERS):
        layer = f"bert/encoder/layer_{i}"
        for name in ("self/query", "self/key", "self/value", "output/dense"):
            dense[f"{layer}/attention/{name}"] = (D, D)
        dense[f"{layer}/intermediate/dense"] = (D, FF)
        dense[f"{layer}/output/dense"] = (FF, D)
        norms += [f"{layer}/attention/output/LayerNorm", f"{layer}/output/LayerNorm"]
    for name, shape in dense.items():
        shapes |= {f"{name}/kernel": shape, f"{name}/bias": shape[1:]}
    for name in norms:
        shapes |= {f"{name}/gamma": (D,), f"{name}/beta": (D,)}
    rng = np.random.default_rng(0)
    values = {
        name: (rng.normal(0, 0.3, shape) + name.endswith("gamma")).astype(np.float32)
        for name, shape in shapes.items()
    }
    for name in shapes:
        values[f"{name}/adam_m"] = values[f"{name}/adam_v"] = np.zeros(shapes[name], np.float32)
    return values | {"global_step": np.array(1000, np.int64)}


def write_tensorflow(path, variables) -> str:
    tf = pytest.importorskip("tensorflow")
    names = list(variables)
    tf.raw_ops.SaveV2(
        prefix=str(path),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(variables[name]) for name in names],
    )
    return str(path)


@pytest.fixture(scope="module")
def tensorflow_file(tmp_path_factory):
    return write_tensorflow(
        tmp_path_factory.mktemp("google") / "bert_model.ckpt", google_variables()
    )


def hugging_face_twin() -> transformers.BertForPreTraining:
    """Hugging Face's model with the values of `google_variables`, put in by hand."""
    theirs = transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=VOCAB,
            hidden_size=D,
            num_hidden_layers=LAYERS,
            num_attention_heads=3,
            intermediate_size=FF,
            max_position_embeddings=POSITIONS,
        )
    )
    values = {name: torch.from_numpy(v) for name, v in google_variables().items() if v.ndim}
    filled = 0

    def fill(parameter, value):
        nonlocal filled
        assert parameter.shape == value.shape
        parameter.data.copy_(value)
        filled += 1

    def dense(module, scope):
        fill(module.weight, values[f"{scope}/kernel"].T)
        fill(module.bias, values[f"{scope}/bias"])

    def norm(module, scope):
        fill(module.weight, values[f"{scope}/gamma"])
        fill(module.bias, values[f"{scope}/beta"])

    embeddings = theirs.bert.embeddings
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        fill(getattr(embeddings, name).weight, values[f"bert/embeddings/{name}"])
    norm(embeddings.LayerNorm, "bert/embeddings/LayerNorm")
    for i, layer in enumerate(theirs.bert.encoder.layer):
        scope = f"bert/encoder/layer_{i}"
        dense(layer.attention.self.query, f"{scope}/attention/self/query")
        dense(layer.attention.self.key, f"{scope}/attention/self/key")
        dense(layer.attention.self.value, f"{scope}/attention/self/value")
        dense(layer.attention.output.dense, f"{scope}/attention/output/dense")
        norm(layer.attention.output.LayerNorm, f"{scope}/attention/output/LayerNorm")
        dense(layer.intermediate.dense, f"{scope}/intermediate/dense")
        dense(layer.output.dense, f"{scope}/output/dense")
        norm(layer.output.LayerNorm, f"{scope}/output/LayerNorm")
    dense(theirs.bert.pooler.dense, "bert/pooler/dense")
    transform = theirs.cls.predictions.transform
    dense(transform.dense, "cls/predictions/transform/dense")
    norm(transform.LayerNorm, "cls/predictions/transform/LayerNorm")
    fill(theirs.cls.predictions.bias, values["cls/predictions/output_bias"])
    fill(theirs.cls.seq_relationship.weight, values["cls/seq_relationship/output_weights"])
    fill(theirs.cls.seq_relationship.bias, values["cls/seq_relationship/output_bias"])
    assert filled == len(list(theirs.parameters()))
    return theirs.eval()


@pytest.fixture(scope="module")
def batch():
    """Ids, segments, mask of three sequences, two of them padded."""
    lengths = torch.tensor([20, 11, 2])[:, None]
    at = torch.arange(20).expand(3, 20)
    mask = (at < lengths).long()
    ids = torch.randint(VOCAB, (3, 20), generator=torch.Generator().manual_seed(0))
    return ids * mask, (at >= lengths // 2).long() * mask, mask


def assert_equals_twin(ours, batch, next_rows):
    ids, segments, mask = batch
    everywhere = torch.arange(ids.size(1)).expand_as(ids)
    with torch.inference_mode():
        lm, clsf = ours.eval()(ids, segments, mask, everywhere)
        expected = hugging_face_twin()(ids, attention_mask=mask, token_type_ids=segments)
    real = mask.bool()
    torch.testing.assert_close(lm[real], expected.prediction_logits[real], atol=1e-5, rtol=1e-5)
    expected = expected.seq_relationship_logits[:, next_rows]
    torch.testing.assert_close(clsf, expected, atol=1e-5, rtol=1e-5)


def test_tensorflow_checkpoint(tensorflow_file, batch, capsys):
    model = models.BertModel4Pretrain(CFG)
    load_model(model, tensorflow_file)
    n = sum("/adam_" not in name for name in google_variables()) - 1
    assert capsys.readouterr().out.endswith(
        f"bert_model.ckpt: read {n} variables, ignored {n} adam_m, {n} adam_v, global_step\n"
    )
    # Google: 0 is the true next sentence, 1 a random one. Here 1 is the true one.
    assert_equals_twin(model, batch, next_rows=[1, 0])
    assert model.decoder.weight is model.transformer.embed.tok_embed.weight


def test_tensorflow_encoder_only(tensorflow_file, batch, capsys):
    model = models.Transformer(CFG)
    load_model(model, tensorflow_file)
    printed = capsys.readouterr().out
    assert "cls/predictions/output_bias, cls/predictions/transform/LayerNorm/beta" in printed
    ids, segments, mask = batch
    with torch.inference_mode():
        h = model.eval()(ids, segments, mask)
        expected = hugging_face_twin().bert(ids, mask, segments).last_hidden_state
    real = mask.bool()
    torch.testing.assert_close(h[real], expected[real], atol=1e-5, rtol=1e-5)


def test_tensorflow_misfits_are_named(tmp_path):
    variables = google_variables()
    kernel = "bert/encoder/layer_1/intermediate/dense/kernel"
    variables[kernel] = variables[kernel].T.copy()
    del variables["cls/seq_relationship/output_bias"]
    path = write_tensorflow(tmp_path / "bad.ckpt", variables)
    model = models.BertModel4Pretrain(CFG)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_model(model, path)
    message = str(error.value)
    assert "bad.ckpt does not fit the model" in message
    assert f"{kernel} is {FF}x{D}, expected {D}x{FF}" in message
    assert "cls/seq_relationship/output_bias (expected 2) is missing" in message
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    load_model(models.Transformer(models.Config(**{**vars(CFG), "n_layers": 1})), path)
    with pytest.raises(UserError, match=r"encoder/layer_2/\S+ \(expected \S+\) is .* and 14 more$"):
        load_model(models.Transformer(models.Config(**{**vars(CFG), "n_layers": 3})), path)


@pytest.mark.parametrize("part", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize("how", ["cut", "foreign", "flipped", "gone"])
def test_tensorflow_damage(tensorflow_file, tmp_path, part, how):
    for file in Path(tensorflow_file).parent.glob("bert_model.ckpt.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    broken = tmp_path / f"bert_model.ckpt.{part}"
    if how == "gone":
        broken.unlink()
    else:
        whole = broken.read_bytes()
        flipped = whole[:50] + bytes([whole[50] ^ 1]) + whole[51:]
        cut = whole[: len(whole) // 20]
        broken.write_bytes({"cut": cut, "foreign": bytes(len(whole)), "flipped": flipped}[how])
    with pytest.raises(UserError, match=r"bert_model\.ckpt(\.index)? is (damaged|missing)"):
        load_model(models.Transformer(CFG), tmp_path / "bert_model.ckpt")


def test_without_tensorflow(tmp_path, monkeypatch):
    (tmp_path / "bert_model.ckpt.index").touch()
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match="pip install tensorflow"):
        load_model(models.Transformer(CFG), tmp_path / "bert_model.ckpt")


def test_import_is_light():
    """Neither TensorFlow nor transformers is imported before it is needed."""
    code = "import sys, checkpoint; sys.exit(bool({'tensorflow', 'transformers'} & {*sys.modules}))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_checkpoint_of_the_lineage(tmp_path, batch):
    """Its keys, its order of saving, the old file format; class 1 is "next", as it is here."""
    v = {name: torch.from_numpy(value) for name, value in google_variables().items() if value.ndim}
    state = collections.OrderedDict()
    embed = "transformer.embed"
    state[f"{embed}.tok_embed.weight"] = v["bert/embeddings/word_embeddings"]
    state[f"{embed}.pos_embed.weight"] = v["bert/embeddings/position_embeddings"]
    state[f"{embed}.seg_embed.weight"] = v["bert/embeddings/token_type_embeddings"]

    def norm(key, scope):
        state[f"{key}.gamma"], state[f"{key}.beta"] = v[f"{scope}/gamma"], v[f"{scope}/beta"]

    def dense(key, scope):
        state[f"{key}.weight"], state[f"{key}.bias"] = v[f"{scope}/kernel"].T, v[f"{scope}/bias"]

    norm(f"{embed}.norm", "bert/embeddings/LayerNorm")
    for i in range(LAYERS):
        block, layer = f"transformer.blocks.{i}", f"bert/encoder/layer_{i}"
        dense(f"{block}.attn.proj_q", f"{layer}/attention/self/query")
        dense(f"{block}.attn.proj_k", f"{layer}/attention/self/key")
        dense(f"{block}.attn.proj_v", f"{layer}/attention/self/value")
        dense(f"{block}.proj", f"{layer}/attention/output/dense")
        norm(f"{block}.norm1", f"{layer}/attention/output/LayerNorm")
        dense(f"{block}.pwff.fc1", f"{layer}/intermediate/dense")
        dense(f"{block}.pwff.fc2", f"{layer}/output/dense")
        norm(f"{block}.norm2", f"{layer}/output/LayerNorm")
    dense("fc", "bert/pooler/dense")
    dense("linear", "cls/predictions/transform/dense")
    norm("norm", "cls/predictions/transform/LayerNorm")
    state["classifier.weight"] = v["cls/seq_relationship/output_weights"]
    state["classifier.bias"] = v["cls/seq_relationship/output_bias"]
    state["decoder_bias"] = v["cls/predictions/output_bias"]
    state["decoder.weight"] = state[f"{embed}.tok_embed.weight"]
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    model = models.BertModel4Pretrain(CFG)
    load_model_file(model, tmp_path / "x.pt")
    assert_equals_twin(model, batch, next_rows=[0, 1])
