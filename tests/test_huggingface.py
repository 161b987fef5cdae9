"""Hugging Face's format, and checkpoint.py's export and import, against transformers itself."""

import dataclasses
import hashlib
import json
import runpy
import sys
from pathlib import Path

import pytest
import safetensors.torch
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from conftest import shake, tiny_bert
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoint
import models
import pretrain
import utils
from tokenization import SPECIAL_TOKENS, CorpusTokenizer, FullTokenizer
from utils import UserError

ROOT = Path(__file__).parent.parent
LONG = "_ZN" + "4name." * 20  # longer than WordPiece's limit of 100 characters
WORDS = ["mov", "push", "reg8", "imme", "call", "__ctype_b_loc", "operator@GLIBC", LONG]
PIECES = [*"_abcdem.@8", *(f"##{c}" for c in "_abcdem.@8")]
VOCAB = [*SPECIAL_TOKENS, *WORDS, *PIECES]
CFG = tiny_bert(len(VOCAB), p_drop_attn=0.0)
LINE = "push reg8 call __ctype_b_loc [MASK] reg8 imme"


def write_out(folder, model, cfg, vocab):
    """Write the files of a training: the model, model.json and vocab.txt."""
    folder.mkdir()
    checkpoint.save_pt(model.state_dict(), folder / "model_steps_7.pt")
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocab))
    about = {
        "format": 1,
        "model": dataclasses.asdict(cfg),
        "tokenizer": "corpus",
        "vocab_sha256": hashlib.sha256((folder / "vocab.txt").read_bytes()).hexdigest(),
        "data_file": "some/corpus.txt",
        "corpus_sha256": "12ab",
        "max_len": 20,
        "max_pred": 4,
        "mask_prob": 0.2,
        "objectives": ["masked_lm"],
    }
    (folder / "model.json").write_text(json.dumps(about))
    return folder / "model_steps_7.pt"


@pytest.fixture(scope="module")
def model():
    return shake(models.BertModel4Pretrain(CFG)).eval()


@pytest.fixture(scope="module")
def model_file(tmp_path_factory, model):
    return write_out(tmp_path_factory.mktemp("trained") / "out", model, CFG, VOCAB)


@pytest.fixture(scope="module")
def exported(model_file):
    """The exported folder, made in a process that cannot import transformers."""
    folder = model_file.parent.parent / "exported"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        checkpoint.export_model(str(model_file), str(folder))
    return folder


@pytest.fixture(scope="module")
def auto_tokenizer(exported):
    return transformers.AutoTokenizer.from_pretrained(exported)


def logits(ours, input_ids, segments, mask):
    everywhere = torch.arange(input_ids.size(1)).expand_as(input_ids)
    with torch.inference_mode():
        return ours(input_ids, segments, mask, everywhere)


def assert_same_outputs(ours, theirs):
    """Assert equal logits at every real token; our class 1 is class 0 there."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([24, 13, 1])[:, None]
    at = torch.arange(24).expand(3, 24)
    mask = (at < lengths).long()
    vocab_size = ours.decoder_bias.numel()
    ids = torch.randint(vocab_size, (3, 24), generator=generator) * mask
    segments = (at >= lengths // 2).long() * mask
    lm, clsf = logits(ours, ids, segments, mask)
    with torch.inference_mode():
        output = theirs(input_ids=ids, token_type_ids=segments, attention_mask=mask)
    real = mask.bool()
    torch.testing.assert_close(lm[real], output.prediction_logits[real], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        clsf[:, [1, 0]], output.seq_relationship_logits, atol=1e-5, rtol=1e-5
    )


def test_transformers_reads_the_export(exported, model, auto_tokenizer):
    theirs, info = transformers.AutoModelForPreTraining.from_pretrained(
        exported, output_loading_info=True
    )
    assert type(theirs) is transformers.BertForPreTraining
    assert not any(info.values())  # nothing missing, unexpected, mismatched
    assert_same_outputs(model, theirs.eval())

    ours = CorpusTokenizer(exported / "vocab.txt")
    encoded = auto_tokenizer(LINE, "mov a", return_tensors="pt")
    tokens = ["[CLS]", *LINE.split(), "[SEP]", "mov", "a", "[SEP]"]
    assert encoded["input_ids"][0].tolist() == ours.convert_tokens_to_ids(tokens)
    assert encoded["token_type_ids"][0].tolist() == [0] * 9 + [1] * 3
    lm, clsf = logits(model, *(encoded[k] for k in ("input_ids", "token_type_ids")), None)
    with torch.inference_mode():
        output = theirs(**encoded)
    torch.testing.assert_close(lm, output.prediction_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(clsf.flip(1), output.seq_relationship_logits, atol=1e-5, rtol=1e-5)


def test_tokenizer_knows_its_length_and_padding(auto_tokenizer):
    assert auto_tokenizer.model_max_length == 20  # of the training, not the 32 of the embeddings
    batch = auto_tokenizer(["mov", "push reg8"], padding=True)
    assert batch["attention_mask"] == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["input_ids"][0][-1] == 0
    assert auto_tokenizer.decode(auto_tokenizer("mov abc")["input_ids"], True) == "mov abc"


BLANKS = [" ", "\n", "\t", "\x1c", "\x1f", "\x85", "\xa0", "\u2003", "\u3000", "  "]
word = st.one_of(
    st.sampled_from([*VOCAB, "abc_", "a" * 100, "a" * 101, LONG + "a", "é", "日本", "##"]),
    st.text(st.sampled_from("_abcdem.@8Z"), max_size=8),
    st.text(st.characters(codec="utf-8"), max_size=5),
)


@settings(max_examples=400)
@given(st.lists(st.tuples(word, st.sampled_from(BLANKS)), max_size=12))
def test_ids_equal_on_any_text(auto_tokenizer, parts):
    ours = CorpusTokenizer(dict(zip(VOCAB, range(len(VOCAB)), strict=True)))
    text = "".join(word + blank for word, blank in parts)
    theirs = auto_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert theirs == ours.encode(text).tolist()


def test_every_white_space_parts_words(auto_tokenizer):
    for code in range(0x11000):
        if not 0xD800 <= code < 0xE000:
            text = f"mov{chr(code)}reg8"
            whole = auto_tokenizer.convert_tokens_to_ids(["mov", "reg8"])
            ids = auto_tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
            assert (ids == whole) == chr(code).isspace(), hex(code)


def test_import_gives_back_what_was_exported(exported, model_file, model, tmp_path, capsys):
    checkpoint.import_model(str(exported), str(tmp_path / "back"))
    assert "ignored none\n" in capsys.readouterr().out
    before = checkpoint.load_pt(model_file)
    after = checkpoint.load_pt(tmp_path / "back/model.pt")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    for name in ("vocab.txt", "model.json"):
        read = bytes.decode if name == "vocab.txt" else json.loads
        assert read((tmp_path / "back" / name).read_bytes()) == read(
            (model_file.parent / name).read_bytes()
        )
    assert models.Config.from_json(tmp_path / "back/model_cfg.json") == CFG

    outputs = []
    for file in (model_file, tmp_path / "back/model.pt"):
        pretrain.predict(str(file), LINE)
        outputs.append(capsys.readouterr().out)
    assert outputs[0].startswith("[MASK] 1: ")
    assert outputs[0] == outputs[1]


def test_a_folder_saved_again_by_transformers_is_imported(exported, auto_tokenizer, tmp_path):
    folder = tmp_path / "theirs"
    transformers.AutoModelForPreTraining.from_pretrained(exported).save_pretrained(folder)
    auto_tokenizer.save_pretrained(folder)
    (folder / "vocab.txt").unlink(missing_ok=True)
    checkpoint.import_model(str(folder), str(tmp_path / "back"))
    ours, info, tokenizer = checkpoint.load_pretrained(tmp_path / "back/model.pt")
    assert info.corpus_sha256 == "12ab"
    assert list(tokenizer.vocab) == VOCAB
    assert_same_outputs(ours, transformers.BertForPreTraining.from_pretrained(exported).eval())


def make_theirs(cls, **changes):
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 30,
    }
    return shake(cls(transformers.BertConfig(**{**sizes, **changes}))).eval()


def english(folder):
    """A tokenizer like that of Google's BERT."""
    words = [*SPECIAL_TOKENS, "hello", "world", *"abc_", "##a", "##b"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    theirs = tokenizers.BertWordPieceTokenizer(str(folder / "vocab.txt"))
    theirs.save(str(folder / "tokenizer.json"))
    return words


def test_a_model_trained_elsewhere_is_imported(tmp_path, capsys):
    theirs = make_theirs(transformers.BertForPreTraining)
    theirs.save_pretrained(tmp_path / "theirs")
    words = english(tmp_path / "theirs")
    checkpoint.import_model(str(tmp_path / "theirs"), str(tmp_path / "ours"))
    assert "no model.json" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "ours").iterdir())
    assert names == ["model.pt", "model_cfg.json", "vocab.txt"]
    tokens = FullTokenizer(tmp_path / "ours/vocab.txt")  # as many as the model has
    assert list(tokens.vocab) == words + [f"[unused{i}]" for i in range(len(words), 40)]
    cfg = models.Config.from_json(tmp_path / "ours/model_cfg.json")
    ours = models.BertModel4Pretrain(cfg)
    checkpoint.load_model_file(ours, tmp_path / "ours/model.pt")
    assert_same_outputs(ours.eval(), theirs)

    # and back, which needs --tokenizer
    checkpoint.export_model(
        str(tmp_path / "ours/model.pt"),
        str(tmp_path / "back"),
        model_cfg=str(tmp_path / "ours/model_cfg.json"),
        vocab=str(tmp_path / "ours/vocab.txt"),
        tokenizer="bert",
    )
    back = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "back").eval()
    assert_same_outputs(ours, back)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    text = "Héllo, WORLD a_ab [MASK]"
    reference = transformers.BertTokenizer.from_pretrained(tmp_path / "theirs")
    assert tokenizer(text)["input_ids"] == reference(text)["input_ids"]


@pytest.mark.parametrize("cls", [transformers.BertModel, transformers.BertForMaskedLM])
def test_an_encoder_without_heads_is_imported(cls, tmp_path, capsys):
    theirs = make_theirs(cls)
    theirs.half().save_pretrained(tmp_path / "theirs")
    theirs.float()
    checkpoint.import_model(str(tmp_path / "theirs"), str(tmp_path / "ours"))
    printed = capsys.readouterr().out
    assert "it has no head for " in printed
    assert "no vocab.txt" in printed
    state = checkpoint.load_pt(tmp_path / "ours/model.pt")
    assert all(value.dtype == torch.float32 for value in state.values())
    heads = {key.split(".")[0] for key in state} - {"transformer"}
    masked = {"linear", "norm", "decoder", "decoder_bias"}
    assert heads == ({"fc"} if cls is transformers.BertModel else masked)
    ours = models.Transformer(models.Config.from_json(tmp_path / "ours/model_cfg.json")).eval()
    ours.load_state_dict(
        {k[12:]: value for k, value in state.items() if k.startswith("transformer.")}
    )
    ids = torch.arange(20).view(2, 10)
    encoder = theirs if cls is transformers.BertModel else theirs.bert
    with torch.inference_mode():
        torch.testing.assert_close(
            ours(ids, ids % 2), encoder(ids, token_type_ids=ids % 2)[0], atol=1e-5, rtol=1e-5
        )


def test_what_has_no_place_is_reported(tmp_path, capsys):
    make_theirs(transformers.BertForSequenceClassification).save_pretrained(tmp_path / "theirs")
    checkpoint.import_model(str(tmp_path / "theirs"), str(tmp_path / "ours"))
    assert "ignored classifier.bias, classifier.weight" in capsys.readouterr().out


def test_old_names_of_weights_are_understood(exported, model_file, tmp_path):
    """Files converted from Google's say gamma and beta, and contain positions and the decoder."""
    weights = safetensors.torch.load_file(exported / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in weights.items()
    }
    assert old.keys() != weights.keys()
    old["bert.embeddings.position_ids"] = torch.arange(32)[None]
    tied = old["bert.embeddings.word_embeddings.weight"].clone()
    old["cls.predictions.decoder.weight"] = tied
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "config.json").write_bytes((exported / "config.json").read_bytes())
    safetensors.torch.save_file(old, folder / "model.safetensors")
    checkpoint.import_model(str(folder), str(tmp_path / "ours"))
    before, after = checkpoint.load_pt(model_file), checkpoint.load_pt(tmp_path / "ours/model.pt")
    assert all(torch.equal(before[key], after[key]) for key in before)

    old["cls.predictions.decoder.weight"] += 1
    safetensors.torch.save_file(old, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"decoder\.weight must equal bert\.embeddings"):
        checkpoint.import_model(str(folder), str(tmp_path / "untied"))
    assert not (tmp_path / "untied").exists()


def copy_with(exported, folder, **changes):
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, r"config\.json: 'model_type' is \"roberta\""),
        ({"hidden_act": "relu"}, r"config\.json: 'hidden_act' is \"relu\""),
        ({"layer_norm_eps": 1e-5}, r"config\.json: 'layer_norm_eps' is 1e-05"),
        ({"tie_word_embeddings": False}, r"config\.json: 'tie_word_embeddings' is false"),
        ({"num_attention_heads": 5}, r"config\.json: .*24 is not divisible by 'n_heads' 5"),
        ({"num_hidden_layers": 3}, r"fit config\.json: bert\.encoder\.layer\.2\.\S+ \(expected"),
        ({"intermediate_size": 41}, r"intermediate\.dense\.weight is 40x24, expected 41x24"),
    ],
)
def test_what_does_not_fit_is_named(exported, tmp_path, changes, message):
    folder = copy_with(exported, tmp_path / "bad", **changes)
    with pytest.raises(UserError, match=message):
        checkpoint.import_model(str(folder), str(tmp_path / "ours"))
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("how", ["cut", "foreign"])
def test_damaged_folders_are_refused(exported, tmp_path, name, how):
    folder = copy_with(exported, tmp_path / "bad")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2] if how == "cut" else b"\x80\x04 what?")
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        checkpoint.import_model(str(folder), str(tmp_path / "ours"))
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_missing_files_are_named(exported, tmp_path):
    folder = copy_with(exported, tmp_path / "bad")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: No such file.*save_pretrained"):
        checkpoint.import_model(str(folder), str(tmp_path / "ours"))
    with pytest.raises(UserError, match=r"none\.index is missing; give a folder"):
        checkpoint.import_model(str(tmp_path / "none"), str(tmp_path / "ours"))


@pytest.mark.parametrize("number", [2**24 + 1, 2**31, 2**32 - 1])
def test_a_huge_id_does_not_end_the_process(exported, tmp_path, number):
    """tokenizers lists all ids that are missing, in memory that need not be there."""
    folder = copy_with(exported, tmp_path / "bad")
    file = folder / "tokenizer.json"
    made = json.loads(file.read_text())
    made["model"]["vocab"]["[UNK]"] = number
    file.write_text(json.dumps(made))
    with pytest.raises(UserError, match=rf"tokenizer\.json gives a token the id {number}, but"):
        checkpoint.import_model(str(folder), str(tmp_path / "ours"))


def test_more_tokens_than_embeddings_are_refused(exported, tmp_path):
    folder = copy_with(exported, tmp_path / "bad")
    with (folder / "vocab.txt").open("a") as file:
        file.write("one_more\n")
    with pytest.raises(UserError, match=rf"ids up to {len(VOCAB)}, but .* only {len(VOCAB)} token"):
        checkpoint.import_model(str(folder), str(tmp_path / "ours"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mo\nv": 5}, r"tokenizer\.json: the token 'mo\\nv' \(id 5\) has a blank in it"),
        ({"m v": 5}, r"the token 'm v' \(id 5\) has a blank in it"),
        ({"": 5}, r"the token '' \(id 5\) is empty"),
        ({"mov": 5, "two": 5}, r"'mov' and 'two' have the same id 5"),
    ],
)
def test_tokens_with_line_ends_are_refused(exported, tmp_path, change, message):
    """A line end in a token would add a line to vocab.txt and shift all later ids."""
    folder = copy_with(exported, tmp_path / "bad")
    (folder / "vocab.txt").unlink()
    content = json.loads((folder / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {t: i for t, i in vocab.items() if t != "mov"} | change
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        checkpoint.import_model(str(folder), str(tmp_path / "ours"))
    assert not (tmp_path / "ours").exists()


def test_two_vocabularies_that_disagree_are_refused(exported, tmp_path):
    folder = copy_with(exported, tmp_path / "bad")
    lines = (folder / "vocab.txt").read_text().split("\n")
    lines[5:7] = lines[6], lines[5]
    (folder / "vocab.txt").write_text("\n".join(lines))
    with pytest.raises(
        UserError, match=r"'mov' on line 7, but .*tokenizer\.json gives it the id 5"
    ):
        checkpoint.import_model(str(folder), str(tmp_path / "ours"))


@pytest.mark.parametrize(
    ("word", "said", "reading"),
    [("hello", None, "bert"), ("Hello", None, "bert-cased"), ("Hello", True, "bert")],
)
def test_case_of_an_old_folder_is_recognised(tmp_path, word, said, reading):
    """Without tokenizer.json, tokenizer_config.json or vocab.txt tells whether it is cased."""
    make_theirs(transformers.BertModel).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, word]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": said}))
    assert checkpoint.read_foreign(tmp_path).reading == reading
    (tmp_path / "tokenizer_config.json").write_text("[" * 10)
    with pytest.raises(UserError, match=r"tokenizer_config\.json is not JSON"):
        checkpoint.read_foreign(tmp_path)


def test_filled_folders_are_left_alone(exported, model_file, tmp_path, monkeypatch):
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    for act in (
        lambda: checkpoint.export_model(str(model_file), str(target)),
        lambda: checkpoint.import_model(str(exported), str(target)),
    ):
        with pytest.raises(UserError, match="mine is not empty"):
            act()
    assert [path.name for path in target.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match=r"thesis\.txt is a file"):
        checkpoint.export_model(str(model_file), str(target / "thesis.txt"))
    (target / "thesis.txt").unlink()
    monkeypatch.setattr(utils, "PATIENCE", 0.1)
    busy = pytest.raises(UserError, match=r"another run writes to .*mine")
    with utils.one_writer(target), busy:
        checkpoint.export_model(str(model_file), str(target))
    checkpoint.export_model(str(model_file), str(target))  # an empty one is fine
    assert (target / "config.json").exists()


def test_a_lone_model_file_is_exported_with_given_sizes(model_file, exported, tmp_path):
    """Without model.json, sizes and vocabulary must be given."""
    (tmp_path / "lone.pt").write_bytes(model_file.read_bytes())
    (tmp_path / "sizes.json").write_text(
        json.dumps({**dataclasses.asdict(CFG), "vocab_size": None})
    )
    lone, to, cfg = (str(tmp_path / name) for name in ("lone.pt", "to", "sizes.json"))
    with pytest.raises(UserError, match=r"model\.json is missing"):
        checkpoint.export_model(lone, to)
    with pytest.raises(UserError, match="--model_cfg and --vocab belong together"):
        checkpoint.export_model(lone, to, model_cfg=cfg)
    checkpoint.export_model(lone, to, model_cfg=cfg, vocab=str(exported / "vocab.txt"))
    for name in ("model.safetensors", "tokenizer.json", "vocab.txt"):
        assert (tmp_path / "to" / name).read_bytes() == (exported / name).read_bytes()


def test_transformers_fills_masks_as_the_model_learned(tmp_path):
    """A model that has memorised three blocks completes them in transformers, too."""
    blocks = [
        ["push", "reg8", "call", "__ctype_b_loc"],
        ["mov", "imme", "je", "ret"],
        ["lea", "ptr", "jmp", "__errno_location"],
    ]
    vocab = [*SPECIAL_TOKENS, *(word for block in blocks for word in block)]
    cfg = dataclasses.replace(CFG, vocab_size=len(vocab), p_drop_hidden=0.0)
    torch.manual_seed(0)
    model = models.BertModel4Pretrain(cfg)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    ids = torch.tensor([[2, *map(vocab.index, block), 3] for block in blocks for _ in block])
    at = torch.arange(1, 5).repeat(3)[:, None]  # every word of every block is masked once
    for _ in range(100):
        scores, _ = model(ids.scatter(1, at, 4), torch.zeros_like(ids), None, at)
        optimizer.zero_grad()
        F.cross_entropy(scores[:, 0], ids.gather(1, at)[:, 0]).backward()
        optimizer.step()
    file = write_out(tmp_path / "out", model, cfg, vocab)
    checkpoint.export_model(str(file), str(tmp_path / "to"))
    fill = transformers.pipeline("fill-mask", str(tmp_path / "to"), device="cpu")
    for block in blocks:
        for hidden, word in enumerate(block):
            best = fill(" ".join([*block[:hidden], "[MASK]", *block[hidden + 1 :]]))[0]
            assert best["token_str"] == word
            assert best["sequence"] == " ".join(block)


def test_next_means_next_on_both_sides(tmp_path):
    """A model that always answers "B follows A" does so in transformers, too."""
    model = models.BertModel4Pretrain(CFG).eval()
    with torch.no_grad():
        model.classifier.bias += torch.tensor([-9.0, 9.0])  # as pretrain.py's is_next: 1 is true
    ids = torch.tensor([[2, 5, 3, 6, 3]])
    _, clsf = model(ids, torch.zeros_like(ids), None, torch.zeros_like(ids))
    assert clsf.argmax(1).item() == 1
    file = write_out(tmp_path / "out", model, CFG, VOCAB)
    checkpoint.export_model(str(file), str(tmp_path / "to"))
    theirs = transformers.BertForNextSentencePrediction.from_pretrained(tmp_path / "to").eval()
    follows = torch.tensor([0])  # transformers: "0 indicates sequence B is a continuation"
    with torch.inference_mode():
        output = theirs(ids, labels=follows)
    assert output.loss < 1e-3
    assert output.logits.argmax(1).item() == 0


def test_export_and_import_run_from_the_command_line(model_file, tmp_path, monkeypatch, capfd):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["checkpoint.py", *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "checkpoint.py"), run_name="__main__")
        return end.value.code, *capfd.readouterr()

    monkeypatch.chdir(tmp_path)
    code, out, err = run("export", "--model_file", str(model_file), "--to", "there")
    assert (code, err) == (0, "")
    assert out.startswith("there: config.json, model.safetensors")
    code, out, err = run("import", "--source", "there", "--to", "back")
    assert (code, err) == (0, "")
    assert out.startswith("back: model.json, model.pt, model_cfg.json, vocab.txt\n  read ")
    code, _, err = run("import", "--source", "there", "--to", "back")
    assert code == 1
    assert err == "error: back is not empty; choose another folder, or delete it\n"
    code, _, err = run()
    assert code == 2
    assert err.startswith("error: say what to do")


def test_a_model_keeps_its_vocabulary(model, tmp_path):
    file = write_out(tmp_path / "out", model, CFG, VOCAB)
    with (tmp_path / "out/vocab.txt").open("a") as vocab:
        vocab.write("one_more\n")
    with pytest.raises(UserError, match=r"vocab\.txt is not the vocabulary that .*_7\.pt was"):
        checkpoint.load_pretrained(file)
