"""Models in files: our own .pt, Google BERT's TensorFlow checkpoints, Hugging Face's folders.

    python checkpoint.py export --model_file out/model_steps_2000.pt --to out/huggingface
    python checkpoint.py import --source out/huggingface --to out/imported

No file is trusted: reading one never runs what it holds.

The .pt files of this lineage's PyTorch BERT have the same keys, and mean the same by class 1 of
"is B next?", so they are read as they are. Google's and Hugging Face's mean class 0: see
`huggingface.swap_next`.
"""

if __name__ == "__main__":
    from terminal.early import answer

    answer(__file__)  # --help and words on wrong flags need not wait for the imports below

import dataclasses
import os
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

import models
from formats.huggingface import (
    first_few,
    hugging_face_name,
    read_folder,
    read_vocab,
    shape_text,
    swap_next,
    write_folder,
    write_vocab,
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
    read_config,
    refuse_flags,
    remove_leftovers,
    sha256_of,
    write_json,
)

# What an exported folder's config.json keeps of model.json, besides what other files say.
TRAINING = ("data_file", "corpus_sha256", "max_len", "max_pred", "mask_prob")
# From Hugging Face's names to Google's, in this order.
GOOGLE_NAMES = (
    (r"^cls\.predictions\.bias$", "cls.predictions.output_bias"),
    (r"^cls\.seq_relationship\.(weight|bias)$", r"cls.seq_relationship.output_\1"),
    (r"output_weight$", "output_weights"),
    (r"_embeddings\.weight$", "_embeddings"),
    (r"LayerNorm\.weight$", "LayerNorm.gamma"),
    (r"LayerNorm\.bias$", "LayerNorm.beta"),
    (r"\.weight$", ".kernel"),
    (r"layer\.(\d+)", r"layer_\1"),
    (r"\.", "/"),
)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelInfo:
    """What model.json says of the pre-trained model that it lies beside.

    Attributes
    ----------
    format : int
    model : models.Config
    tokenizer : {"corpus", "bert", "bert-cased"}
        How the model reads text: see `tokenization.get_tokenizer`.
    vocab_sha256 : str
        Of the vocab.txt that lies there, too.
    data_file, corpus_sha256 : str
        The corpus of the training; None where it is not known.
    max_len, max_pred, mask_prob : int, int, float
        How its examples were made: see `pretrain.Preprocess4Pretrain`.
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

    @pydantic.model_validator(mode="after")
    def _fits_the_model(self) -> "ModelInfo":
        return check_fit(self)


def check_fit(info: Any) -> Any:
    """Return ``info``, which has ``model`` and ``max_len``; a ValueError if these disagree."""
    if info.model.vocab_size is None:
        raise ValueError("'model.vocab_size' is missing")
    if info.max_len > info.model.max_len:
        raise ValueError(f"'max_len' {info.max_len} is above 'model.max_len' {info.model.max_len}")
    return info


def save_pt(content: Any, path: str | os.PathLike[str]) -> None:
    """Write tensors, numbers and strings in dicts and lists, so that `load_pt` can read them."""
    with atomic_file(path, "wb") as file:
        torch.save(content, file)


def load_pt(path: str | os.PathLike[str]) -> Any:
    """Read a .pt file onto the CPU. Only plain data is accepted; no code of the file is run.

    Raises
    ------
    utils.UserError
        No such file; truncated, foreign or hostile content.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                # torch never compresses; a small file that unpacks to terabytes does.
                with zipfile.ZipFile(file) as archive:
                    if any(entry.compress_type for entry in archive.infolist()):
                        raise UserError(f"{path} is a compressed archive and no file of PyTorch's")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # zipfile's and torch's readers fail in many ways on broken files
        raise UserError(
            f"{path} is damaged, or holds more than tensors and plain values; nothing in it was "
            "run; give a .pt file that the training wrote"
        ) from error


def load_model_file(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a plain state dict (``model_steps_<k>.pt``) into ``model``, every key matching.

    Raises
    ------
    utils.UserError
        What `load_pt` raises; no state dict; keys that are missing, unexpected or of another
        shape. The model is left as it was.
    """
    state = load_pt(path)
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise UserError(f"{path} is no state dict of a model (a dict of names and tensors)")
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
    model.load_state_dict(state)


def load_pretrained(
    model_file: str | os.PathLike[str],
) -> tuple[BertModel4Pretrain, ModelInfo, CorpusTokenizer | FullTokenizer]:
    """Return the model in evaluation mode, what model.json says of it, and its tokenizer.

    Raises
    ------
    utils.UserError
        model.json or vocab.txt is missing or belongs to another model; see also
        `load_model_file`.
    """
    folder = Path(model_file).parent
    if not (folder / "model.json").is_file():
        raise UserError(
            f"{folder / 'model.json'} is missing; pretrain.py writes it beside its models, and a "
            "model can be used only where it lies"
        )
    info = read_config(ModelInfo, folder / "model.json")
    vocab = folder / "vocab.txt"
    tokenizer = get_tokenizer(info.tokenizer, vocab)
    if sha256_of(vocab) != info.vocab_sha256:
        raise UserError(f"{vocab} is not the vocabulary that {model_file} was trained with")
    model = BertModel4Pretrain(info.model)
    load_model_file(model, model_file)
    return model.eval(), info, tokenizer


def load_model(
    model: models.Transformer | BertModel4Pretrain, checkpoint_file: str | os.PathLike[str]
) -> None:
    """Load a TensorFlow checkpoint of Google's BERT, and print what of it was not used.

    Parameters
    ----------
    model : Transformer or BertModel4Pretrain
        The first takes the encoder only, the second the pre-training heads, too.
    checkpoint_file : path-like
        The checkpoint's prefix: ``bert_model.ckpt``, beside which lie ``bert_model.ckpt.index``
        and ``bert_model.ckpt.data-00000-of-00001``.

    Raises
    ------
    utils.UserError
        No TensorFlow; no such checkpoint, or a damaged one; variables that are missing or of
        another shape. The model is left as it was.

    References
    ----------
    Devlin et al., https://github.com/google-research/bert (names and shapes of the variables)
    """
    if not Path(f"{checkpoint_file}.index").is_file():
        raise UserError(
            f"{checkpoint_file}.index is missing; give the common beginning of a TensorFlow "
            "checkpoint's file names, like bert_model.ckpt"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no word on CPU features and GPUs
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(
            "reading a TensorFlow checkpoint needs TensorFlow; install it with "
            "`pip install tensorflow-cpu`, or `pip install tensorflow` where there is none"
        ) from error

    scope = "transformer." if isinstance(model, models.Transformer) else ""
    own = {scope + key: value for key, value in model.state_dict().items()}
    tied = own.pop("decoder.weight", None)
    state = {}
    try:
        reader = tf.train.load_checkpoint(str(checkpoint_file))
        shapes = reader.get_variable_to_shape_map()
        faults = []
        for key, value in own.items():
            name = google_name(key)
            shape = value.shape[::-1] if name.endswith("/kernel") else value.shape
            found = shapes.pop(name, None)
            if found is None:
                faults.append(f"{name} (expected {shape_text(shape)}) is missing")
            elif tuple(found) != tuple(shape):
                faults.append(f"{name} is {shape_text(found)}, expected {shape_text(shape)}")
        if faults:
            raise UserError(f"{checkpoint_file} does not fit the model: {first_few(faults)}")
        for key in own:
            array = np.asarray(reader.get_tensor(google_name(key)), np.float32)
            state[key] = torch.tensor(array.T if google_name(key).endswith("/kernel") else array)
    except (tf.errors.OpError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{checkpoint_file} is damaged or no TensorFlow checkpoint: {str(error)[:200]}"
        ) from error

    swap_next(state)
    if tied is not None:
        state["decoder.weight"] = state["transformer.embed.tok_embed.weight"]
    model.load_state_dict({key.removeprefix(scope): value for key, value in state.items()})
    is_slot = re.compile("/adam_[mv]$").search
    slots = Counter(name.rsplit("/", 1)[-1] for name in shapes if is_slot(name))
    others = sorted(name for name in shapes if not is_slot(name))
    ignored = [f"{count} {slot}" for slot, count in sorted(slots.items())] + others
    print(
        f"{checkpoint_file}: read {len(own)} variables, "
        f"ignored {first_few(ignored, named=12) or 'none'}"
    )


def google_name(key: str) -> str:
    """Return what Google's code calls the weight ``key`` of `models.BertModel4Pretrain`."""
    name = hugging_face_name(key)
    for pattern, replacement in GOOGLE_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def main() -> None:
    """Convert models, to and from what Hugging Face's transformers reads."""
    raise UsageError(
        "say what to do: `python checkpoint.py export --model_file FILE --to FOLDER` or "
        "`python checkpoint.py import --source FOLDER --to FOLDER`"
    )


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
        A .pt; if pretrain.py wrote it, model.json and vocab.txt lie beside it.
    to : str
        The folder to make; it must not exist or be empty.
    model_cfg : str
        JSON with the model's sizes, for a .pt that lies by itself.
    vocab : str
        The vocabulary that belongs to it.
    tokenizer : {"corpus", "bert", "bert-cased"}
        How it reads text with vocab: corpus (words end at blanks; so if left out), bert (Google's,
        uncased) or bert-cased.
    """
    _refuse_filled(to)
    check_outputs({}, [model_file, model_cfg, vocab], {"to": to})
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
    training = {key: getattr(info, key) for key in TRAINING}
    with atomic_folder(to) as folder:
        write_folder(folder, model, cfg, words, training)
    print(f"{to}: config.json, model.safetensors, tokenizer.json, tokenizer_config.json, vocab.txt")


def import_model(source: str, to: str) -> None:
    """Read a folder of a BERT that Hugging Face's transformers wrote (save_pretrained).

    Parameters
    ----------
    source : str
        The folder, with config.json and model.safetensors.
    to : str
        The folder to make: model.pt, model_cfg.json and vocab.txt; also model.json, so that
        `pretrain.py eval` and `predict` read it, if the model has both pre-training heads and its
        tokenizer is the corpus's.
    """
    _refuse_filled(to)
    check_outputs({}, [source], {"to": to})
    cfg, state, training, ignored = read_folder(source)
    tokens, reading = read_vocab(source, cfg.vocab_size)
    with torch.device("meta"):
        lacking = [key for key in BertModel4Pretrain(cfg).state_dict() if key not in state]
    sizes = dataclasses.asdict(cfg)
    with atomic_folder(to) as folder:
        save_pt(state, folder / "model.pt")
        write_json(folder / "model_cfg.json", sizes)
        if tokens:
            write_vocab(folder / "vocab.txt", tokens)
        if reading == CorpusTokenizer.name and not lacking:
            try:
                info = ModelInfo(
                    model=cfg,
                    tokenizer=CorpusTokenizer.name,
                    vocab_sha256=sha256_of(folder / "vocab.txt"),
                    **{"max_len": cfg.max_len, **training},
                )
            except (TypeError, pydantic.ValidationError) as error:
                raise UserError(
                    f"{source}/config.json: its 'pretraining' is not what export writes; delete "
                    "that key"
                ) from error
            write_json(folder / "model.json", dataclasses.asdict(info))
        written = sorted(path.name for path in folder.iterdir())
    print(f"{to}: {', '.join(written)}")
    if ignored:
        print(f"  ignored: {first_few(ignored)}")
    if lacking:
        print(f"  pre-training heads that {source} lacks: {first_few(lacking)}")
    if not tokens:
        print(f"  no vocab.txt: {source} holds no WordPiece vocabulary")
    elif reading != CorpusTokenizer.name:
        print("  no model.json: the tokenizer does not split at blanks only, as the corpus's does")


def _refuse_filled(to: str) -> None:
    """Never replace what somebody may want to keep; what a killed run left there goes."""
    remove_leftovers(Path(to).parent)
    if Path(to).is_dir() and any(Path(to).iterdir()):
        raise UserError(f"{to} is not empty; choose another folder, or delete it")
    if Path(to).exists() and not Path(to).is_dir():
        raise UserError(f"{to} is a file; choose another name for the folder")


if __name__ == "__main__":
    command_line(main, **{"export": export_model, "import": import_model})
