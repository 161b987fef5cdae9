"""BERT in Hugging Face's form: names of weights, config.json, tokenizer.json, model.safetensors.

The weights are the same numbers but for one thing. The two answers to "is B next?" stand in the
other order: in Google's and Hugging Face's BERT class 0 means "B follows A" and class 1 "B is
random"; here class 1 means "B follows A", as in this lineage's PyTorch BERTs. So the two rows of
``classifier`` change places (`swap_next`), both ways.
"""

import dataclasses
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import safetensors.torch
import tokenizers
import torch
from pydantic import PositiveInt
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from torch import Tensor

import models
from tokenization import SPECIAL_TOKENS, CorpusTokenizer, FullTokenizer, load_vocab
from utils import STRICT, UserError, read_config, write_json

# Our modules -> Hugging Face's, whose scopes are Google's.
BLOCK = {
    "attn.proj_q": "attention.self.query",
    "attn.proj_k": "attention.self.key",
    "attn.proj_v": "attention.self.value",
    "proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "pwff.fc1": "intermediate.dense",
    "pwff.fc2": "output.dense",
    "norm2": "output.LayerNorm",
}
OUTSIDE = {
    "transformer.embed.tok_embed": "bert.embeddings.word_embeddings",
    "transformer.embed.pos_embed": "bert.embeddings.position_embeddings",
    "transformer.embed.seg_embed": "bert.embeddings.token_type_embeddings",
    "transformer.embed.norm": "bert.embeddings.LayerNorm",
    "fc": "bert.pooler.dense",
    "linear": "cls.predictions.transform.dense",
    "norm": "cls.predictions.transform.LayerNorm",
    "classifier": "cls.seq_relationship",
    "decoder": "cls.predictions.decoder",
}
# `models.Config`'s keys -> those of config.json.
SIZES = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "dim_ff": "intermediate_size",
    "p_drop_hidden": "hidden_dropout_prob",
    "p_drop_attn": "attention_probs_dropout_prob",
    "max_len": "max_position_embeddings",
    "n_segments": "type_vocab_size",
    "init_std": "initializer_range",
    "vocab_size": "vocab_size",
}


def hugging_face_name(key: str) -> str:
    """Return what Hugging Face calls the weight ``key`` of `models.BertModel4Pretrain`."""
    if key == "decoder_bias":
        return "cls.predictions.bias"
    module, parameter = key.rsplit(".", 1)
    parameter = {"gamma": "weight", "beta": "bias"}.get(parameter, parameter)
    if block := re.fullmatch(r"transformer\.blocks\.(\d+)\.(.+)", module):
        return f"bert.encoder.layer.{block[1]}.{BLOCK[block[2]]}.{parameter}"
    return f"{OUTSIDE[module]}.{parameter}"


def swap_next(state: dict[str, Tensor]) -> None:
    """Change class 0 and class 1 of "is B next?" in a state dict with our keys."""
    for key in ("classifier.weight", "classifier.bias"):
        if key in state:
            state[key] = state[key].flip(0)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config={**STRICT, "extra": "ignore"})
class BertConfig:
    """The part of config.json that decides what the weights mean; any other model is refused."""

    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    intermediate_size: PositiveInt
    hidden_dropout_prob: models.Probability
    attention_probs_dropout_prob: models.Probability
    max_position_embeddings: PositiveInt
    type_vocab_size: PositiveInt
    initializer_range: pydantic.PositiveFloat = 0.02
    model_type: Literal["bert"]
    hidden_act: Literal["gelu"] = "gelu"
    layer_norm_eps: Annotated[float, pydantic.Field(ge=1e-12, le=1e-12)] = 1e-12
    position_embedding_type: Literal["absolute"] = "absolute"
    is_decoder: Literal[False] = False
    tie_word_embeddings: Literal[True] = True
    pad_token_id: int | None = 0
    architectures: list[str] | None = None
    # What model.json says beside the sizes; transformers keeps a key that it does not know.
    pretraining: dict[str, Any] | None = None


def to_hugging_face(tokenizer: CorpusTokenizer | FullTokenizer) -> tokenizers.Tokenizer:
    """Return a tokenizer of Hugging Face's that gives the same ids, between [CLS] and [SEP].

    A special token of a user's text, say [MASK], is found inside words, too; ours wants blanks
    around it.
    """
    vocab = tokenizer.vocab
    model = tokenizers.models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100)
    theirs = tokenizers.Tokenizer(model)
    if isinstance(tokenizer, CorpusTokenizer):
        # Python's white space: that of Unicode, and four separators of ASCII.
        theirs.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\x1c-\x1f]+"), "removed")
        # Ours keeps any known word whole, WordPiece only those of up to 100 characters.
        theirs.add_tokens(
            [
                AddedToken(word, single_word=True, normalized=False)
                for word in vocab
                if len(word) > 100
            ]
        )
    else:
        lower = tokenizer.basic_tokenizer.do_lower_case
        theirs.normalizer = normalizers.BertNormalizer(lowercase=lower)
        theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    theirs.add_special_tokens(list(SPECIAL_TOKENS))
    theirs.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocab[name]) for name in ("[CLS]", "[SEP]")],
    )
    theirs.decoder = tokenizers.decoders.WordPiece(cleanup=False)
    return theirs


def write_folder(
    folder: Path,
    model: models.BertModel4Pretrain,
    cfg: models.Config,
    tokenizer: CorpusTokenizer | FullTokenizer,
    pretraining: dict[str, Any],
) -> None:
    """Write the files that transformers' ``from_pretrained`` reads, and vocab.txt.

    Parameters
    ----------
    folder : Path
        Exists and is empty.
    pretraining : dict
        What `read_model` shall give back: ``max_len`` at least.
    """
    state = model.state_dict()
    del state["decoder.weight"]  # tied to the embedding
    swap_next(state)
    weights = {hugging_face_name(key): value.contiguous() for key, value in state.items()}
    # By way of bytes, because a full disk is no OSError in the libraries' own writers.
    data = safetensors.torch.save(weights, metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(data)
    config = BertConfig(
        **{theirs: getattr(cfg, ours) for ours, theirs in SIZES.items()},
        model_type="bert",
        pad_token_id=tokenizer.vocab["[PAD]"],
        architectures=["BertForPreTraining"],
        pretraining=pretraining,
    )
    write_json(folder / "config.json", dataclasses.asdict(config))
    text = to_hugging_face(tokenizer).to_str(pretty=True)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            # Else transformers takes BERT's own class for BERT's model_type, with BERT's splitting.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": pretraining["max_len"],
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            **{f"{name[1:-1].lower()}_token": name for name in SPECIAL_TOKENS},
        },
    )
    write_vocab(folder / "vocab.txt", tokenizer.vocab)


def write_vocab(path: Path, tokens: list[str] | dict[str, int]) -> None:
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8", newline="\n")


def read_folder(
    folder: str | os.PathLike[str],
) -> tuple[models.Config, dict[str, Tensor], dict[str, Any], list[str]]:
    """Read config.json and model.safetensors of any BERT with an encoder.

    Returns
    -------
    cfg : models.Config
    state : dict of str to float32 tensors
        With the keys of `models.BertModel4Pretrain`, without those of heads that are not there.
    pretraining : dict
        What `write_folder` was given; empty in a folder of others.
    ignored : list of str
        Names of weights that have no place in our model.

    Raises
    ------
    utils.UserError
        A file is missing or damaged; another model than BERT; the weights do not fit config.json.
    """
    config_file, file = Path(folder, "config.json"), Path(folder, "model.safetensors")
    config: BertConfig = read_config(BertConfig, config_file)
    try:
        cfg = models.Config(**{ours: getattr(config, theirs) for ours, theirs in SIZES.items()})
    except pydantic.ValidationError as error:
        raise UserError(f"{config_file}: {error.errors()[0]['msg']}") from error
    try:
        weights = safetensors.torch.load_file(file)
    except OSError as error:
        raise UserError(
            f"cannot read {file}: {error.strerror or error}; a model in other files must be saved "
            "anew, by save_pretrained of a present transformers"
        ) from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{file} is damaged or no safetensors file: {error}") from error
    weights = {_present_name(name): value for name, value in weights.items()}
    if not any(name.startswith("bert.") for name in weights):  # BertModel, the encoder by itself
        weights = {f"bert.{name}": value for name, value in weights.items()}

    with torch.device("meta"):  # shapes only
        wanted = models.BertModel4Pretrain(cfg).state_dict()
    del wanted["decoder.weight"]
    state, faults = {}, []
    for key, want in wanted.items():
        name = hugging_face_name(key)
        value = weights.pop(name, None)
        if value is None and key.startswith("transformer."):
            faults.append(f"{name} (expected {shape_text(want.shape)}) is missing")
        elif value is not None and value.shape != want.shape:
            faults.append(f"{name} is {shape_text(value.shape)}, expected {shape_text(want.shape)}")
        elif value is not None:
            state[key] = value.float()
    if faults:
        raise UserError(f"{file} does not fit config.json: {first_few(faults)}")
    tied = {
        "cls.predictions.decoder.weight": "transformer.embed.tok_embed.weight",
        "cls.predictions.decoder.bias": "decoder_bias",
    }
    for name, key in tied.items():
        value = weights.pop(name, None)
        if value is not None and not (key in state and torch.equal(value.float(), state[key])):
            raise UserError(f"{file}: {name} is not tied to {hugging_face_name(key)}, as BERT's is")
    weights.pop("bert.embeddings.position_ids", None)  # 0, 1, 2, ... in old files
    swap_next(state)
    if "decoder_bias" in state:
        state["decoder.weight"] = state["transformer.embed.tok_embed.weight"]
    return cfg, state, config.pretraining or {}, sorted(weights)


def _present_name(name: str) -> str:
    """Return today's name of a weight; files made from Google's have gamma and beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def read_vocab(
    folder: str | os.PathLike[str], vocab_size: int
) -> tuple[list[str], Literal["corpus", "bert", "bert-cased"]]:
    """Read the vocabulary of a folder, and see how its tokenizer reads.

    Returns
    -------
    tokens : list of str
        By id, one for each of ``vocab_size`` (those that no token has: ``[unused<id>]``). Empty
        where the folder has no vocabulary of WordPiece.
    tokenizer : {"corpus", "bert", "bert-cased"}
        See `tokenization.get_tokenizer`. It is "corpus" only if that gives the same ids.

    Raises
    ------
    utils.UserError
        A file is damaged; an id that the model has no embedding for.
    """
    vocab_file, file = Path(folder, "vocab.txt"), Path(folder, "tokenizer.json")
    theirs = None
    if file.exists():
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers knows no narrower class
            raise UserError(f"{file} is damaged or no tokenizer: {error}") from error
        theirs = json.loads(tokenizer.to_str())
    if vocab_file.exists():
        vocab = load_vocab(vocab_file)
    elif theirs and theirs["model"]["type"] == "WordPiece":
        vocab = tokenizer.get_vocab()
    else:
        return [], "bert"
    by_id = {number: token for token, number in vocab.items()}
    if max(by_id, default=0) >= vocab_size:
        raise UserError(
            f"the tokenizer in {folder} has ids up to {max(by_id)}, but the model has only "
            f"{vocab_size} tokens (vocab_size)"
        )
    name = "bert" if _lower_cases(folder, theirs) else "bert-cased"
    if theirs and set(SPECIAL_TOKENS) <= vocab.keys():
        ours = json.loads(to_hugging_face(CorpusTokenizer(vocab)).to_str())
        if all(ours[part] == theirs[part] for part in ("normalizer", "pre_tokenizer", "model")):
            name = "corpus"
    return [by_id.get(number, f"[unused{number}]") for number in range(vocab_size)], name


def _lower_cases(folder: str | os.PathLike[str], tokenizer: dict[str, Any] | None) -> bool:
    if tokenizer:
        return bool((tokenizer["normalizer"] or {}).get("lowercase"))
    try:  # what an old folder has instead of tokenizer.json
        settings = json.loads(Path(folder, "tokenizer_config.json").read_text(encoding="utf-8"))
        return bool(settings.get("do_lower_case", True))
    except (OSError, ValueError, AttributeError):
        return True


def first_few(reasons: list[str], named: int = 3) -> str:
    """Join the first reasons of an error, and say how many there are besides."""
    more = f" and {len(reasons) - named} more" if len(reasons) > named else ""
    return ", ".join(reasons[:named]) + more


def shape_text(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
