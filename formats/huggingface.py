"""Read and write Hugging Face's folders: config.json, model.safetensors, tokenizer.json.

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

LARGEST_ID = 2**24  # of a token


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config={**STRICT, "extra": "ignore"})
class TokenizerConfig:
    """The part of tokenizer_config.json that matters for old folders without tokenizer.json."""

    do_lower_case: bool | None = None


def to_hugging_face(tokenizer: CorpusTokenizer | FullTokenizer) -> tokenizers.Tokenizer:
    """Return a Hugging Face tokenizer that gives the same ids, between [CLS] and [SEP].

    There is one difference: theirs also finds special tokens such as [MASK] inside a word, while
    ours finds them only between blanks.
    """
    vocab = tokenizer.vocab
    model = tokenizers.models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100)
    theirs = tokenizers.Tokenizer(model)
    if isinstance(tokenizer, CorpusTokenizer):
        # White space as Python defines it: Unicode's, and four ASCII separators.
        theirs.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\x1c-\x1f]+"), "removed")
        # Ours keeps every known word whole; WordPiece splits those of more than 100 characters.
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
        An empty folder.
    pretraining : dict
        Returned by `read_folder` as ``training``; must contain ``max_len``.
    """
    state = {key: value for key, value in swap_next(model.state_dict()).items() if key != TIED}
    weights = {hugging_face_name(key): value.contiguous() for key, value in state.items()}
    # Write the bytes ourselves: the library's own writer does not raise OSError on a full disk.
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
            # Otherwise transformers picks BERT's tokenizer class, which splits like BERT.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": pretraining["max_len"],
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            **{f"{name[1:-1].lower()}_token": name for name in SPECIAL_TOKENS},
        },
    )
    write_vocab(folder / "vocab.txt", tokenizer.vocab)


def write_vocab(path: Path, tokens: dict[str, int]) -> None:
    """Write vocab.txt: the tokens sorted by id, one per line."""
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8", newline="\n")


def read_folder(folder: str | os.PathLike[str], do_lower_case: bool | None = None) -> Foreign:
    """Read a BERT that transformers' ``save_pretrained`` wrote, with or without heads.

    Parameters
    ----------
    do_lower_case : bool, optional
        How text is read. Default: as the folder says, see `read_vocab`.

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
            f"cannot read {file}: {error.strerror or error}; if the model is in other files, save "
            "it again by save_pretrained of a recent transformers"
        ) from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{file} is damaged or not a safetensors file: {error}") from error
    weights = {_present_name(name): value for name, value in weights.items()}
    if not any(name.startswith("bert.") for name in weights):  # a BertModel: only the encoder
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
        stored = weights.pop(name, None)
        if stored is not None and not (key in state and torch.equal(stored.float(), state[key])):
            raise UserError(f"{file}: {name} must equal {hugging_face_name(key)}, as in BERT")
    vocab, reading = read_vocab(folder, config.vocab_size, config.do_lower_case)
    if do_lower_case is not None and reading != CorpusTokenizer.name:
        reading = reading_of(vocab, do_lower_case)
    return Foreign(sizes, finish(state), vocab, reading, config.pretraining or {}, sorted(weights))


def _present_name(name: str) -> str:
    """Return the current name of a weight; files converted from Google's say gamma and beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def read_vocab(
    folder: str | os.PathLike[str], vocab_size: int, do_lower_case: bool | None = None
) -> tuple[dict[str, int], TokenizerName]:
    """Read the vocabulary of a folder, and find out which of our tokenizers fits.

    Parameters
    ----------
    vocab_size : int
        The model's size, for `bert.fill_vocab`.
    do_lower_case : bool, optional
        The value in config.json, used if the tokenizer's own files do not have one.

    Returns
    -------
    vocab : dict of str to int
        Empty if the folder has no WordPiece vocabulary.
    tokenizer : {"corpus", "bert", "bert-cased"}
        See `tokenization.get_tokenizer`. "corpus" only if it gives the same ids.

    Raises
    ------
    utils.UserError
        A file is damaged, or two files disagree; see also `bert.fill_vocab`.
    """
    vocab_file, file = Path(folder, "vocab.txt"), Path(folder, "tokenizer.json")
    settings = Path(folder, "tokenizer_config.json")
    theirs, its_vocab = None, {}
    if file.exists():
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers has no narrower class
            raise UserError(f"{file} is damaged or not a tokenizer: {error}") from error
        largest = max(tokenizer.get_vocab().values(), default=0)
        if largest > LARGEST_ID:  # to_str lists all ids that are missing, and may end the process
            raise UserError(
                f"{file} gives a token the id {largest}, but ids above {LARGEST_ID} are not read"
            )
        theirs = json.loads(tokenizer.to_str())
        if theirs["model"]["type"] == "WordPiece":
            # tokenizers' order is random; sort, so that messages always name the same token.
            by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
            its_vocab = dict(by_id)
    if vocab_file.exists():
        vocab, place = load_vocab(vocab_file), vocab_file
        for token, number in its_vocab.items():
            if vocab.get(token, number) != number:
                raise UserError(
                    f"{vocab_file} has the token {token!r} on line {vocab[token] + 1}, but {file} "
                    f"gives it the id {number}; delete the file that does not belong to the model"
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
