"""Model files: our own, Google's TensorFlow checkpoints, Hugging Face's folders.

    python checkpoint.py export --model_file out/model_steps_2000.pt --to out/huggingface
    python checkpoint.py import --source uncased_L-12_H-768_A-12/bert_model.ckpt --to out/imported

The readers of foreign formats are in formats/; they rename the weights to our names. The .pt files
of the PyTorch BERT that this project descends from already use these names. No file is trusted:
reading one never runs code in it, and weights that are missing, of another shape or not finite are
refused.
"""

if __name__ == "__main__":
    from terminal.early import answer

    answer(__file__)  # --help and messages about wrong flags need not wait for the imports below

import dataclasses
import os
import zipfile
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import torch
from torch import Tensor, nn

import models
from formats import huggingface, tensorflow
from formats.bert import (
    TIED,
    Foreign,
    check_numbers,
    first_few,
    lacking_heads,
    shape_text,
)
from models import BertModel4Pretrain
from terminal.command_line import command_line
from tokenization import CorpusTokenizer, FullTokenizer, TokenizerName, get_tokenizer
from utils import (
    STRICT,
    UsageError,
    UserError,
    atomic_file,
    atomic_folder,
    check_outputs,
    one_writer,
    open_regular,
    read_config,
    refuse_flags,
    remove_leftovers,
    sha256_of,
    write_json,
)

# Keys of model.json that an export keeps in config.json; all others are stored elsewhere already.
TRAINING = ("data_file", "corpus_sha256", "max_len", "max_pred", "mask_prob", "objectives")

Info = TypeVar("Info")


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelInfo:
    """The content of model.json, which lies beside a pre-trained model.

    Attributes
    ----------
    format : int
    model : models.Config
    tokenizer : {"corpus", "bert", "bert-cased"}
        How the model reads text: see `tokenization.get_tokenizer`.
    vocab_sha256 : str
        Hash of the vocab.txt in the same folder.
    data_file, corpus_sha256 : str
        The corpus of the training. The hash is None where it is unknown.
    max_len, max_pred, mask_prob : int, int, float
        How the training examples were made: see `pretrain.Preprocess4Pretrain`.
    objectives : list of str
        The training's objectives: see `pretrain.OBJECTIVES`.
    """

    format: Literal[1] = 1
    model: models.Config
    tokenizer: TokenizerName
    vocab_sha256: str
    data_file: str = "data/corpus.txt"
    corpus_sha256: str | None = None
    max_len: pydantic.PositiveInt
    max_pred: pydantic.PositiveInt = 20
    mask_prob: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.15
    objectives: list[str] = dataclasses.field(
        default_factory=lambda: ["masked_lm", "next_sentence"]
    )

    @pydantic.model_validator(mode="after")
    def _fits_the_model(self) -> "ModelInfo":
        return check_fit(self)


def check_fit(info: Any) -> Any:
    """Return ``info``; raise a ValueError if its ``model`` and ``max_len`` do not fit together."""
    if info.model.vocab_size is None:
        raise ValueError("'model.vocab_size' is missing")
    if info.max_len > info.model.max_len:
        raise ValueError(f"'max_len' {info.max_len} is above 'model.max_len' {info.model.max_len}")
    return info


def save_pt(content: Any, path: str | os.PathLike[str]) -> None:
    """Write nested dicts and lists of tensors, numbers and strings; `load_pt` reads them."""
    with atomic_file(path, "wb") as file:
        torch.save(content, file)


def load_pt(path: str | os.PathLike[str]) -> Any:
    """Read a .pt file onto the CPU. Only plain data is accepted; no code in the file is run.

    Raises
    ------
    utils.UserError
        No such file; content that is truncated, of another format, or hostile.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            if zipfile.is_zipfile(file):
                # torch never compresses, so a compressed archive may be a zip bomb.
                with zipfile.ZipFile(file) as archive:
                    if any(entry.compress_type for entry in archive.infolist()):
                        raise UserError(f"{path} is a compressed archive, not a PyTorch file")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # zipfile's and torch's readers fail in many ways on broken files
        raise UserError(
            f"{path} is damaged, or holds more than tensors and plain values; no code in it was "
            "run; give a .pt file that a training wrote"
        ) from error


def load_model_file(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a plain state dict (``model_steps_<k>.pt``) into ``model``; all keys must match.

    Raises
    ------
    utils.UserError
        See `load_pt`; also: not a state dict; keys that are missing, unexpected or of another
        shape; weights that are not finite numbers. The model is left unchanged.
    """
    state = load_pt(path)
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise UserError(f"{path} is not the state dict of a model (a dict of names and tensors)")
    own = model.state_dict()
    faults = {
        "lacks": [key for key in own if key not in state],
        "has unknown": [key for key in state if key not in own],
        "has another shape for": [
            f"{key} ({shape_text(state[key].shape)} instead of {shape_text(own[key].shape)})"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
    }
    reasons = [f"{what} {first_few(keys)}" for what, keys in faults.items() if keys]
    if reasons:
        raise UserError(f"{path} does not fit the model: it {'; it '.join(reasons)}")
    for key, value in state.items():
        check_numbers(key, value, path)
    model.load_state_dict(state)


def read_beside(
    cls: type[Info], model_file: str | os.PathLike[str], script: str
) -> tuple[Info, CorpusTokenizer | FullTokenizer]:
    """Read the model.json and vocab.txt beside a model that ``script`` trained.

    Parameters
    ----------
    cls : type
        A dataclass with ``model``, ``tokenizer`` and ``vocab_sha256``, as `ModelInfo` has them.

    Raises
    ------
    utils.UserError
        A file is missing, damaged, or belongs to another model.
    """
    folder = Path(model_file).parent
    if not Path(model_file).is_file():
        lacking = "is not a file" if os.path.lexists(model_file) else "does not exist"
        raise UserError(f"the model {model_file} {lacking}; {script} writes model_steps_<k>.pt")
    if not (folder / "model.json").is_file():
        raise UserError(
            f"{folder / 'model.json'} is missing; {script} writes it beside its models; keep the "
            "two together"
        )
    info = read_config(cls, folder / "model.json")
    vocab = folder / "vocab.txt"
    tokenizer = get_tokenizer(info.tokenizer, vocab)
    if sha256_of(vocab) != info.vocab_sha256:
        raise UserError(f"{vocab} is not the vocabulary that {model_file} was trained with")
    info.model.with_vocab_size(len(tokenizer.vocab), folder / "model.json", vocab)
    return info, tokenizer


def load_pretrained(
    model_file: str | os.PathLike[str],
) -> tuple[BertModel4Pretrain, ModelInfo, CorpusTokenizer | FullTokenizer]:
    """Return the model in evaluation mode, its model.json, and its tokenizer.

    Raises
    ------
    utils.UserError
        See `read_beside` and `load_model_file`.
    """
    info, tokenizer = read_beside(ModelInfo, model_file, "pretrain.py")
    model = BertModel4Pretrain(info.model)
    load_model_file(model, model_file)
    return model.eval(), info, tokenizer


def account(state: dict[str, Tensor], ignored: list[str]) -> str:
    """Say how many variables of a foreign model were read, which were not, which heads it lacks."""
    text = f"read {len(state.keys() - {TIED})} variables"
    text += f", ignored {first_few(ignored, named=12) or 'none'}"
    lacking = lacking_heads(state)
    return text + (f", it has no head for {', '.join(lacking)}" if lacking else "")


def read_foreign(
    source: str | os.PathLike[str],
    model_cfg: str | os.PathLike[str] | None = None,
    vocab: str | os.PathLike[str] | None = None,
    do_lower_case: bool | None = None,
) -> Foreign:
    """Read a BERT that another program wrote: a TensorFlow checkpoint or a Hugging Face folder.

    Parameters
    ----------
    source : path-like
        A folder, or a checkpoint's prefix such as ``bert_model.ckpt``.
    model_cfg, vocab : path-like, optional
        Sizes and vocabulary of a TensorFlow checkpoint. Default: bert_config.json and vocab.txt
        beside it.
    do_lower_case : bool, optional
        How text is read. Default: as the files say.

    Raises
    ------
    utils.UserError
        See `huggingface.read_folder` and `tensorflow.read_checkpoint`.
    """
    prefix = tensorflow.find_prefix(source)
    if prefix is not None and not Path(source, "model.safetensors").is_file():
        return tensorflow.read_checkpoint(prefix, model_cfg, vocab, do_lower_case)
    if not Path(source).is_dir():
        raise UserError(
            f"{source}.index is missing; give a folder, or the common beginning of a TensorFlow "
            "checkpoint's file names, like bert_model.ckpt"
        )
    if model_cfg is not None or vocab is not None:
        raise UserError(
            f"{source} contains its sizes and vocabulary; leave out --model_cfg and --vocab"
        )
    return huggingface.read_folder(source, do_lower_case)


def main() -> None:
    """Convert models to and from the format of Hugging Face's transformers."""


def export_model(
    model_file: str,
    to: str,
    model_cfg: str | None = None,
    vocab: str | None = None,
    tokenizer: TokenizerName | None = None,
) -> None:
    """Write a model as a folder that Hugging Face's transformers reads.

    Parameters
    ----------
    model_file : str
        A .pt file. If pretrain.py wrote it, model.json and vocab.txt are beside it.
    to : str
        The folder to create; it must not exist, or be empty.
    model_cfg : str
        JSON with the model's sizes, for a .pt file without a model.json.
    vocab : str
        The vocabulary for model_cfg.
    tokenizer : {"corpus", "bert", "bert-cased"}
        How the model reads text with vocab: corpus (words end at blanks; the default), bert
        (Google's, uncased) or bert-cased.
    """
    _refuse_filled(to)
    check_outputs({}, [model_file, model_cfg, vocab], replaced={"to": to})
    if model_cfg is None and vocab is None:
        refuse_flags("belongs to --vocab", tokenizer=tokenizer)
        model, info, words = load_pretrained(model_file)
        cfg = info.model
    elif model_cfg is not None and vocab is not None:
        tokenizer = tokenizer or CorpusTokenizer.name
        words = get_tokenizer(tokenizer, vocab)
        cfg = models.Config.from_json(model_cfg)
        cfg = cfg.with_vocab_size(len(words.vocab), model_cfg, vocab)
        model = BertModel4Pretrain(cfg)
        load_model_file(model, model_file)
        info = ModelInfo(
            model=cfg, tokenizer=tokenizer, vocab_sha256=sha256_of(vocab), max_len=cfg.max_len
        )
    else:
        raise UsageError("--model_cfg and --vocab belong together; give both, or none")
    if cfg.positions != "learned":
        raise UserError(
            f"{model_file} has {cfg.positions} positions, which Hugging Face's BERT does not have"
        )
    training = {key: getattr(info, key) for key in TRAINING}
    with one_writer(to):
        _refuse_filled(to)  # another run may have filled it meanwhile
        with atomic_folder(to) as folder:
            huggingface.write_folder(folder, model, cfg, words, training)
    print(f"{to}: config.json, model.safetensors, tokenizer.json, tokenizer_config.json, vocab.txt")


def import_model(source: str, to: str) -> None:
    """Convert a foreign BERT: a TensorFlow checkpoint or a folder written by save_pretrained.

    Parameters
    ----------
    source : str
        A folder with config.json and model.safetensors; or a checkpoint (bert_model.ckpt) with
        bert_config.json and vocab.txt beside it.
    to : str
        The folder to create. It gets model.pt, model_cfg.json and vocab.txt, and a model.json for
        `pretrain.py eval` and `predict` if the model has both pre-training heads and uses the
        tokenizer of our corpus.
    """
    _refuse_filled(to)
    check_outputs({}, [source], replaced={"to": to})
    bert = read_foreign(source)
    lacking = lacking_heads(bert.state)
    with one_writer(to):
        _refuse_filled(to)
        with atomic_folder(to) as folder:
            save_pt(bert.state, folder / "model.pt")
            write_json(folder / "model_cfg.json", dataclasses.asdict(bert.sizes))
            if bert.vocab:
                huggingface.write_vocab(folder / "vocab.txt", bert.vocab)
            if bert.reading == CorpusTokenizer.name and not lacking:
                try:
                    info = ModelInfo(
                        model=bert.sizes,
                        tokenizer=CorpusTokenizer.name,
                        vocab_sha256=sha256_of(folder / "vocab.txt"),
                        **{"max_len": bert.sizes.max_len, **bert.training},
                    )
                except (TypeError, pydantic.ValidationError) as error:
                    raise UserError(
                        f"{source}/config.json: the value of 'pretraining' was not written "
                        "by export; delete this key"
                    ) from error
                write_json(folder / "model.json", dataclasses.asdict(info))
            written = sorted(path.name for path in folder.iterdir())
    print(f"{to}: {', '.join(written)}")
    print(f"  {account(bert.state, bert.ignored)}")
    if not bert.vocab:
        print(f"  no vocab.txt: {source} holds no WordPiece vocabulary")
    elif bert.reading != CorpusTokenizer.name:
        print("  no model.json: the tokenizer is not ours, which splits words only at blanks")


def _refuse_filled(to: str) -> None:
    """Refuse a folder with files in it; leftovers of killed runs are removed first."""
    remove_leftovers(Path(to).parent)
    if Path(to).is_dir() and any(Path(to).iterdir()):
        raise UserError(f"{to} is not empty; choose another folder, or delete it")
    if Path(to).exists() and not Path(to).is_dir():
        raise UserError(f"{to} is a file; choose another name for the folder")


if __name__ == "__main__":
    command_line(main, **{"export": export_model, "import": import_model})
