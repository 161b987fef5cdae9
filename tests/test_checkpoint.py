"""checkpoint.py: .pt files are read safely, and TensorFlow's into the right weights."""

import collections
import dataclasses
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from google_bert import (
    ATTRIBUTES,
    CFG,
    CONFIG,
    FF,
    FUNCTIONAL,
    LAYERS,
    OF_2019,
    VOCAB,
    D,
    garden_heads,
    garden_variables,
    google_variables,
    hugging_face_twin,
    write_object_graph,
    write_tensorflow,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import models
from checkpoint import (
    ModelInfo,
    account,
    import_model,
    load_model_file,
    load_pretrained,
    load_pt,
    read_foreign,
    save_pt,
)
from formats.bert import HEADS, fill_vocab, hugging_face_name, match, wanted_weights
from tokenization import SPECIAL_TOKENS
from utils import UserError


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_what_is_saved_is_loaded_again(tmp_path):
    content = {"a": torch.arange(3), "b": {"c": [1, 2.5, "x", None, True]}}
    save_pt(content, tmp_path / "x.pt")
    loaded = load_pt(tmp_path / "x.pt")
    assert loaded["a"].tolist() == [0, 1, 2]
    assert loaded["b"] == content["b"]


def test_the_old_pt_format_is_read(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert load_pt(tmp_path / "x.pt")["a"].tolist() == [1, 1]


@pytest.mark.parametrize("form", ["zip", "old", "pickle", "in a state dict"])
def test_loading_runs_no_code(tmp_path, form):
    path, target = tmp_path / "x.pt", tmp_path / "made"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Bomb(target)))
    else:
        content = {"w": Bomb(target)} if form == "in a state dict" else Bomb(target)
        torch.save(content, path, _use_new_zipfile_serialization=form != "old")
    with pytest.raises(UserError, match=r"x\.pt is damaged, or holds more than tensors"):
        load_pt(path)
    assert not target.exists()
    if form == "pickle":  # check that the bomb works
        pickle.loads(path.read_bytes())
        assert target.exists()


def test_compressed_archives_are_refused(tmp_path):
    save_pt({"a": torch.zeros(100_000)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as plain,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(UserError, match=r"y\.pt is a compressed archive, not a PyTorch file"):
        load_pt(tmp_path / "y.pt")


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
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


def test_a_models_weights_are_loaded_again(tmp_path):
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
def test_a_file_without_state_dict_is_refused(tmp_path, content):
    save_pt(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt is not the state dict"):
        load_model_file(nn.Linear(1, 1), tmp_path / "x.pt")


@pytest.fixture(scope="module")
def tensorflow_file(tmp_path_factory):
    return write_tensorflow(
        tmp_path_factory.mktemp("google") / "bert_model.ckpt", google_variables()
    )


@pytest.fixture(scope="module")
def batch():
    """Ids, segments, mask of three sequences, two of them padded."""
    lengths = torch.tensor([20, 11, 2])[:, None]
    at = torch.arange(20).expand(3, 20)
    mask = (at < lengths).long()
    ids = torch.randint(VOCAB, (3, 20), generator=torch.Generator().manual_seed(0))
    return ids * mask, (at >= lengths // 2).long() * mask, mask


def load_model(prefix, **changes):
    """Return a model with the weights of a checkpoint, and the account of them."""
    cfg = dataclasses.replace(CFG, **changes)
    Path(f"{prefix}.json").write_text(json.dumps(dataclasses.asdict(cfg)))
    bert = read_foreign(prefix, f"{prefix}.json")
    model = models.BertModel4Pretrain(cfg)
    model.load_state_dict(model.state_dict() | bert.state)
    return model, account(bert.state, bert.ignored)


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


def test_a_tensorflow_checkpoint_gives_the_right_outputs(tensorflow_file, batch):
    model, said = load_model(tensorflow_file)
    n = sum("/adam_" not in name for name in google_variables()) - 1
    assert said == f"read {n} variables, ignored {n} adam_m, {n} adam_v, global_step"
    # Google: 0 is the true next sentence, 1 a random one. In our models, 1 is the true one.
    assert_equals_twin(model, batch, next_rows=[1, 0])
    assert model.decoder.weight is model.transformer.embed.tok_embed.weight


ENCODER = [name for name in google_variables() if name.startswith("bert/")]


def assert_encoder_equals_twin(model, batch):
    ids, segments, mask = batch
    encoder = getattr(model, "transformer", model).eval()
    with torch.inference_mode():
        h = encoder(ids, segments, mask)
        expected = hugging_face_twin().bert(ids, mask, segments).last_hidden_state
    real = mask.bool()
    torch.testing.assert_close(h[real], expected[real], atol=1e-5, rtol=1e-5)


def test_a_fine_tuned_tensorflow_checkpoint_gives_its_encoder(tmp_path, batch):
    """A checkpoint of Google's run_classifier.py: a classifier instead of pre-training heads."""
    variables = {name: google_variables()[name] for name in ENCODER}
    for name, shape in (("output_weights", (3, D)), ("output_bias", (3,))):
        for end in ("", "/adam_m", "/adam_v"):
            variables[name + end] = np.ones(shape, np.float32)
    model, said = load_model(write_tensorflow(tmp_path / "model.ckpt-343", variables))
    n = sum("/adam_" not in name for name in ENCODER)
    assert said == (
        f"read {n} variables, ignored {n + 2} adam_m, {n + 2} adam_v, output_bias, output_weights, "
        "it has no head for next sentence, masked words"
    )
    assert_encoder_equals_twin(model, batch)
    assert torch.equal(model.fc.bias, torch.from_numpy(variables["bert/pooler/dense/bias"]))
    assert model.decoder.weight is model.transformer.embed.tok_embed.weight


@pytest.mark.parametrize("style", [FUNCTIONAL, ATTRIBUTES, OF_2019], ids=["func", "attr", "2019"])
def test_object_graphs_give_the_right_encoder(tmp_path, batch, style):
    """The encoder of TensorFlow 2's model garden, as saved by each kind of program."""
    path = write_object_graph(tmp_path / "bert_model.ckpt", garden_variables(style))
    model, said = load_model(path)
    assert said == (
        f"read {len(garden_variables(style))} variables, ignored save_counter, it has no head for "
        "next sentence, masked words"
    )
    assert_encoder_equals_twin(model, batch)
    assert model.fc.weight.ne(0).all()


def test_an_object_graph_of_a_pretraining_gives_its_heads(tmp_path, batch):
    """With heads and an optimizer; the trained pooler is the head's, not the encoder's."""
    tf = pytest.importorskip("tensorflow")
    variables = garden_variables(ATTRIBUTES)
    for part in ("kernel", "bias"):
        name, value = variables[f"encoder/_pooler_layer/{part}"]
        variables[f"encoder/_pooler_layer/{part}"] = name, value + 1
    optimizer = tf.compat.v1.train.AdamOptimizer(0.0)
    path = write_object_graph(tmp_path / "ckpt", variables | garden_heads(), optimizer)
    model, said = load_model(path)
    n = len(variables) + len(garden_heads())
    assert said == (
        f"read {n - 2} variables, ignored {n} m, 2 of the optimizer, {n} v, "
        "encoder/_pooler_layer/bias, encoder/_pooler_layer/kernel, save_counter"
    )
    assert_equals_twin(model, batch, next_rows=[1, 0])


def test_the_head_of_a_classifiers_object_graph_is_ignored(tmp_path, batch):
    """A classifier may have the name of the next-sentence head; it is ignored."""
    variables = garden_variables(FUNCTIONAL)
    for part, shape in (("kernel", (D, 3)), ("bias", (3,))):
        value = np.ones(shape, np.float32)
        variables[f"model/classifier/{part}"] = f"predictions/transform/logits/{part}", value
        # The newer optimizers keep their moments in variables with the same names as the model's.
        variables[f"optimizer/_variables/{part}"] = f"m/pooler_transform/{part}", value
    model, said = load_model(write_object_graph(tmp_path / "ckpt", variables))
    assert "ignored 2 of the optimizer, model/classifier/bias, model/classifier/kernel" in said
    assert_encoder_equals_twin(model, batch)


def test_object_graphs_that_do_not_fit_are_refused(tmp_path):
    tf = pytest.importorskip("tensorflow")
    variables = garden_variables(FUNCTIONAL)
    path = write_object_graph(tmp_path / "ckpt", variables)
    with pytest.raises(UserError, match=r"_query_dense/kernel is 24x3x8, expected 24x6x4"):
        load_model(path, n_heads=6)
    twice = variables | {f"teacher/{place}": value for place, value in variables.items()}
    twice = write_object_graph(tmp_path / "twice", twice)
    with pytest.raises(UserError, match=r"more than one BERT: .* and .* are both called"):
        load_model(twice)
    some = dict(list(variables.items())[:-1])
    some = write_object_graph(tmp_path / "some", some)
    with pytest.raises(
        UserError, match=r"layer_1/output/LayerNorm/beta \(expected 24\) is missing"
    ):
        load_model(some)
    foreign = {"_CHECKPOINTABLE_OBJECT_GRAPH": np.array(b"\x07not a graph")}
    foreign = write_tensorflow(tmp_path / "foreign", foreign)
    with pytest.raises(UserError, match="foreign is damaged: its object graph cannot be read"):
        load_model(foreign)
    assert tf is not None


WANTED = wanted_weights(CFG)
OF_HEAD = {head: {key for key in WANTED if key.startswith(b)} for head, b in HEADS.items()}


@given(st.sets(st.sampled_from(sorted(HEADS))), st.sets(st.sampled_from(sorted(WANTED))))
def test_heads_may_be_missing_as_a_whole_and_nothing_else(heads, others):
    gone = others.union(*(OF_HEAD[head] for head in heads))
    faults = gone.difference(*(keys for keys in OF_HEAD.values() if keys <= gone))
    shapes = {hugging_face_name(key): WANTED[key] for key in WANTED if key not in gone}
    if not faults:
        held = match(WANTED, hugging_face_name, shapes, "x", "y")
        assert held == [key for key in WANTED if key not in gone]
        return
    with pytest.raises(UserError) as error:
        match(WANTED, hugging_face_name, shapes, "x", "y")
    named = {key for key in WANTED if f"{hugging_face_name(key)} (expected" in str(error.value)}
    assert named <= faults
    assert len(named) == min(3, len(faults))


@pytest.mark.parametrize("kind", ["tensorflow", "garden", "pt", "safetensors"])
@pytest.mark.parametrize("fault", ["nan", "infinite", "integers"])
def test_weights_are_finite_numbers(tmp_path, kind, fault):
    def spoil(array):
        if fault == "integers":
            return array.astype(np.int32)
        array = array.copy()
        array.flat[-1] = {"nan": np.nan, "infinite": -np.inf}[fault]
        return array

    message = "of type int32; weights" if fault == "integers" else "NaN or infinite numbers"
    model = models.BertModel4Pretrain(CFG)
    if kind == "tensorflow":
        name, variables = "bert/encoder/layer_1/output/dense/kernel", google_variables()
        variables[name] = spoil(variables[name])
        path = write_tensorflow(tmp_path / "x", variables)
    elif kind == "garden":
        name, variables = "encoder/layer_with_weights-5/_output_dense/kernel", {}
        for place, (own, value) in garden_variables(FUNCTIONAL).items():
            variables[place] = own, spoil(value) if place == name else value
        path = write_object_graph(tmp_path / "x", variables)
    elif kind == "pt":
        name, state = "transformer.blocks.1.pwff.fc2.weight", model.state_dict()
        state[name] = torch.from_numpy(spoil(state[name].numpy()))
        path = str(tmp_path / "x.pt")
        save_pt(state, path)
    else:
        name = "bert.encoder.layer.1.output.dense.weight"
        hugging_face_twin().save_pretrained(tmp_path / "x")
        file = tmp_path / "x/model.safetensors"
        weights = safetensors.numpy.load_file(file)
        safetensors.numpy.save_file(weights | {name: spoil(weights[name])}, file)
        path = str(tmp_path / "x")
    read = {"pt": lambda path: load_model_file(model, path), "safetensors": read_foreign}
    with pytest.raises(UserError, match=rf": {re.escape(name)} (is|holds) {message}"):
        read.get(kind, load_model)(path)


def test_sparse_weights_are_refused(tmp_path):
    save_pt({"weight": torch.eye(2).to_sparse(), "bias": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt: weight is of type float32, sparse_coo"):
        load_model_file(nn.Linear(2, 2), tmp_path / "x.pt")


@pytest.fixture
def google_folder(tmp_path):
    """A folder as Google's downloads unpack to."""
    write_tensorflow(tmp_path / "uncased/bert_model.ckpt", google_variables())
    words = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(VOCAB - 5))]
    (tmp_path / "uncased/vocab.txt").write_text("\n".join(words))
    (tmp_path / "uncased/bert_config.json").write_text(json.dumps(CONFIG))
    return tmp_path / "uncased"


@pytest.mark.parametrize(
    "name", ["", "bert_model.ckpt", "bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"]
)
def test_a_google_folder_gives_sizes_and_vocabulary(google_folder, batch, name):
    bert = read_foreign(google_folder / name)
    assert bert.sizes == CFG
    assert list(bert.vocab)[-1] == f"w{VOCAB - 6}"
    model = models.BertModel4Pretrain(bert.sizes)
    model.load_state_dict(bert.state)
    assert_equals_twin(model, batch, next_rows=[1, 0])


@pytest.mark.parametrize(
    ("word", "said", "told", "reading"),
    [
        ("the", None, None, "bert"),
        ("[Unused]", None, None, "bert"),
        ("The", None, None, "bert-cased"),
        ("##É", None, None, "bert-cased"),
        ("The", True, None, "bert"),
        ("the", False, None, "bert-cased"),
        ("the", False, True, "bert"),
        ("The", None, True, "bert"),
        ("the", None, False, "bert-cased"),
    ],
)
def test_letters_as_vocabulary_config_or_flag_say(google_folder, word, said, told, reading):
    vocab = google_folder / "vocab.txt"
    vocab.write_text(vocab.read_text().replace("w7", word))
    config = CONFIG if said is None else {**CONFIG, "do_lower_case": said}
    (google_folder / "bert_config.json").write_text(json.dumps(config))
    assert read_foreign(google_folder, do_lower_case=told).reading == reading


def test_googles_folder_is_imported(google_folder, tmp_path, capsys, batch):
    import_model(str(google_folder), str(tmp_path / "ours"))
    printed = capsys.readouterr().out
    assert "model.pt, model_cfg.json, vocab.txt" in printed
    assert "adam_m, " in printed
    cfg = models.Config.from_json(tmp_path / "ours/model_cfg.json")
    model = models.BertModel4Pretrain(cfg)
    load_model_file(model, tmp_path / "ours/model.pt")
    assert_equals_twin(model, batch, next_rows=[1, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 52}, r"vocab\.txt has ids up to 52, but the model has only 52 tokens"),
        ({"hidden_act": "relu"}, r"bert_config\.json: 'hidden_act' is \"relu\""),
        ({"num_attention_heads": 5}, r"bert_config\.json: 'dim' 24 is not divisible by"),
        ({"intermediate_size": 39}, r"intermediate/dense/kernel is 24x40, expected 24x39"),
        (
            {"num_hidden_layers": 3},
            r"not fit bert_config\.json: \S+layer_2\S+query/kernel \(expected 24x24",
        ),
        ({"max_position_embeddings": 31}, "position_embeddings is 30x24, expected 31x24"),
    ],
)
def test_a_google_config_that_does_not_fit_is_refused(google_folder, change, message):
    (google_folder / "bert_config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(UserError, match=message):
        read_foreign(google_folder)


def test_of_two_checkpoints_in_a_folder_one_must_be_named(google_folder):
    for file in list(google_folder.glob("bert_model.ckpt.*")):
        file.with_name(file.name.replace("bert_model", "other")).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"\(bert_model\.ckpt, other\.ckpt\); give one of them"):
        read_foreign(google_folder)
    assert read_foreign(google_folder / "other.ckpt").sizes == CFG


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=6), st.integers(1, 9))
def test_filled_vocabularies_keep_all_ids(vocab, size):
    """Every accepted token is at its id, and read back from its line in a file."""
    try:
        filled = fill_vocab(vocab, size, "x")
    except UserError:
        ids = list(vocab.values())
        twice = len({*ids}) < len(ids)
        assert twice or max(ids) >= size or any(t == "" or {*t} & {*" \t\n\r\v\f"} for t in vocab)
        return
    assert len(filled) == size
    assert {token: filled[token] for token in vocab} == vocab
    assert "".join(f"{token}\n" for token in filled).split("\n")[:-1] == list(filled)


def test_a_model_with_another_vocabulary(tmp_path):
    save_pt(models.BertModel4Pretrain(CFG).state_dict(), tmp_path / "model.pt")
    text = "".join(f"{token}\n" for token in (*SPECIAL_TOKENS, "mov"))
    (tmp_path / "vocab.txt").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    info = ModelInfo(model=CFG, tokenizer="corpus", vocab_sha256=digest, max_len=12)
    (tmp_path / "model.json").write_text(json.dumps(dataclasses.asdict(info)))
    with pytest.raises(UserError, match=r"vocab_size 53, but .*vocab\.txt holds 6 tokens"):
        load_pretrained(tmp_path / "model.pt")


def test_tensorflow_misfits_are_named(tmp_path):
    variables = google_variables()
    kernel = "bert/encoder/layer_1/intermediate/dense/kernel"
    variables[kernel] = variables[kernel].T.copy()
    del variables["cls/seq_relationship/output_bias"]
    path = write_tensorflow(tmp_path / "bad.ckpt", variables)
    with pytest.raises(UserError) as error:
        load_model(path)
    message = str(error.value)
    assert re.search(r"bad.ckpt does not fit \S+bad.ckpt.json: ", message)
    assert f"{kernel} is {FF}x{D}, expected {D}x{FF}" in message
    assert "cls/seq_relationship/output_bias (expected 2) is missing" in message
    with pytest.raises(UserError, match=r"encoder/layer_2/\S+ \(expected \S+\) is .* and 15 more$"):
        load_model(path, n_layers=3)


@pytest.mark.parametrize("part", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize("how", ["cut", "foreign", "flipped", "gone"])
def test_damaged_tensorflow_checkpoints_are_refused(tensorflow_file, tmp_path, part, how):
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
        load_model(tmp_path / "bert_model.ckpt")


def test_without_tensorflow_the_remedy_is_named(tmp_path, monkeypatch):
    (tmp_path / "bert_model.ckpt.index").touch()
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match="pip install tensorflow"):
        load_model(tmp_path / "bert_model.ckpt")


def test_importing_checkpoint_loads_no_large_package():
    """TensorFlow and transformers are imported only when needed."""
    code = "import sys, checkpoint; sys.exit(bool({'tensorflow', 'transformers'} & {*sys.modules}))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_checkpoints_of_the_original_project_are_read(tmp_path, batch):
    """Its keys, its order of saving, the old file format; class 1 is "next", as in our models."""
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
