"""classify.py: GLUE's files, starting points of a training, and its results."""

import dataclasses
import hashlib
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import google_bert
import numpy as np
import pytest
import torch
import transformers
from conftest import run_script, tiny_bert, typed
from google_bert import google_variables, write_tensorflow
from hypothesis import given
from hypothesis import strategies as st

import checkpoint
import classify
import models
import train
from formats.bert import hugging_face_name
from tasks.catalogue import Mnli, Mrpc, Samefunc
from tasks.sentences import ClassificationData, Classifier, SentenceTask
from tasks.tables import read_examples
from tasks.task import Examples
from tokenization import SPECIAL_TOKENS, CorpusTokenizer
from utils import UserError

ROOT = Path(__file__).resolve().parent.parent
WORDS = ["mov", "push", "reg8", "imme", "call", "__ctype_b_loc"]
VOCAB = [*SPECIAL_TOKENS, *WORDS]
CFG = tiny_bert(len(VOCAB), p_drop_hidden=0.0, p_drop_attn=0.0)
MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
    "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\t"
)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Files


def test_mrpc_files_of_glue_are_read(tmp_path):
    """A byte order mark, no quoting (a quote is a quote), Windows' line ends, \\x85 in a text."""
    text = MRPC + '1\t7\t8\tHe said "no.\t"No", he\x85said.\n0\t9\t10\tA\u2028b .\tc "" d\n'
    file = write(tmp_path / "train.tsv", b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    examples = read_examples(Mrpc, file, labelled=True)
    assert examples.text_a == ['He said "no.', "A\u2028b ."]
    assert examples.text_b == ['"No", he\x85said.', 'c "" d']
    assert examples.label.tolist() == [1, 0]
    test = write(tmp_path / "test.tsv", "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\ta\tb")
    examples = read_examples(Mrpc, test, labelled=False)
    assert (examples.text_a, examples.text_b, examples.label) == (["a"], ["b"], None)


@pytest.mark.parametrize("labels", ["label1", "label1\tlabel2\tlabel3\tlabel4\tlabel5"])
def test_mnli_files_of_glue_are_read(tmp_path, labels):
    """One label column before the gold one in train.tsv, five in dev_matched.tsv."""
    others = "\t".join(["neutral"] * len(labels.split("\t")))
    row = f"0\t1\t2\tfiction\t( a )\t( b )\t(ROOT a)\t(ROOT b)\tone\ttwo\t{others}\tentailment\n"
    file = write(tmp_path / "mnli.tsv", f"{MNLI}{labels}\tgold_label\n{row}")
    examples = read_examples(Mnli, file, labelled=True)
    assert (examples.text_a, examples.text_b) == (["one"], ["two"])
    assert Mnli.labels[examples.label[0]] == "entailment"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"x\.tsv has no examples"),
        (MRPC, r"x\.tsv has no examples"),
        (MRPC + "1\t2\t3\ta\tb\n1\t2\t3\ta\n", r"x\.tsv:3: 4 columns, but the header has 5"),
        (MRPC + "1\t2\t3\ta\tb\n\n", r"x\.tsv:3: 1 columns"),
        (MRPC + "1\t2\t3\ta\tb\tc\n", r"x\.tsv:2: 6 columns"),
        (MRPC + "yes\t2\t3\ta\tb\n", r"x\.tsv:2: unknown label 'yes'; the labels are 0, 1"),
        ((MRPC + "1\t2\t3\ta\t").encode() + b"\xff\n", r"x\.tsv:2: byte 9 is not UTF-8"),
        (MRPC.replace("#2 S", "S") + "1\t2\t3\ta\tb\n", r"x\.tsv:1: no column '#2 String'"),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path, content, message):
    file = write(tmp_path / "x.tsv", content)
    with pytest.raises(UserError, match=message) as error:
        read_examples(Mrpc, file, labelled=True)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none\.tsv: No such file"):
        read_examples(Mrpc, tmp_path / "none.tsv", labelled=True)


# Examples as ids


def cut_as_google_does(a, b, room):
    """_truncate_seq_pair of Google's run_classifier.py: cut the longer text."""
    a, b = list(a), list(b)
    while len(a) + len(b) > room:
        (a if len(a) > len(b) else b).pop()
    return a, b


@given(st.integers(0, 40), st.integers(0, 40), st.integers(5, 32))
def test_longer_text_is_cut_first(n_a, n_b, max_len):
    tokenizer = CorpusTokenizer({token: i for i, token in enumerate(VOCAB)})
    text_a, text_b = " ".join(["mov"] * n_a), " ".join(["push"] * n_b)
    data = ClassificationData(Examples([text_a], [text_b], None), tokenizer, max_len)
    batch = data.batch(np.array([0]))
    a, b = cut_as_google_does(["mov"] * n_a, ["push"] * n_b, max_len - 3)
    expected = ["[CLS]", *a, "[SEP]", *b, "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(batch["input_ids"][0]) == expected
    assert batch["segment_ids"][0].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert batch["input_mask"].all()


def test_batches_are_padded_to_their_longest():
    tokenizer = CorpusTokenizer({token: i for i, token in enumerate(VOCAB)})
    examples = Examples(["mov", "push push"], ["reg8", "imme imme imme"], np.array([1, 0]))
    batch = ClassificationData(examples, tokenizer, 32).batch(np.array([1, 0]))
    assert batch["input_ids"].shape == (2, 8)
    assert batch["input_mask"].sum(1).tolist() == [8, 5]
    assert batch["input_ids"][1, 5:].tolist() == [0, 0, 0]
    assert batch["segment_ids"][1].tolist() == [0, 0, 0, 1, 1, 0, 0, 0]
    assert batch["label"].tolist() == [0, 1]
    single = Examples(["mov " * 40], None, None)
    batch = ClassificationData(single, tokenizer, 10).batch(np.array([0]))
    assert batch["input_ids"].shape == (1, 10)
    assert not batch["segment_ids"].any()


@given(st.lists(st.integers(0, 50), min_size=1, max_size=300), st.integers(1, 9))
def test_shuffling_takes_each_row_once_in_full_batches(lengths, batch_size):
    """Each row once; all batches but one are full; only the generator decides the order."""
    lengths = np.array(lengths)
    batches = classify.shuffle(lengths, batch_size, np.random.default_rng(1))
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)
    assert sum(len(batch) < batch_size for batch in batches) <= 1
    again = classify.shuffle(lengths, batch_size, np.random.default_rng(1))
    assert all(map(np.array_equal, batches, again))


def test_batches_hold_rows_of_about_one_length():
    lengths = np.random.default_rng(0).permutation(1000)
    batches = classify.shuffle(lengths, 10, np.random.default_rng(1))
    assert np.mean([np.ptp(lengths[batch]) for batch in batches]) < 100
    assert np.std([lengths[batch].mean() for batch in batches[:20]]) > 100  # in random order


# The model


def test_logits_equal_those_of_hugging_face():
    ours = Classifier(CFG, 3).eval()
    theirs = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=len(VOCAB),
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=40,
            max_position_embeddings=32,
            num_labels=3,
        )
    ).eval()
    state = {
        key if key.startswith("classifier") else hugging_face_name(key): value
        for key, value in ours.state_dict().items()
    }
    theirs.load_state_dict(state)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(VOCAB), (4, 9), generator=generator)
    segment = (torch.arange(9) > 4).long().expand(4, 9)
    mask = (torch.arange(9) < torch.tensor([9, 4, 7, 1])[:, None]).long()
    with torch.no_grad():
        logits = ours(ids, segment, mask)
        expected = theirs(ids, attention_mask=mask, token_type_ids=segment).logits
    assert torch.allclose(logits, expected, atol=1e-5)


def test_measures_equal_those_counted_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3], [0.1, 0.9]])
    measures = classify.measure(probabilities, np.array([0, 1, 0, 1, 1]))
    # predicted 0 1 1 0 1: two of three positives found, two of three found are positive
    expected = {"accuracy": 3 / 5, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3}
    # positives score .8 .3 .9, negatives .1 .6: five of six pairs are in order
    expected |= {"roc_auc": 5 / 6, "loss": -np.log([0.9, 0.8, 0.4, 0.3, 0.9]).mean()}
    assert measures == pytest.approx(expected)
    three = np.eye(3)[[0, 1, 2, 2]] * 0.7 + 0.1
    measures = classify.measure(three, np.array([0, 1, 2, 1]))
    assert measures["accuracy"] == 3 / 4
    assert measures["recall"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert np.isnan(classify.measure(three, np.array([0, 1, 0, 1]))["roc_auc"])


# Where training starts


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The files that pretrain.py writes, with random weights."""
    folder = tmp_path_factory.mktemp("out")
    torch.manual_seed(1)
    model = models.BertModel4Pretrain(CFG)
    checkpoint.save_pt(model.state_dict(), folder / "model_steps_7.pt")
    text = "".join(f"{token}\n" for token in VOCAB)
    (folder / "vocab.txt").write_text(text)
    info = checkpoint.ModelInfo(
        model=CFG,
        tokenizer="corpus",
        vocab_sha256=hashlib.sha256(text.encode()).hexdigest(),
        max_len=16,
    )
    (folder / "model.json").write_text(json.dumps(dataclasses.asdict(info)))
    sizes = dataclasses.asdict(CFG)
    del sizes["vocab_size"]
    (folder / "sizes.json").write_text(json.dumps(sizes))
    return folder, model


def test_training_starts_from_each_kind_of_model(pretrained, tmp_path):
    folder, model = pretrained
    pt, vocab = str(folder / "model_steps_7.pt"), str(folder / "vocab.txt")
    checkpoint.export_model(pt, str(tmp_path / "hugging"))
    starts = [
        classify.read_start(pt, None, None, Samefunc),
        classify.read_start(pt, str(folder / "sizes.json"), vocab, Samefunc),
        classify.read_start(str(tmp_path / "hugging"), None, None, Samefunc),
    ]
    assert [start.max_len for start in starts] == [16, 32, 16]
    for start in starts:
        assert start.sizes == CFG
        assert start.tokenizer.name == "corpus"
        assert list(start.tokenizer.vocab) == VOCAB
        for key, value in model.state_dict().items():
            assert torch.equal(start.state[key], value), key
    random_start = classify.read_start(None, str(folder / "sizes.json"), vocab, Samefunc)
    assert random_start.state is None


@pytest.fixture
def tensorflow_file(tmp_path):
    """Google's checkpoint, with its vocabulary beside it, and a file of its sizes."""
    prefix = write_tensorflow(tmp_path / "bert_model.ckpt", google_variables())
    words = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(google_bert.VOCAB - 5))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    sizes = {k: v for k, v in dataclasses.asdict(google_bert.CFG).items() if k != "vocab_size"}
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    return prefix


@pytest.mark.parametrize("how", ["beside", "given"])
def test_training_starts_from_googles_checkpoint(tensorflow_file, tmp_path, how):
    """Google's checkpoint, its vocabulary and its tokenizer."""
    given = None, None
    if how == "given":
        given = str(tmp_path / "sizes.json"), str(tmp_path / "vocab.txt")
    else:
        (tmp_path / "bert_config.json").write_text(json.dumps(google_bert.CONFIG))
    start = classify.read_start(tensorflow_file, *given, Mrpc)
    assert start.sizes == google_bert.CFG
    expected = google_variables()["bert/encoder/layer_1/intermediate/dense/kernel"]
    weight = start.state["transformer.blocks.1.pwff.fc1.weight"]
    assert torch.equal(weight, torch.from_numpy(expected).T)
    assert start.tokenizer.tokenize("W3,w4") == ["w3", "[UNK]", "w4"]


def test_case_is_that_of_the_start_or_of_the_flag(tensorflow_file, tmp_path, pretrained):
    (tmp_path / "bert_config.json").write_text(json.dumps(google_bert.CONFIG))
    start = classify.read_start(tensorflow_file, None, None, Mrpc, do_lower_case=False)
    assert start.tokenizer.tokenize("W3") == ["[UNK]"]
    folder, _ = pretrained
    with pytest.raises(UserError, match=r"--do_lower_case is not needed: it is .*_7\.pt; leave"):
        classify.read_start(str(folder / "model_steps_7.pt"), None, None, Mrpc, True)
    sizes, vocab = str(folder / "sizes.json"), str(folder / "vocab.txt")
    with pytest.raises(UserError, match="--do_lower_case is for Google's vocabularies"):
        classify.read_start(None, sizes, vocab, Samefunc, True)
    assert classify.read_start(None, sizes, vocab, Mrpc).tokenizer.name == "bert"
    cased = write(tmp_path / "cased.txt", "\n".join([*VOCAB[:-1], "Call"]))
    assert classify.read_start(None, sizes, str(cased), Mrpc).tokenizer.name == "bert-cased"
    assert classify.read_start(None, sizes, str(cased), Mrpc, True).tokenizer.name == "bert"


@pytest.mark.parametrize("cased", [True, False])
def test_training_starts_from_a_folder_of_transformers(tmp_path, cased):
    """Folders saved by transformers, of encoders without a trained pooler, cased or not."""
    config = transformers.BertConfig(
        vocab_size=len(VOCAB), hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=20,
    )  # fmt: skip
    theirs = transformers.BertModel(config)
    theirs.save_pretrained(tmp_path / "theirs")
    write(tmp_path / "vocab.txt", "\n".join([*VOCAB[:-2], "a", "A"]))
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=not cased)
    tokenizer.save_pretrained(tmp_path / "theirs")
    start = classify.read_start(str(tmp_path / "theirs"), None, None, Mrpc)
    assert start.tokenizer.name == ("bert-cased" if cased else "bert")
    assert start.tokenizer.tokenize("A") == tokenizer.tokenize("A") == ["A" if cased else "a"]
    weight = theirs.embeddings.word_embeddings.weight
    assert torch.equal(start.state["transformer.embed.tok_embed.weight"], weight)


def test_a_start_without_sizes_or_vocabulary_is_refused(tmp_path, pretrained):
    with pytest.raises(UserError, match=r"give --model_cfg and --vocab: .* of the model"):
        classify.read_start(None, None, None, Mrpc)
    with pytest.raises(UserError, match=r"give --model_cfg and --vocab: .* of lone\.pt"):
        classify.read_start("lone.pt", "config/bert_base.json", None, Mrpc)
    prefix = write_tensorflow(tmp_path / "bert_model.ckpt", google_variables())
    with pytest.raises(UserError, match=r"bert_config\.json is missing; .* as --model_cfg"):
        classify.read_start(prefix, None, None, Mrpc)
    with pytest.raises(UserError, match=r"vocab\.txt is missing; .* as --vocab"):
        classify.read_start(prefix, str(pretrained[0] / "sizes.json"), None, Mrpc)
    (tmp_path / "bert_config.json").write_text(json.dumps(google_bert.CONFIG))
    with pytest.raises(UserError, match="holds no WordPiece vocabulary"):
        classify.read_start(prefix, None, None, Mrpc)
    model = tmp_path / "model_steps_1.pt"
    with pytest.raises(UserError, match=r"model_steps_1\.pt does not exist"):
        classify.read_start(str(model), None, None, Mrpc)
    model.touch()
    with pytest.raises(UserError, match=r"model\.json is missing"):
        classify.read_start(str(model), None, None, Mrpc)


# The script


@pytest.fixture(scope="module")
def trained(pretrained, tmp_path_factory):
    """A folder with a trained classifier: "same" means that both texts contain a call, or none."""
    folder = tmp_path_factory.mktemp("classify")
    rng = random.Random(0)
    for name, n in (("train", 600), ("test", 200)):
        lines = ["label\ttext_a\ttext_b\torigin"]
        for _ in range(n):
            calls = [rng.random() < 0.5 for _ in "ab"]
            texts = [
                " ".join(rng.choices(["mov", "push", "reg8"], k=4) + ["call"] * call)
                for call in calls
            ]
            label = "same" if calls[0] == calls[1] else "different"
            lines.append("\t".join([label, *texts, "x"]))
        write(folder / f"{name}.tsv", "\n".join(lines) + "\n")
    cfg = dict(
        seed=3, batch_size=32, lr=0.003, n_epochs=12, warmup=0.1, save_steps=100, total_steps=9999
    )
    (folder / "cfg.json").write_text(json.dumps(cfg))
    arguments = ["--train_cfg", "cfg.json", "--data_file", "train.tsv", "--save_dir", "out"]
    arguments += ["--pretrain_file", pretrained[0] / "model_steps_7.pt", "--eval_file", "test.tsv"]
    return folder, arguments, run_script(folder, "classify.py", *arguments)


def test_a_fine_tuned_model_is_a_start_too(trained):
    """Only BERT is taken from a comparer, not its weights for words."""
    folder, _, _ = trained
    file = folder / "out/model_steps_228.pt"
    start = classify.read_start(str(file), None, None, Mrpc)
    saved = checkpoint.load_pt(file)
    assert start.state.keys() == {key for key in saved if key.startswith("transformer.")}
    assert start.state.keys() < saved.keys()
    assert all(torch.equal(value, saved[key]) for key, value in start.state.items())
    assert (start.max_len, list(start.tokenizer.vocab)) == (16, VOCAB)


def test_training_learns(trained, monkeypatch, capsys):
    folder, arguments, (code, out, err) = trained
    assert (code, err) == (0, "")
    assert "600 examples, 2 labels; steps 0 to 228 of 32 x 16 tokens" in out
    assert float(out.split("step 228/228: accuracy ")[1].split(",")[0]) > 0.95
    names = {path.name for path in (folder / "out").iterdir()}
    models_saved = {f"model_steps_{k}.pt" for k in (100, 200, 228)}
    assert names == {*models_saved, "last.pt", "model.json", "runs", "vocab.txt"}
    monkeypatch.chdir(folder)
    assert typed(classify.main, *arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("the training in out is finished; --resume False repeats it\n")
    assert "model out/model_steps_228.pt; measure it" in out


def test_killed_training_goes_on_to_the_same_model(trained, monkeypatch, capsys):
    folder, arguments, _ = trained
    arguments = ["killed" if argument == "out" else str(argument) for argument in arguments]
    process = subprocess.Popen(
        [sys.executable, ROOT / "classify.py", *arguments], cwd=folder, stdout=subprocess.DEVNULL
    )
    while not (folder / "killed/last.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (folder / "killed/model_steps_228.pt").exists()
    monkeypatch.chdir(folder)
    names = [name.removeprefix("--") for name in arguments[::2]]
    given = dict(zip(names, arguments[1::2], strict=True))
    classify.main(**given)
    assert re.search("steps (100|200) to 228", capsys.readouterr().out)
    for name in ("model_steps_228.pt", "model.json", "vocab.txt"):
        assert (folder / "killed" / name).read_bytes() == (folder / "out" / name).read_bytes()


def test_eval_prints_the_measures(trained, monkeypatch, capsys):
    folder, _, _ = trained
    monkeypatch.chdir(folder)
    model = ["--model_file", "out/model_steps_228.pt"]
    assert typed(classify.main, "--mode", "eval", *model, "--data_file", "test.tsv") == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = [
        line.split("\t") for line in (folder / "out/test_predictions.tsv").read_text().splitlines()
    ]
    assert rows[0] == ["label", "prediction", "p(different)", "p(same)"]
    assert len(rows) == 201
    true = [line.split("\t")[0] for line in (folder / "test.tsv").read_text().splitlines()[1:]]
    assert [row[0] for row in rows[1:]] == true
    for _, prediction, different, same in rows[1:]:
        assert prediction == ("same" if float(same) > float(different) else "different")
    about = json.loads((folder / "out/test_metrics.json").read_text())
    right = sum(row[0] == row[1] for row in rows[1:])
    assert about["accuracy"] == right / 200 > 0.95
    table = np.array(about["confusion_matrix"])
    assert np.trace(table) == right
    assert table.sum(1).tolist() == [true.count("different"), true.count("same")]
    assert f"accuracy {right / 200:.4f}, precision " in out
    lines = out.splitlines()
    assert lines[-2].split() == ["different", *map(str, table[0])]


def test_predict_needs_no_labels(trained, monkeypatch, capsys):
    folder, _, _ = trained
    monkeypatch.chdir(folder)
    write(folder / "new.tsv", "text_b\ttext_a\nmov push push mov\tmov reg8 mov push call\n")
    arguments = ["--model_file", "out/model_steps_228.pt", "--data_file", "new.tsv"]
    assert typed(classify.main, "--mode", "predict", *arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.endswith("new_predictions.tsv: 1 prediction\n")
    rows = (folder / "out/new_predictions.tsv").read_text().splitlines()
    assert rows[0] == "prediction\tp(different)\tp(same)"
    assert rows[1].startswith("different\t")
    assert typed(classify.main, "--mode", "eval", *arguments) == 1
    assert capsys.readouterr().err.startswith("error: new.tsv:1: no column 'label' in the header")


def test_wrong_commands_are_refused_in_one_sentence(trained, pretrained, monkeypatch, capsys):
    folder, arguments, _ = trained
    monkeypatch.chdir(folder)
    model = ["--model_file", "out/model_steps_228.pt", "--data_file", "test.tsv"]
    pt = pretrained[0] / "model_steps_7.pt"
    for wrong, message in [
        (["--mode", "eval"], "--mode eval needs --model_file"),
        (
            ["--mode", "eval", *model, "--max_len", 9],
            "has max_len of examples 16, not 9; leave out",
        ),
        (
            ["--mode", "eval", *model, "--noresume"],
            "--noresume is for --mode train",
        ),
        (["--mode", "eval", "--task", "mrpc", *model], "was trained for samefunc; give --task"),
        (["--mode", "eval", "--model_file", pt, "--data_file", "test.tsv"], "unknown key"),
        (["--mode", "eval", "--model_file", "x.pt"], "the model x.pt does not exist; classify.py"),
        (["--mode", "eval", "--model_file", "out"], "the model out is not a file; classify.py"),
        (["--mode", "eval", "--model_file", "test.tsv"], "model.json is missing; classify.py"),
        ([*arguments, "--max_len", 33], "max_len 33 is larger than the model's max_len 32"),
    ]:
        code = typed(classify.main, *wrong)
        err = capsys.readouterr().err
        assert code == (2 if re.search("needs| is for ", message) else 1)
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert message in err


def test_a_setting_is_changed_and_the_same_command_run_again(trained, monkeypatch, capsys):
    """The earlier training is moved aside with all its files, without a question."""
    folder, arguments, _ = trained
    monkeypatch.chdir(folder)
    cfg = json.loads((folder / "cfg.json").read_text())
    names = [str(name).removeprefix("--") for name in arguments[::2]]
    given = dict(zip(names, map(str, arguments[1::2]), strict=True))
    given |= {"train_cfg": "edited.json", "save_dir": "edited"}
    for change in ({"n_epochs": 1}, {"n_epochs": 1, "lr": 0.002}, {"n_epochs": 2, "lr": 0.002}):
        (folder / "edited.json").write_text(json.dumps(cfg | change))
        classify.main(**given)
    said = capsys.readouterr().out
    assert "edited held a training with lr 0.003, not 0.002; that is now in edited-before-" in said
    assert "edited holds step 19 of this training with 19 steps; it continues to 38" in said
    (moved,) = folder.glob("edited-before-*")
    expected = {"last.pt", "model.json", "model_steps_19.pt", "runs", "vocab.txt"}
    assert {path.name for path in moved.iterdir()} == expected
    classify.load_classifier(moved / "model_steps_19.pt", "samefunc")
    assert {path.name for path in (folder / "edited").iterdir()} == expected | {"model_steps_38.pt"}


class Called(SentenceTask):
    """The test's own task: does a text contain a call?"""

    labels = ("no", "yes")
    label, text_a, text_b = "calls", "code", None
    tokenizer = "corpus"


def test_a_new_task_is_one_class(pretrained, tmp_path, monkeypatch, capsys):
    rng = random.Random(1)
    rows = []
    for _ in range(300):
        calls = rng.random() < 0.5
        words = rng.choices(["call", "reg8"] if calls else ["mov", "push"], k=6)
        rows.append(f"{'yes' if calls else 'no'}\t{' '.join(words)}")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "table.tsv", "calls\tcode\n" + "\n".join(rows) + "\n")
    cfg = dict(seed=1, batch_size=32, lr=0.003, n_epochs=20, warmup=0.1, save_steps=999)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/train_called.json").write_text(json.dumps(cfg | {"total_steps": 9999}))
    start = str(pretrained[0] / "model_steps_7.pt")
    classify.main("called", data_file="table.tsv", pretrain_file=start)
    model = "out-called/model_steps_200.pt"
    classify.main("called", data_file="table.tsv", model_file=model, mode="eval")
    said = capsys.readouterr().out
    assert "300 examples, 2 labels" in said
    assert json.loads(Path("out-called/table_metrics.json").read_text())["accuracy"] > 0.95


def test_an_unknown_task_names_those_there_are(capsys):
    assert typed(classify.main, "--task", "nothing") == 2
    assert "--task nothing: the tasks are mrpc, mnli, samefunc" in capsys.readouterr().err


def test_mnli_rows_without_an_agreed_label_are_left_out_and_counted(tmp_path, capsys):
    row = "0\t1\t2\tfiction\t( a )\t( b )\t(ROOT a)\t(ROOT b)\tone\ttwo\tneutral\t{}\n"
    rows = "".join(map(row.format, ("entailment", "-", "neutral", "-")))
    file = write(tmp_path / "dev.tsv", f"{MNLI}label1\tgold_label\n{rows}")
    examples = read_examples(Mnli, file, labelled=True)
    assert [Mnli.labels[i] for i in examples.label] == ["entailment", "neutral"]
    assert len(examples.text_a) == len(examples.text_b) == 2
    assert capsys.readouterr().out == f"{file}: left out 2 rows labelled '-'\n"
    wrong = write(tmp_path / "bad.tsv", f"{MNLI}label1\tgold_label\n{rows}{row.format('maybe')}")
    with pytest.raises(UserError, match=r"bad\.tsv:6: unknown label 'maybe'"):
        read_examples(Mnli, wrong, labelled=True)
    none = write(tmp_path / "none.tsv", f"{MNLI}label1\tgold_label\n{row.format('-')}")
    with pytest.raises(UserError, match=r"none\.tsv has no row with one of the labels contr"):
        read_examples(Mnli, none, labelled=True)
    assert len(read_examples(Mnli, none, labelled=False).text_a) == 1


def test_eval_refuses_settings_that_are_not_the_models(trained, monkeypatch):
    """Documented commands give all settings with --mode eval, too; matching ones are accepted."""
    folder, _, _ = trained
    monkeypatch.chdir(folder)
    sizes = {k: v for k, v in dataclasses.asdict(CFG).items() if k != "vocab_size"}
    write(folder / "right.json", json.dumps(sizes))
    write(folder / "wrong.json", json.dumps(sizes | {"n_layers": 3}))
    write(folder / "right.txt", (folder / "out/vocab.txt").read_text())
    write(folder / "wrong.txt", "\n".join(reversed(VOCAB)) + "\n")
    write(folder / "not_a_config.json", "{}")
    given = {"model_file": "out/model_steps_228.pt", "data_file": "test.tsv", "mode": "eval"}
    given |= {"train_cfg": "cfg.json", "model_cfg": "right.json", "vocab": "right.txt"}
    given |= {"max_len": 16, "save_dir": "evaluated"}
    classify.main(**given)
    assert (folder / "evaluated/test_metrics.json").exists()
    for change, message in [
        (
            {"model_cfg": "wrong.json"},
            r"_228\.pt has n_layers 2, not 3; leave out --mod",
        ),
        ({"max_len": 12}, "has max_len of examples 16, not 12; leave out"),
        ({"vocab": "wrong.txt"}, r"wrong\.txt is not the vocabulary that .*; leave --vocab out"),
        ({"train_cfg": "not_a_config.json"}, "key 'seed' is missing"),
        ({"train_cfg": "none.json"}, r"none\.json"),
        ({"pretrain_file": "x.pt"}, "--pretrain_file is for --mode train, not for eval"),
        ({"eval_file": "x.tsv"}, "--eval_file is for --mode train, not for eval"),
    ]:
        with pytest.raises(UserError, match=message):
            classify.main(**given | change)


def test_training_starts_from_a_fine_tuned_model_with_its_head(trained, monkeypatch):
    folder, _, _ = trained
    monkeypatch.chdir(folder)
    cfg = json.loads((folder / "cfg.json").read_text()) | {"total_steps": 1, "lr": 1e-9}
    write(folder / "one_step.json", json.dumps(cfg))
    given = {"train_cfg": "one_step.json", "data_file": "train.tsv", "save_dir": "again"}
    classify.main(**given, model_file="out/model_steps_228.pt", log_dir="logs")
    before, after = (
        checkpoint.load_pt(folder / f) for f in ("out/model_steps_228.pt", "again/model_steps_1.pt")
    )
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-5)
    assert list((folder / "logs").glob("events.*"))
    assert not (folder / "again/runs").exists()
    with pytest.raises(UserError, match="give --pretrain_file or --model_file"):
        classify.main(**given, model_file="out/model_steps_228.pt", pretrain_file="x.pt")


def test_settings_of_the_tasks_are_in_the_repository():
    for name in ("mrpc", "mnli", "samefunc"):
        train.Config.from_json(ROOT / f"config/train_{name}.json")
