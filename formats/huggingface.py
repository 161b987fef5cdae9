"""Hugging Face's folders: config.json, model.safetensors, tokenizer.json.

bert = read_folder("bert-base-cased")                       # any BERT of theirs
write_folder(folder, model, cfg, tokenizer, {"max_len": 128})
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pydantic
import safetensors.torch
import tokenizers
import torch
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers

import models
from formats.bert import (
    EMBEDDING,
    SIZES,
    TIED,
    BertConfig,
    Foreign,
    check_numbers,
    fill_vocab,
    finish,
    hugging_face_name,
    match,
    read_sizes,
    swap_next,
    wanted_weights,
)
from tokenization import (
    SPECIAL_TOKENS,
    CorpusTokenizer,
    FullTokenizer,
    TokenizerName,
    load_vocab,
    reading_of,
)
from utils import STRICT, UserError, read_config, write_json


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config={**STRICT, "extra": "ignore"})
class TokenizerConfig:
    """What tokenizer_config.json says of letters, where an old folder has no tokenizer.json."""

    do_lower_case: bool | None = None


def to_hugging_face(tokenizer: CorpusTokenizer | FullTokenizer) -> tokenizers.Tokenizer:
    """Return Hugging Face's tokenizer that gives the same ids, between [CLS] and [SEP].

    There is one difference: theirs finds a special token, say [MASK], inside a word, too, while
    ours wants blanks around it.
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
        What `read_folder` shall give back as ``training``: ``max_len`` at least.
    """
    state = {key: value for key, value in swap_next(model.state_dict()).items() if key != TIED}
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


def write_vocab(path: Path, tokens: dict[str, int]) -> None:
    """Write vocab.txt: the tokens in the order of their ids, one a line."""
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8", newline="\n")


def read_folder(folder: str | os.PathLike[str], do_lower_case: bool | None = None) -> Foreign:
    """Read a BERT that transformers' ``save_pretrained`` wrote, with or without heads.

    Parameters
    ----------
    do_lower_case : bool, optional
        How text is read. Left out, the folder says it: see `read_vocab`.

    Raises
    ------
    utils.UserError
        A file is missing or damaged; another model than BERT; the weights do not fit config.json.
    """
    file = Path(folder, "model.safetensors")
    sizes, config = read_sizes(Path(folder, "config.json"))
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
    weights.pop("bert.embeddings.position_ids", None)  # 0, 1, 2, ... in old files

    wanted = wanted_weights(sizes)
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    state = {}
    for key in match(wanted, hugging_face_name, shapes, file, "config.json"):
        name = hugging_face_name(key)
        value = weights.pop(name)
        check_numbers(name, value, file)
        state[key] = value.float()
    tied = {
        "cls.predictions.decoder.weight": EMBEDDING,
        "cls.predictions.decoder.bias": "decoder_bias",
    }
    for name, key in tied.items():
        value = weights.pop(name, None)
        if value is not None and not (key in state and torch.equal(value.float(), state[key])):
            raise UserError(f"{file}: {name} is not tied to {hugging_face_name(key)}, as BERT's is")
    vocab, reading = read_vocab(folder, sizes.vocab_size, config.do_lower_case)
    if do_lower_case is not None and reading != CorpusTokenizer.name:
        reading = reading_of(vocab, do_lower_case)
    return Foreign(sizes, finish(state), vocab, reading, config.pretraining or {}, sorted(weights))


def _present_name(name: str) -> str:
    """Return today's name of a weight; files made from Google's have gamma and beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def read_vocab(
    folder: str | os.PathLike[str], vocab_size: int, do_lower_case: bool | None = None
) -> tuple[dict[str, int], TokenizerName]:
    """Read the vocabulary of a folder, and see how its tokenizer reads.

    Parameters
    ----------
    vocab_size : int
        Of the model: see `bert.fill_vocab`.
    do_lower_case : bool, optional
        What config.json says, which counts where the tokenizer's own files say nothing.

    Returns
    -------
    vocab : dict of str to int
        Empty where the folder has no vocabulary of WordPiece.
    tokenizer : {"corpus", "bert", "bert-cased"}
        See `tokenization.get_tokenizer`. It is "corpus" only if that gives the same ids.

    Raises
    ------
    utils.UserError
        A file is damaged, or two of them disagree; what `bert.fill_vocab` raises.
    """
    vocab_file, file = Path(folder, "vocab.txt"), Path(folder, "tokenizer.json")
    settings = Path(folder, "tokenizer_config.json")
    theirs, its_vocab = None, {}
    if file.exists():
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers knows no narrower class
            raise UserError(f"{file} is damaged or no tokenizer: {error}") from error
        theirs = json.loads(tokenizer.to_str())
        if theirs["model"]["type"] == "WordPiece":
            # By id, as tokenizers gives them in any order, and messages name the first fault.
            by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
            its_vocab = dict(by_id)
    if vocab_file.exists():
        vocab, place = load_vocab(vocab_file), vocab_file
        for token, number in its_vocab.items():
            if vocab.get(token, number) != number:
                raise UserError(
                    f"{vocab_file} has the token {token!r} on line {vocab[token] + 1}, but {file} "
                    f"gives it the id {number}; delete the one that is not the model's"
                )
    else:
        vocab, place = its_vocab, file
    if not vocab:
        return {}, "bert"
    filled = fill_vocab(vocab, vocab_size, place)
    if theirs:
        do_lower_case = bool((theirs["normalizer"] or {}).get("lowercase"))
        if set(SPECIAL_TOKENS) <= vocab.keys():
            ours = json.loads(to_hugging_face(CorpusTokenizer(vocab)).to_str())
            if all(ours[part] == theirs[part] for part in ("normalizer", "pre_tokenizer", "model")):
                return filled, "corpus"
    elif settings.exists():
        said = read_config(TokenizerConfig, settings).do_lower_case
        do_lower_case = do_lower_case if said is None else said
    return filled, reading_of(filled, do_lower_case)
