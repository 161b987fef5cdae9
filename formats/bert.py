"""What every file of a BERT says: names of weights, sizes, the pre-training heads.

Google's and Hugging Face's files hold the numbers that our own hold, under other names. They
differ from ours in one thing: the answers to "is B next?" stand in the other order. Class 0 means
"B follows A" there; here class 1 does, as in this lineage's PyTorch BERTs. So the two rows of
``classifier`` change places on the way in and out (`swap_next`).

    wanted = wanted_weights(cfg)                        # {our key: shape}
    held = match(wanted, hugging_face_name, shapes, "model.safetensors", "config.json")
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

import pydantic
import torch
from pydantic import PositiveInt
from torch import Tensor

import models
from tokenization import TokenizerName, token_fault
from utils import STRICT, UserError, read_config

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
# `models.Config`'s keys -> those of config.json and bert_config.json.
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
# The pre-training heads, by the beginnings of their keys. A file holds all of a head, or none.
HEADS = {
    "pooler": ("fc.",),
    "next sentence": ("classifier.",),
    "masked words": ("linear.", "norm.", "decoder_bias"),
}
TIED = "decoder.weight"  # the same numbers as the next, which files need to hold once only
EMBEDDING = "transformer.embed.tok_embed.weight"

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A BERT that another program wrote, in our terms.

    Attributes
    ----------
    sizes : models.Config
    state : dict of str to float32 tensors
        With the keys of `models.BertModel4Pretrain`, without those of heads that are not there.
    vocab : dict of str to int
        Empty where the file comes without a vocabulary.
    reading : {"corpus", "bert", "bert-cased"}
        See `tokenization.get_tokenizer`.
    training : dict
        What `huggingface.write_folder` was told of the training; empty in files of others.
    ignored : list of str
        Names of what has no place in our model.
    """

    sizes: models.Config
    state: dict[str, Tensor]
    vocab: dict[str, int]
    reading: TokenizerName
    training: dict[str, Any]
    ignored: list[str]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config={**STRICT, "extra": "ignore"})
class BertConfig:
    """The part of config.json and bert_config.json that decides what the weights mean.

    Any other model than BERT is refused.
    """

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
    model_type: Literal["bert"] = "bert"  # Google's file does not say it
    hidden_act: Literal["gelu"] = "gelu"
    layer_norm_eps: Annotated[float, pydantic.Field(ge=1e-12, le=1e-12)] = 1e-12
    position_embedding_type: Literal["absolute"] = "absolute"
    is_decoder: Literal[False] = False
    tie_word_embeddings: Literal[True] = True
    pad_token_id: int | None = 0
    architectures: list[str] | None = None
    do_lower_case: bool | None = None
    # What model.json says beside the sizes; transformers keeps a key that it does not know.
    pretraining: dict[str, Any] | None = None


def read_sizes(file: str | os.PathLike[str]) -> tuple[models.Config, BertConfig]:
    """Read config.json or bert_config.json: the sizes in our terms, and all that it says."""
    config: BertConfig = read_config(BertConfig, file)
    try:
        return models.Config(
            **{ours: getattr(config, theirs) for ours, theirs in SIZES.items()}
        ), config
    except pydantic.ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"{file}: {message}") from error


def hugging_face_name(key: str) -> str:
    """Return what Hugging Face calls the weight ``key`` of `models.BertModel4Pretrain`.

    >>> hugging_face_name("transformer.blocks.3.attn.proj_q.bias")
    'bert.encoder.layer.3.attention.self.query.bias'
    """
    if key == "decoder_bias":
        return "cls.predictions.bias"
    module, parameter = key.rsplit(".", 1)
    parameter = {"gamma": "weight", "beta": "bias"}.get(parameter, parameter)
    if block := re.fullmatch(r"transformer\.blocks\.(\d+)\.(.+)", module):
        return f"bert.encoder.layer.{block[1]}.{BLOCK[block[2]]}.{parameter}"
    return f"{OUTSIDE[module]}.{parameter}"


def wanted_weights(cfg: models.Config) -> dict[str, Shape]:
    """Return key -> shape of what a file of a BERT of these sizes may hold, heads included."""
    with torch.device("meta"):  # shapes only
        state = models.BertModel4Pretrain(cfg).state_dict()
    return {key: tuple(value.shape) for key, value in state.items() if key != TIED}


def match(
    wanted: Mapping[str, Shape],
    name_of: Callable[[str], str],
    shapes: Mapping[str, Shape],
    file: str | os.PathLike[str],
    sizes: str | os.PathLike[str],
) -> list[str]:
    """Return the keys of ``wanted`` that a file holds: all, except heads that it lacks as a whole.

    Parameters
    ----------
    wanted : dict
        Our keys, and each weight's shape as the file would have it.
    name_of : function
        Gives the file's name of a key.
    shapes : dict
        Name -> shape of all that the file holds.
    file, sizes : path-like
        For the message: what is read, and where the sizes come from.

    Raises
    ------
    utils.UserError
        Weights that are missing, or of another shape.
    """
    held = {key for key in wanted if name_of(key) in shapes}
    lacking = [key for key in wanted if key not in held]
    for beginnings in HEADS.values():
        head = {key for key in wanted if key.startswith(beginnings)}
        if not head & held:
            lacking = [key for key in lacking if key not in head]
    faults = [f"{name_of(key)} (expected {shape_text(wanted[key])}) is missing" for key in lacking]
    faults += [
        f"{name_of(key)} is {shape_text(shapes[name_of(key)])}, expected {shape_text(wanted[key])}"
        for key in wanted
        if key in held and tuple(shapes[name_of(key)]) != tuple(wanted[key])
    ]
    if faults:
        raise UserError(f"{file} does not fit {sizes}: {first_few(faults)}")
    return [key for key in wanted if key in held]


def check_numbers(name: str, value: Tensor, file: str | os.PathLike[str]) -> None:
    """Raise a `utils.UserError` unless ``value`` holds finite floating-point numbers."""
    if value.is_meta:
        raise UserError(f"{file}: {name} has a shape, but no numbers")
    if value.layout != torch.strided or not value.is_floating_point():
        kind = str(value.dtype) + (f", {value.layout}" if value.layout != torch.strided else "")
        raise UserError(
            f"{file}: {name} is of type {kind.replace('torch.', '')}; weights must be "
            "floating-point numbers"
        )
    if not torch.isfinite(value).all():
        raise UserError(
            f"{file}: {name} holds NaN or infinite numbers; the training that wrote it has failed, "
            "so take an earlier file"
        )


def finish(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return another program's weights as ours mean them: `swap_next`, and the tied decoder."""
    state = swap_next(state)
    if "decoder_bias" in state:
        state[TIED] = state[EMBEDDING]
    return state


def swap_next(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Change class 0 and class 1 of "is B next?" in a state dict with our keys."""
    swapped = {key: value.flip(0) for key, value in state.items() if key.startswith("classifier.")}
    return state | swapped


def fill_vocab(vocab: Mapping[str, int], size: int, file: str | os.PathLike[str]) -> dict[str, int]:
    """Return a vocabulary in the order of its ids, with one token for each id below ``size``.

    An id that no token has gets ``[unused<id>]``: models are often padded to a round number.

    Raises
    ------
    utils.UserError
        An id that the model has no embedding for; two tokens of one id; a token that cannot stand
        on a line of vocab.txt.
    """
    by_id: dict[int, str] = {}
    for token, number in vocab.items():
        fault = token_fault(token)
        if fault is not None:
            raise UserError(f"{file}: the token {token!r} (id {number}) {fault}")
        if by_id.setdefault(number, token) != token:
            raise UserError(f"{file}: {by_id[number]!r} and {token!r} have the same id {number}")
    if max(by_id, default=0) >= size:
        raise UserError(
            f"{file} has ids up to {max(by_id)}, but the model has only {size} tokens (vocab_size)"
        )
    filled = {by_id.get(number, f"[unused{number}]"): number for number in range(size)}
    if len(filled) < size:
        raise UserError(f"{file} names some of its tokens [unused<id>] by another id than theirs")
    return filled


def lacking_heads(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the pre-training heads that a state dict with our keys lacks."""
    return [
        name
        for name, beginnings in HEADS.items()
        if not any(key.startswith(beginnings) for key in state)
    ]


def first_few(reasons: list[str], named: int = 3) -> str:
    """Join the first reasons of an error, and say how many there are besides."""
    more = f" and {len(reasons) - named} more" if len(reasons) > named else ""
    return ", ".join(reasons[:named]) + more


def shape_text(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
