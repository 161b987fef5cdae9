"""What all foreign BERT files have in common: names of weights, sizes, the pre-training heads.

Google's and Hugging Face's files contain the same weights as ours under other names, with one
difference: the classes of next-sentence prediction. In their files, class 0 means "B follows A"; in
ours class 1 does, as in the PyTorch BERT that this project descends from. So the two rows of
``classifier`` are swapped on reading and writing (`swap_next`).

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
from utils import STRICT, UserError, read_config, remedy

# Our modules -> Hugging Face's; its scopes are the same as Google's.
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
# The pre-training heads, by the prefixes of their keys. A file contains a head completely or not.
HEADS = {
    "pooler": ("fc.",),
    "next sentence": ("classifier.",),
    "masked words": ("linear.", "norm.", "decoder_bias"),
}
TIED = "decoder.weight"  # shared with EMBEDDING, so files need not contain it
EMBEDDING = "transformer.embed.tok_embed.weight"

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A BERT that another program wrote, converted to our names.

    Attributes
    ----------
    sizes : models.Config
    state : dict of str to float32 tensors
        Keys of `models.BertModel4Pretrain`, except those of missing heads.
    vocab : dict of str to int
        Empty if there is no vocabulary.
    reading : {"corpus", "bert", "bert-cased"}
        See `tokenization.get_tokenizer`.
    training : dict
        What our `huggingface.write_folder` stored about the training; else empty.
    ignored : list of str
        Names of weights that our model does not have.
    """

    sizes: models.Config
    state: dict[str, Tensor]
    vocab: dict[str, int]
    reading: TokenizerName
    training: dict[str, Any]
    ignored: list[str]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config={**STRICT, "extra": "ignore"})
class BertConfig:
    """The keys of config.json and bert_config.json that decide how the weights are used.

    Values that our model does not implement are refused.
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
    model_type: Literal["bert"] = "bert"  # not in Google's file
    hidden_act: Literal["gelu"] = "gelu"
    layer_norm_eps: Annotated[float, pydantic.Field(ge=1e-12, le=1e-12)] = 1e-12
    position_embedding_type: Literal["absolute"] = "absolute"
    is_decoder: Literal[False] = False
    tie_word_embeddings: Literal[True] = True
    pad_token_id: int | None = 0
    architectures: list[str] | None = None
    do_lower_case: bool | None = None
    # Our own key, see `huggingface.write_folder`; transformers keeps unknown keys.
    pretraining: dict[str, Any] | None = None


def read_sizes(file: str | os.PathLike[str]) -> tuple[models.Config, BertConfig]:
    """Read config.json or bert_config.json; return the sizes with our names, and all of it."""
    config: BertConfig = read_config(BertConfig, file)
    try:
        return models.Config(
            **{ours: getattr(config, theirs) for ours, theirs in SIZES.items()}
        ), config
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        at = "".join(f"'{SIZES[str(ours)]}' is {problem['input']}: " for ours in problem["loc"])
        raise UserError(f"{file}: {at}{remedy(problem)}") from error


def hugging_face_name(key: str) -> str:
    """Return Hugging Face's name of the weight ``key`` of `models.BertModel4Pretrain`.

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
    """Return key -> shape of all weights of a BERT of these sizes, including the heads."""
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
    """Return the keys of ``wanted`` in a file: all of them, except those of missing heads.

    Parameters
    ----------
    wanted : dict
        Our keys, and the shape that each weight should have in the file.
    name_of : function
        Returns the file's name of a key.
    shapes : dict
        Name -> shape of everything in the file.
    file, sizes : path-like
        For the message: the file, and where the sizes come from.

    Raises
    ------
    utils.UserError
        Weights that are missing or of another shape.
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
            f"{file}: {name} holds NaN or infinite numbers, so the training that wrote it has "
            "failed; use an earlier file"
        )


def finish(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make another program's weights ours: swap the classes, and add the tied decoder."""
    state = swap_next(state)
    if "decoder_bias" in state:
        state[TIED] = state[EMBEDDING]
    return state


def swap_next(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Swap the two classes of next-sentence prediction in a state dict with our keys."""
    swapped = {key: value.flip(0) for key, value in state.items() if key.startswith("classifier.")}
    return state | swapped


def fill_vocab(vocab: Mapping[str, int], size: int, file: str | os.PathLike[str]) -> dict[str, int]:
    """Return a vocabulary sorted by id, with exactly one token for each id below ``size``.

    Missing ids get the token ``[unused<id>]``, because models are often padded to a round number.

    Raises
    ------
    utils.UserError
        An id without an embedding in the model; two tokens with the same id; a token that a line of
        vocab.txt cannot contain.
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
        raise UserError(f"{file}: some tokens are called [unused<number>], but have another id")
    return filled


def lacking_heads(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the pre-training heads that a state dict with our keys lacks."""
    return [
        name
        for name, beginnings in HEADS.items()
        if not any(key.startswith(beginnings) for key in state)
    ]


def first_few(reasons: list[str], named: int = 3) -> str:
    """Join the first reasons of an error, and say how many more there are."""
    more = f" and {len(reasons) - named} more" if len(reasons) > named else ""
    return ", ".join(reasons[:named]) + more


def shape_text(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
