"""Fine-tune a pre-trained BERT to classify texts; measure the result; use it.

    python classify.py --task samefunc --data_file data/samefunc/train.tsv \\
        --pretrain_file out/model_steps_3000.pt --save_dir out-samefunc
    python classify.py --mode eval --data_file data/samefunc/test.tsv \\
        --model_file out-samefunc/model_steps_1875.pt
    python classify.py --mode predict --data_file new.tsv --model_file out-samefunc/...
    python classify.py functions    # the encoder of functions -> model/encoder.safetensors

The tasks are in tasks/catalogue.py; tasks/task.py says how to add one. Their data are TSV files
with a header.
"""

if __name__ == "__main__":
    from terminal.early import answer

    answer(__file__)  # --help and messages about wrong flags need not wait for the imports below

import dataclasses
import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import torch
from pydantic import Field
from sklearn import metrics
from torch import Tensor, nn

import checkpoint
import models
import train
import utils
from tasks import catalogue  # noqa: F401 - importing it registers its classes in TASKS
from tasks.tables import read_examples
from tasks.task import TASKS, Examples, Task
from terminal import progress
from terminal.command_line import command_line
from tokenization import (
    SPECIAL_TOKENS,
    CorpusTokenizer,
    FullTokenizer,
    TokenizerName,
    get_tokenizer,
    load_vocab,
    reading_of,
)
from utils import UsageError, UserError

EVAL_BATCH = 64
GROUP = 20  # rows of so many batches are sorted by length together


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=utils.STRICT)
class ClassifierInfo:
    """The content of model.json, which lies beside a fine-tuned model."""

    format: Literal[1] = 1
    task: str
    model: models.Config
    tokenizer: TokenizerName
    vocab_sha256: str
    max_len: pydantic.PositiveInt

    @pydantic.model_validator(mode="after")
    def _fits_the_model(self) -> "ClassifierInfo":
        if self.task not in TASKS:
            raise ValueError(f"'task' is {self.task!r}; the tasks are {', '.join(TASKS)}")
        return checkpoint.check_fit(self)


@torch.inference_mode()
def predict(model: nn.Module, data: Any, device: torch.device) -> np.ndarray:
    """Return the probabilities of each example, float64 (N, labels).

    ``model`` is in evaluation mode; ``data`` is the result of `tasks.task.Task.read`.
    """
    score = data.scorer(model, device)
    # Batch examples of similar length, so that little is padding.
    order = np.argsort(data.lengths, kind="stable")
    probabilities = []
    for rows in progress.bar(np.split(order, range(EVAL_BATCH, len(order), EVAL_BATCH))):
        probabilities.append(score(rows).double().softmax(1).cpu().numpy())
    return np.concatenate(probabilities)[np.argsort(order)]


def measure(probabilities: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Return the measures of predictions.

    Parameters
    ----------
    probabilities : float (N, labels)
    label : int (N,)

    Returns
    -------
    dict of str to float
        ``accuracy``, ``precision``, ``recall``, ``f1``, ``roc_auc``, ``loss`` (nats). With two
        labels, the second is the positive one; with more, the values are means over the labels
        (AUC: one against the rest). If a label does not occur, the AUC is NaN.
    """
    n_labels = probabilities.shape[1]
    guess = probabilities.argmax(1)
    average = "binary" if n_labels == 2 else "macro"
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        label, guess, average=average, labels=range(n_labels), zero_division=0
    )
    roc_auc = float("nan")
    if len(np.unique(label)) == n_labels:
        score = probabilities[:, 1] if n_labels == 2 else probabilities
        roc_auc = metrics.roc_auc_score(label, score, multi_class="ovr")
    return {
        "accuracy": float((guess == label).mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "roc_auc": float(roc_auc),
        "loss": float(metrics.log_loss(label, probabilities, labels=range(n_labels))),
    }


def report(measures: dict[str, float], table: np.ndarray, labels: tuple[str, ...]) -> None:
    """Print the measures and the confusion matrix, int (labels, labels)."""
    print(", ".join(f"{name} {value:.4f}" for name, value in measures.items()))
    width = max(*map(len, labels), len(f"{table.max():,}"))
    print("confusion matrix: a row for each true label, a column for each predicted one")
    print(" " * width, *(f"{name:>{width}}" for name in labels))
    for name, row in zip(labels, table.tolist(), strict=True):
        print(f"{name:>{width}}", *(f"{count:>{width},}" for count in row))


def write_predictions(file: Path, labels: tuple[str, ...], data: Examples, shares: np.ndarray):
    """Write a line for each example: its label if known, the prediction, the probabilities."""
    known = data.label is not None
    header = (["label"] if known else []) + ["prediction", *(f"p({name})" for name in labels)]
    with utils.atomic_file(file) as out:
        out.write("\t".join(header) + "\n")
        for i, row in enumerate(shares.tolist()):
            names = [labels[data.label[i]]] if known else []
            names.append(labels[int(np.argmax(row))])
            out.write("\t".join([*names, *(f"{share:.6f}" for share in row)]) + "\n")


@dataclasses.dataclass
class Start:
    """What fine-tuning begins with: sizes, weights (None: random ones), and how text is read."""

    sizes: models.Config
    state: dict[str, Tensor] | None
    tokenizer: CorpusTokenizer | FullTokenizer
    max_len: int  # of the examples in pre-training: later positions were never trained
    with_head: bool = False  # the state holds this very task's head, too


def read_start(
    pretrain_file: str | None,
    model_cfg: str | None,
    vocab: str | None,
    task: type[Task],
    do_lower_case: bool | None = None,
) -> Start:
    """Read the model to start from: a .pt, a TensorFlow checkpoint or a Hugging Face folder.

    Without ``pretrain_file``, the weights are random. From a .pt that this script has fine-tuned,
    only BERT itself is used, without the layers of that task.

    Raises
    ------
    UserError
        The file cannot be read, or neither it nor the user says its sizes and vocabulary.
    """
    file = Path(pretrain_file) if pretrain_file is not None else None
    if file is not None and (file.is_dir() or file.suffix != ".pt"):
        bert = checkpoint.read_foreign(file, model_cfg, vocab, do_lower_case)
        if not bert.vocab:
            raise UserError(f"{file} holds no WordPiece vocabulary (vocab.txt, tokenizer.json)")
        max_len = bert.training.get("max_len", bert.sizes.max_len)
        if type(max_len) is not int or not 0 < max_len <= bert.sizes.max_len:
            raise UserError(
                f"{file}/config.json: 'pretraining.max_len' is {max_len!r}; it must be 1 to "
                f"{bert.sizes.max_len} (max_position_embeddings)"
            )
        print(f"{file}: {checkpoint.account(bert.state, bert.ignored)}")
        tokenizer = get_tokenizer(bert.reading, bert.vocab)
        return Start(bert.sizes, bert.state, tokenizer, max_len)
    if file is not None and model_cfg is None and vocab is None:
        utils.refuse_flags(
            f"is not needed: it is stored with {file}", do_lower_case=do_lower_case is not None
        )
        task_before = fine_tuned_for(file)
        if task_before is None:
            model, info, tokenizer = checkpoint.load_pretrained(file)
        else:
            model, info, tokenizer = load_classifier(file, task_before)
        state = model.state_dict()
        if task_before is not None:
            state = {key: x for key, x in state.items() if key.startswith("transformer.")}
        return Start(info.model, state, tokenizer, info.max_len)
    if model_cfg is None or vocab is None:
        raise UsageError(
            f"give --model_cfg and --vocab: the sizes and the vocabulary of {file or 'the model'}"
        )
    words = load_vocab(vocab, SPECIAL_TOKENS)
    reading = task.tokenizer
    if reading == CorpusTokenizer.name:
        utils.refuse_flags("is for Google's vocabularies", do_lower_case=do_lower_case is not None)
    else:
        reading = reading_of(words, do_lower_case)
    tokenizer = get_tokenizer(reading, words)
    sizes = models.Config.from_json(model_cfg)
    sizes = sizes.with_vocab_size(len(words), model_cfg, vocab)
    if file is None:
        return Start(sizes, None, tokenizer, sizes.max_len)
    model = models.BertModel4Pretrain(sizes)
    checkpoint.load_model_file(model, file)
    return Start(sizes, model.state_dict(), tokenizer, sizes.max_len)


def shuffle(lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return random batches of row numbers; the rows of a batch have similar lengths.

    Sorting within random groups of `GROUP` batches keeps the padding small.
    """
    order = rng.permutation(len(lengths))
    batches = []
    for group in np.split(order, range(GROUP * batch_size, len(order), GROUP * batch_size)):
        group = group[np.argsort(lengths[group], kind="stable")]
        batches += np.split(group, range(batch_size, len(group), batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


def fine_tune(
    name: str,
    train_cfg: str,
    start: Start,
    data_file: str,
    save_dir: str,
    log_dir: str | None,
    max_len: int | None,
    eval_file: str | None,
    resume: bool,
    overwrite: bool,
) -> None:
    """Train for the task of that name; see `main`."""
    cfg, sizes, task = train.Config.from_json(train_cfg), start.sizes, TASKS[name]
    utils.remove_leftovers(save_dir)
    max_len = max_len or min(start.max_len, 128)
    if max_len > sizes.max_len:
        raise UserError(f"max_len {max_len} is larger than the model's max_len {sizes.max_len}")
    if start.state is not None and max_len > start.max_len:
        print(f"note: pre-training saw no positions from {start.max_len} on; max_len is {max_len}")
    examples = read_examples(task, data_file, labelled=True)
    held_out = eval_file and read_examples(task, eval_file, labelled=True)
    data = task.read(examples, start.tokenizer, max_len)
    held_out_data = held_out and task.read(held_out, start.tokenizer, max_len)
    steps = -(-len(data) // cfg.batch_size)  # per epoch
    cfg = cfg.with_epochs(steps)

    vocab = "".join(f"{token}\n" for token in start.tokenizer.vocab).encode()
    info = ClassifierInfo(
        task=name,
        model=sizes,
        tokenizer=start.tokenizer.name,
        vocab_sha256=hashlib.sha256(vocab).hexdigest(),
        max_len=max_len,
    )
    utils.set_seed(cfg.seed)
    device = utils.get_device()
    model = task.network(sizes, len(task.labels))
    if start.state is not None:  # with its pooler, if it has one
        own = model.state_dict()
        taken = {key: start.state[key] for key in own if key in start.state}
        if not start.with_head:  # its classifier may be the one of next-sentence prediction
            taken = {k: x for k, x in taken.items() if not k.startswith("classifier.")}
        model.load_state_dict(own | taken)
    precision = train.best_precision(device)
    settings = train.settings_of(cfg, info, precision)
    settings["data_sha256"] = utils.sha256_of(data_file)
    settings["weights_sha256"] = train.weights_sha256(model)
    if not start.with_head:
        task.prepare(model, data, cfg.seed)

    def get_batch(step: int, rank: int, world: int) -> train.Batch:
        epoch, within = divmod(step, steps)
        order = shuffle(data.lengths, cfg.batch_size, np.random.default_rng([cfg.seed, epoch]))
        rows = order[within]
        mine = rows[train.share(len(rows), rank, world)]
        batch = data.batch(mine)
        batch["weight"] *= np.float32(len(mine) / len(rows))
        return batch

    def evaluate(model: nn.Module) -> dict[str, float]:
        if not held_out:
            return {}
        return measure(predict(model, held_out_data, device), held_out.label)

    trainer = train.Trainer(
        cfg,
        model,
        task.get_optimizer(cfg, model),
        get_batch,
        task.get_losses,
        evaluate,
        save_dir,
        device,
        settings,
        precision,
        log_dir=log_dir,
    )
    what = f"{len(data):,} examples, {len(task.labels)} labels"
    with utils.one_writer(*([save_dir] if trainer.rank == 0 else [])):
        trainer.run(info, vocab, resume, overwrite, what)
    if trainer.rank == 0:
        model_file = Path(save_dir, f"model_steps_{cfg.total_steps}.pt")
        print(f"model {model_file}; measure it: python classify.py --mode eval --task {name}")


def fine_tuned_for(model_file: Path) -> str | None:
    """Return the task named in the model.json beside a model, or None."""
    try:
        said = utils.read_json(model_file.with_name("model.json"), "description of a model")
        return said["task"] if said["task"] in TASKS else None
    except (UserError, LookupError, TypeError):
        return None


def load_classifier(
    model_file: str | Path, task: str
) -> tuple[nn.Module, ClassifierInfo, CorpusTokenizer | FullTokenizer]:
    """Return a fine-tuned model in evaluation mode, its model.json, and its tokenizer.

    Raises
    ------
    UserError
        The model is for another task; see also `checkpoint.read_beside` and
        `checkpoint.load_model_file`.
    """
    info, tokenizer = checkpoint.read_beside(ClassifierInfo, model_file, "classify.py")
    if info.task != task:
        raise UserError(f"{model_file} was trained for {info.task}; give --task {info.task}")
    model = TASKS[task].network(info.model, len(TASKS[task].labels))
    checkpoint.load_model_file(model, model_file)
    return model.eval(), info, tokenizer


def check_settings(
    info: ClassifierInfo,
    model_file: str,
    train_cfg: str | None,
    model_cfg: str | None,
    vocab: str | None,
    max_len: int | None,
) -> None:
    """Refuse settings that contradict those of a fine-tuned model.

    Raises
    ------
    UserError
        A setting differs, or a file cannot be read.
    """
    if train_cfg is not None:
        train.Config.from_json(train_cfg)
    of_model = dataclasses.asdict(info.model) | {"max_len of examples": info.max_len}
    given = {}
    if model_cfg is not None:
        sizes = dataclasses.asdict(models.Config.from_json(model_cfg))
        given = {name: value for name, value in sizes.items() if value is not None}
    if max_len is not None:
        given["max_len of examples"] = max_len
    for name, value in given.items():
        if value != of_model[name]:
            raise UserError(
                f"{model_file} has {name} {of_model[name]}, not {value}; leave out --model_cfg and "
                "--max_len: they are stored in model.json beside the model"
            )
    if vocab is not None and utils.sha256_of(vocab) != info.vocab_sha256:
        raise UserError(
            f"{vocab} is not the vocabulary that {model_file} was trained with; leave --vocab out"
        )


def main(
    task: str = "samefunc",
    train_cfg: str | None = None,
    model_cfg: str | None = None,
    data_file: str = "data/samefunc/train.tsv",
    model_file: str | None = None,
    pretrain_file: str | None = None,
    vocab: str | None = None,
    save_dir: str | None = None,
    log_dir: str | None = None,
    max_len: Annotated[int, Field(ge=5)] | None = None,
    mode: Literal["train", "eval", "predict"] = "train",
    eval_file: str | None = None,
    data_parallel: bool = True,
    resume: bool = True,
    overwrite: bool = False,
    do_lower_case: bool | None = None,
) -> None:
    """Fine-tune a model (mode train), measure it (eval), or use it on unlabelled texts (predict).

    Parameters
    ----------
    task : str
        What to learn: mrpc, mnli, samefunc, or another class in tasks/catalogue.py.
    train_cfg : str
        JSON with the training's settings. Default: config/train_<task>.json.
    model_cfg : str
        JSON with the model's sizes, if they are not stored with pretrain_file.
    data_file : str
        TSV file with a header: the texts to train on, measure, or predict.
    model_file : str
        The fine-tuned model_steps_<k>.pt. For train: start from it, including its head.
    pretrain_file : str
        Where training starts: a .pt of pretrain.py or of this script, a TensorFlow checkpoint
        (bert_model.ckpt, with bert_config.json and vocab.txt beside it), or a Hugging Face folder.
        Default: random weights.
    vocab : str
        The vocabulary, if it is not stored with pretrain_file.
    save_dir : str
        Folder for models, or predictions and measures. Default: out-<task>, or the folder of
        model_file.
    log_dir : str
        Folder for TensorBoard's files. Default: runs/ in save_dir.
    max_len : int
        Maximum number of tokens per example; for samefunc, per window of a function (at most six).
        Default: as in pre-training, but at most 128.
    mode : {"train", "eval", "predict"}
        train, eval or predict.
    eval_file : str
        TSV file to measure at every save of a training.
    data_parallel : bool
        Use all GPUs when started by torchrun; False: insist on one.
    resume : bool
        Go on with the training in save_dir if it is the same one; False: start again.
    overwrite : bool
        Delete another training in save_dir. Default: rename it to <save_dir>-before-<date>.
    do_lower_case : bool, optional
        Read text like Google's uncased models (False: like the cased ones). Default: as stored with
        the pre-trained model, or uncased if its vocabulary has no capital letters.
    """
    if task not in TASKS:
        raise UsageError(f"--task {task}: the tasks are {', '.join(TASKS)}")
    train.check_parallel(data_parallel)
    utils.check_outputs({}, (), {"save_dir": save_dir, "log_dir": log_dir})
    if mode == "train":
        train_cfg = train_cfg or f"config/train_{task}.json"
        save_dir = save_dir or f"out-{task}"
        if model_file is None:
            start = read_start(pretrain_file, model_cfg, vocab, TASKS[task], do_lower_case)
        elif pretrain_file is None:
            utils.refuse_flags("is already stored in model.json", do_lower_case=do_lower_case)
            model, info, tokenizer = load_classifier(model_file, task)
            check_settings(info, model_file, train_cfg, model_cfg, vocab, None)
            start = Start(info.model, model.state_dict(), tokenizer, info.max_len, with_head=True)
        else:
            raise UsageError("give --pretrain_file or --model_file to start from, not both")
        fine_tune(
            task,
            train_cfg,
            start,
            data_file,
            save_dir,
            log_dir,
            max_len,
            eval_file,
            resume,
            overwrite,
        )
        return
    if model_file is None:
        raise UsageError(f"--mode {mode} needs --model_file, a model that --mode train has saved")
    utils.refuse_flags(
        f"is for --mode train, not for {mode}",
        pretrain_file=pretrain_file,
        eval_file=eval_file,
        noresume=not resume,
        overwrite=overwrite,
        do_lower_case=do_lower_case is not None,
    )
    device = utils.get_device()
    labels = TASKS[task].labels
    base = Path(save_dir or Path(model_file).parent, Path(data_file).stem)
    outputs = [f"{base}_predictions.tsv", *([f"{base}_metrics.json"] if mode == "eval" else [])]
    for file in outputs:
        utils.check_outputs({"save_dir": file}, (data_file, model_file))
    model, info, tokenizer = load_classifier(model_file, task)
    check_settings(info, model_file, train_cfg, model_cfg, vocab, max_len)
    examples = read_examples(TASKS[task], data_file, labelled=mode == "eval")
    data = TASKS[task].read(examples, tokenizer, info.max_len)
    probabilities = predict(model.to(device), data, device)
    write_predictions(Path(f"{base}_predictions.tsv"), labels, examples, probabilities)
    n = len(probabilities)
    print(f"{base}_predictions.tsv: {n:,} {utils.plural(n, 'prediction')}")
    if mode == "eval":
        measures = measure(probabilities, examples.label)
        table = metrics.confusion_matrix(
            examples.label, probabilities.argmax(1), labels=range(len(labels))
        )
        about = {"model_file": model_file, "data_file": data_file, "labels": list(labels)}
        utils.write_json(
            f"{base}_metrics.json", about | measures | {"confusion_matrix": table.tolist()}
        )
        report(measures, table, labels)


def functions(
    pretrain_file: str | None = None,
    data_file: str = "data/functions.npz",
    train_cfg: str = "config/encoder.json",
    save_dir: str = "out-encoder",
    to: str = "model/encoder.safetensors",
    resume: bool = True,
    overwrite: bool = False,
) -> None:
    """Fine-tune the encoder of functions: builds of the same function get similar vectors.

    Parameters
    ----------
    pretrain_file : str
        Start from this model of `pretrain.py functions`. Default: random weights.
    data_file : str
        Written by `dataprocess.py functions`; of binaries with symbols.
    train_cfg : str
        JSON with the model's sizes and the stages of the training.
    save_dir : str
        Folder for the checkpoints, one sub-folder for each stage.
    to : str
        The encoder to write, for search.py and diff.py.
    resume : bool
        Go on with the training in save_dir if it is the same one; False: start again.
    overwrite : bool
        Delete another training in save_dir. Default: rename it to <folder>-before-<date>.
    """
    from encoder import train as encoder_train
    from encoder.corpus import read_functions

    utils.check_outputs({"to": to}, [data_file, train_cfg, pretrain_file], {"save_dir": save_dir})
    cfg = utils.read_config(encoder_train.Config, train_cfg)
    for folder in encoder_train.folders_of(cfg.fine_tuning, save_dir):
        utils.check_outputs({}, [pretrain_file], replaced={"save_dir": folder})
    if pretrain_file is not None:
        encoder_train.check_model(pretrain_file, cfg.model)
    with utils.one_writer(save_dir):
        utils.remove_leftovers(Path(to).parent)
        made = read_functions(data_file)
        training = encoder_train.Training(
            cfg.model, encoder_train.prepare(made), cfg.fine_tuning[0].seed
        )
        if pretrain_file is not None:
            training.load(pretrain_file)
        training.run(cfg.fine_tuning, save_dir, resume, overwrite)
        training.write(to, made.analysis, str(dataclasses.asdict(cfg)))


if __name__ == "__main__":
    command_line(main, functions=functions)
