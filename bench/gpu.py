"""Measure pre-training on a GPU; bench/gpu.sh says how, and calls this on both machines.

A part starts only if there is enough time left for it. The report says what was left out.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import numpy as np
import torch

if importlib.util.find_spec("tensorboard") is None:  # log to a text file instead
    _stub = types.ModuleType("torch.utils.tensorboard")
    sys.modules["torch.utils.tensorboard"] = _stub

    class SummaryWriter:
        """Replaces TensorBoard's in `train.Log`: writes a line of JSON for each number."""

        def __init__(self, folder: str, purge_step: int | None = None) -> None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.file = open(Path(folder, "log.jsonl"), "a")  # noqa: SIM115 - close() closes it

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.file.write(json.dumps({"step": step, name: value}) + "\n")
            self.file.flush()

        def close(self) -> None:
            self.file.close()

    _stub.SummaryWriter = SummaryWriter

import settings
import speed_training

import models
import optim
import pretrain
import train
import utils
from corpus.ids import Corpus
from terminal.arguments import names_of
from terminal.command_line import command_line
from tokenization import load_vocab

FOLDER = Path("gpu")
CONFIG = ROOT / "config"
# Packages to send as wheels: what this project needs, and Hugging Face's BERT, the peer.
NAMES = "annotated-types fire pydantic pydantic-core safetensors termcolor tokenizers tqdm"
NAMES += " typing-extensions typing-inspection pebble pefile pyelftools zstandard"
PEER = "transformers huggingface-hub packaging pyyaml regex anyio filelock h11 httpcore2 httpx2"
PEER += " idna sniffio truststore"
PYTHONS = ("3.11", "3.12", "3.13")
MOST = 45e6  # maximum number of bytes sent to the GPU machine
SHARD = 14e6  # maximum size in bytes of a file that is sent back
GROUP = 9  # rows of the table that are compiled at the same time, each by a process of its own
COMPILERS = 2  # processes that help each of them
ROW_SECONDS = 45  # no group is started with less time than that
SHAPES = {64: 512, 512: 64}  # tokens per example -> examples per batch
PROFILED = "bert_base 64 x 512: ours, bfloat16"
LOOP = "the whole training loop"


def row_of(size: str, length: int, row: str, **dropouts: float) -> tuple[str, tuple]:
    """Return a row's name, and the arguments of `prepare_step` for it."""
    named = "".join(f", {name} {value:g}" for name, value in dropouts.items())
    return f"bert_{size} {SHAPES[length]} x {length}: {row}{named}", (size, length, row, dropouts)


# The most important rows come first, because time may run out.
TABLE = dict(
    [
        row_of("tiny", 64, speed_training.GRAPHS),
        row_of("base", 512, "ours, bfloat16"),
        row_of("base", 512, speed_training.GRAPHS),
        row_of("base", 512, speed_training.PEER),
        (f"bert_small 256 x 64: {LOOP}", ("small", LOOP)),
        row_of("tiny", 64, speed_training.PEER),
        *(
            row_of(size, length, row)
            for size, length in (
                *(("small", 64), ("base", 64), ("medium", 512), ("small", 512)),
                *(("tiny", 512), ("medium", 64)),
            )
            for row in (speed_training.GRAPHS, speed_training.PEER)
        ),
        row_of("base", 512, speed_training.GRAPHS, p_drop_attn=0),
        row_of("base", 512, speed_training.GRAPHS, p_drop_attn=0, p_drop_hidden=0),
    ]
)
VOCAB = 2000


def pack(
    data_file: str = "data/corpus.txt",
    vocab: str = "vocab/vocab.txt",
    tokens: int = 30_000_000,
    wheels: bool = True,
) -> None:
    """Write everything that the GPU machine needs to gpu/.

    Parameters
    ----------
    data_file : str
        The corpus. If it is too long, only its first documents are used.
    vocab : str
        The vocabulary.
    tokens : int
        Maximum number of tokens.
    wheels : bool
        Download wheels. False: keep those of an earlier run.
    """
    from corpus.ids import read_corpus
    from corpus.split import split_corpus
    from tokenization import CorpusTokenizer

    (FOLDER / "wheels").mkdir(parents=True, exist_ok=True)
    if wheels:
        download()
    tokenizer = CorpusTokenizer(vocab)
    corpus = read_corpus(Path(data_file), tokenizer, utils.sha256_of(vocab))
    split = split_corpus(corpus)
    # All held-out documents, and as many training documents as fit.
    sizes = np.diff(corpus.bounds)
    room = tokens - sizes[split.heldout].sum()
    taken = split.heldout | (split.training & (np.cumsum(sizes * split.training) <= room))
    documents = np.flatnonzero(taken)
    sentences = [np.arange(*corpus.documents[d : d + 2]) for d in documents]
    lengths = np.diff(corpus.sentences)[np.concatenate(sentences)]
    ids = [
        corpus.tokens[a:b]
        for a, b in zip(corpus.bounds[documents], corpus.bounds[documents + 1], strict=True)
    ]
    with utils.atomic_file(FOLDER / "corpus.npz", "wb") as file:
        np.savez_compressed(
            file,
            tokens=np.concatenate(ids),
            sentences=lengths.astype(np.uint32),
            documents=np.diff(corpus.documents)[documents].astype(np.uint32),
            heldout=split.heldout[documents],
        )
    (FOLDER / "vocab.txt").write_text("".join(f"{token}\n" for token in tokenizer.vocab))
    size = sum(
        path.stat().st_size for path in FOLDER.rglob("*") if not {"out", "work"} & {*path.parts}
    )
    print(
        f"{FOLDER}: {size / 1e6:.1f} MB, {sum(map(len, ids)):,} ids of {len(documents):,} documents"
    )
    if size > MOST:
        raise utils.UserError(f"that is more than {MOST / 1e6:.0f} MB; give a smaller --tokens")


def download() -> None:
    """Download wheels of the versions installed here, for several Pythons."""
    names = []
    for name in f"{NAMES} {PEER}".split():
        try:
            names.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{name} is not installed here, so it is left out")
    for python in PYTHONS:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--only-binary=:all:", "--python-version", python, "--dest", FOLDER / "wheels"),
                *("--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64"),
                *names,
            ],
            check=False,
        )
        if done.returncode:
            raise utils.UserError(f"no wheels for Python {python}: see above; try --wheels False")
    (FOLDER / "wheels/names.txt").write_text("\n".join(names) + "\n")


class Report:
    """Prints lines, also writes them to a file, and knows how much time is left."""

    def __init__(self, file: Path, minutes: float) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.end = file, time.monotonic() + 60 * minutes
        self.file.write_text("")

    def say(self, line: str) -> None:
        print(line, flush=True)
        with self.file.open("a") as out:
            out.write(line + "\n")

    def left(self) -> float:
        """Return how many seconds are left."""
        return self.end - time.monotonic()


def machine(device: torch.device) -> str:
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{time.strftime('%Y-%m-%d')}, {card}, torch {torch.__version__}, numpy {np.__version__}"


def speed(
    out: str = "gpu/out",
    minutes: float = 4.7,
    losses: str = "all",
    rows: str | list[str] = "",
    tiny: bool = False,
) -> None:
    """Compare losses with the CPU's, then tokens per second with Hugging Face's BERT.

    Parameters
    ----------
    out : str
        Folder for speed.txt, which is written line by line.
    minutes : float
        Start no new part after this time.
    losses : str
        Ways to compute the losses of the same steps: float32, bfloat16, compiled, all or none.
    rows : str or list of str
        Beginnings of the names of rows. Default: all rows.
    tiny : bool
        A trial run: one small model, few steps.
    """
    device = utils.get_device()
    report = Report(Path(out, "speed.txt"), minutes)
    report.say(machine(device))
    starts = tuple(names_of(rows)) if rows else ("",)
    chosen = [name for name in TABLE if name.startswith(starts)]
    if not chosen:
        raise utils.UserError(f"--rows {starts[0]}: no such row; there are {', '.join(TABLE)}")
    loader, sizes = read_loader(CONFIG / "bert_tiny.json", 32, 64, 16)

    def checks() -> None:
        check_steps(report, loader, sizes, device, 20 if tiny else 300)
        if losses != "none":
            check_losses(report, loader, sizes, device, 5 if tiny else 50, losses)

    table(report, device, chosen[:1] if tiny else chosen, tiny, checks)


def read_loader(
    model_cfg: str | Path, batch_size: int, max_len: int, max_pred: int
) -> tuple[pretrain.SentPairDataLoader, models.Config]:
    """Return a loader of batches from the packed training text, and the model's sizes."""
    corpus, training, vocab = read_packed()
    sizes = models.Config.from_json(model_cfg)
    sizes = sizes.with_vocab_size(len(vocab), model_cfg, "gpu/vocab.txt")
    preprocess = pretrain.Preprocess4Pretrain(vocab, max_len, max_pred, 0.25)
    sampler = pretrain.SentPairSampler(corpus, training, max_len)
    n_tokens = int(np.diff(corpus.bounds)[training].sum())
    return pretrain.SentPairDataLoader(sampler, preprocess, n_tokens, batch_size, 42), sizes


def read_packed() -> tuple[Corpus, np.ndarray, dict[str, int]]:
    """Return the packed corpus, which of its documents are for training, and the vocabulary."""
    with np.load(FOLDER / "corpus.npz") as arrays:
        sentences = np.cumsum([0, *arrays["sentences"]], dtype=np.int64)
        documents = np.cumsum([0, *arrays["documents"]], dtype=np.int64)
        corpus = Corpus(
            tokens=arrays["tokens"],
            sentences=sentences,
            documents=documents,
            pairs=np.array([0, len(documents) - 1]),
            programs=[],
            builds=[],
            sha256=utils.sha256_of(FOLDER / "corpus.npz"),
        )
        return corpus, ~arrays["heldout"], load_vocab(FOLDER / "vocab.txt")


def make_trainer(
    loader: pretrain.SentPairDataLoader,
    sizes: models.Config,
    device: torch.device,
    save_dir: Path,
    steps: int,
    evaluate: object = lambda model: {},
    **how: object,
) -> train.Trainer:
    """Return a trainer like that of pretrain.py, with a new model."""
    cfg = train.Config.from_json(CONFIG / "train_samefunc.json")
    cfg = dataclasses.replace(
        cfg, batch_size=loader.batch_size, lr=how.pop("lr", 1e-3), total_steps=steps
    )
    cfg = dataclasses.replace(cfg, save_steps=how.pop("save_steps", steps), keep=1)
    utils.set_seed(cfg.seed)
    model = models.BertModel4Pretrain(sizes)
    return train.Trainer(
        *(cfg, model, optim.optim4GPU(cfg, model), loader.batch, pretrain.get_losses),
        *(evaluate, save_dir, device, {}),
        get_flops=lambda batch: (
            batch["input_ids"].numel()
            * train.flops_per_token(
                sizes, batch["input_ids"].shape[1], batch["masked_pos"].shape[1]
            )
        ),
        **how,
    )


@contextlib.contextmanager
def losses_kept() -> Iterator[list[float]]:
    """Record the masked-LM loss of each training step inside the `with` block."""
    kept: list[float] = []
    real = train.Trainer._gradients

    def spied(self, *arguments):
        losses = real(self, *arguments)
        kept.append(float(losses["masked_lm_loss"]))
        return losses

    train.Trainer._gradients = spied
    try:
        yield kept
    finally:
        train.Trainer._gradients = real


def check_losses(
    report: Report, loader, sizes, device: torch.device, steps: int, which: str
) -> None:
    """Train the same steps on the CPU in float32 and on this device; compare the losses."""
    ways = {"CPU, float32": (torch.device("cpu"), {"precision": "float32"})}
    for precision in ("float32", "bfloat16"):
        ways[f"{device.type}, {precision}"] = (device, {"precision": precision})
        if device.type == "cuda":
            how = {"precision": precision, "compile": True}
            ways[f"{device.type}, {precision}, compiled"] = (device, how)
    reference: np.ndarray | None = None
    report.say(f"losses of {steps} steps of bert_tiny with the same batches and initial weights")
    for name, (where, how) in ways.items():
        if which not in ("all", *name.split(", ")) and reference is not None:
            continue
        with losses_kept() as kept:
            trainer = make_trainer(loader, sizes, where, FOLDER / "work/losses", steps, **how)
            trainer.train()
        found = np.array(kept)
        reference = found if reference is None else reference
        report.say(
            f"  {name:28} first {found[0]:.4f}, last {found[-1]:.4f}, "
            f"at most {abs(found - reference).max():.4f} off"
        )


def check_steps(report, loader, sizes, device: torch.device, steps: int) -> None:
    """Report how long steps wait for data, and where the CPU waits for the GPU."""
    trainer = make_trainer(
        *(loader, sizes, device, FOLDER / "work/waiting", steps),
        precision=train.best_precision(device),
    )
    _, waiting, places = loop_measures(trainer)
    report.say(
        f"bert_tiny, {loader.batch_size} x {loader.preprocess.max_len}, {steps} steps: waiting for "
        f"data {waiting:.1%} of the time (rows compile meanwhile); "
        f"{sum(places.values())} synchronisations in total (losses are read every "
        f"{train.LOG_STEPS} steps, models are saved at the end)"
    )
    for place, count in places.most_common(12):
        report.say(f"  {count:6} x {place}")


def loop_measures(trainer: train.Trainer) -> tuple[float, float, Counter[str]]:
    """Train, and measure the loop.

    Returns
    -------
    float
        Tokens per second (median).
    float
        Share of the time that steps wait for data (median).
    Counter of str
        Line of Python -> number of synchronisations between CPU and GPU there.
    """
    kept: list[dict[str, float]] = []
    write = train.Log._write
    train.Log._write = lambda self, values: (kept.append(values), write(self, values))[1]
    on_gpu = trainer.device.type == "cuda"
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if on_gpu:
                torch.cuda.set_sync_debug_mode("warn")
            trainer.train()
    finally:
        train.Log._write = write
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")
    logged = [values for values in kept if "train/lr" in values]
    return (
        float(np.median([values["train/tokens_per_second"] for values in logged])),
        float(np.median([values["train/waiting_for_data"] for values in logged])),
        Counter(
            f"{'/'.join(Path(warning.filename).parts[-2:])}:{warning.lineno}"
            for warning in caught
            if "synchron" in str(warning.message)
        ),
    )


def table(
    report: Report,
    device: torch.device,
    names: list[str],
    tiny: bool,
    meanwhile: Callable[[], None],
) -> None:
    """Report tokens per second, MFU (model FLOPs utilisation) and peak memory of each row.

    The processes of a group of rows compile at the same time, then measure one after the other.
    ``meanwhile`` is called while the first group compiles.
    """
    context = multiprocessing.get_context("spawn")
    ceiling = None
    for first in range(0, len(names), GROUP):
        if report.left() < ROW_SECONDS and not tiny:
            report.say(f"left out for lack of time: {'; '.join(names[first:])}")
            break
        group = []
        for name in names[first : first + GROUP]:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, name, tiny), daemon=True)
            process.start()
            theirs.close()
            group.append((name, ours, process))
        if ceiling is None:
            meanwhile()
        ready = {name: answer_of(pipe, report, tiny) for name, pipe, _ in group}
        if ceiling is None:
            ceiling = train.product_flops(device, torch.bfloat16)
            report.say(f"products of two large bfloat16 matrices: {ceiling / 1e12:.1f} TFLOP/s")
            report.say(f"{'':60}{'tokens/s':>12}{'MFU':>8}{'GB':>7}")
        for name, pipe, process in group:
            answer = ready[name]
            if answer == "ready":
                pipe.send(True)
                answer = answer_of(pipe, report, tiny)
            if isinstance(answer, str):
                report.say(f"{name}: {answer}")
            else:
                rate, flops, peak, more = answer
                report.say(f"{name:60}{rate:12,.0f}{rate * flops / ceiling:8.1%}{peak:7.1f}")
                for line in more:
                    report.say(f"    {line}")
            process.kill()  # a normal exit may take seconds
            process.join()


def answer_of(pipe: Connection, report: Report, tiny: bool) -> str | tuple:
    """Return a process's answer, or why there is none."""
    if not pipe.poll(None if tiny else max(1.0, report.left())):
        return "left out for lack of time"
    try:
        return pipe.recv()
    except EOFError:
        return "its process ended"


def serve(pipe: Connection, name: str, tiny: bool) -> None:
    """Prepare a row, answer "ready", measure it when told to; an error is sent as the answer."""
    warnings.filterwarnings("ignore", module="torch")  # of the compiler
    try:
        device = utils.get_device()
        work = TABLE[name]
        measure = (prepare_loop if work[1] == LOOP else prepare_step)(name, *work, device, tiny)
        pipe.send("ready")
        pipe.recv()
        pipe.send(measure())
    except Exception as error:  # so that the other rows are still measured
        at = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())[:200]
        pipe.send(f"{type(error).__name__} in {Path(at.filename).name}:{at.lineno}: {text}")


def prepare_step(
    name: str,
    size: str,
    length: int,
    row: str,
    dropouts: dict[str, float],
    device: torch.device,
    tiny: bool,
) -> Callable[[], tuple]:
    """Return a function that measures steps, always with the same batch."""
    batch, length = (4, 16) if tiny else (SHAPES[length], length)
    predicted = max(1, length // 5)
    model_cfg = str(CONFIG / f"bert_{size}.json")
    sizes = models.Config.from_json(model_cfg)
    sizes = dataclasses.replace(sizes, vocab_size=VOCAB, **dropouts)
    work = (model_cfg, VOCAB, batch, length, predicted, sizes.p_drop_attn, sizes.p_drop_hidden)
    row = row if device.type == "cuda" else "ours, bfloat16"
    step = speed_training.make_step(row, work, device)
    for _ in range(3):
        step()

    def measure() -> tuple:
        times = []
        while len(times) < 5 or (sum(times) < 3 and len(times) < 100):
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0
        profile = speed_training.profile_of(step, device) if name == PROFILED else []
        flops = train.flops_per_token(sizes, length, predicted)
        return batch * length / float(np.median(times)), flops, peak, profile

    return measure


def prepare_loop(
    name: str, size: str, row: str, device: torch.device, tiny: bool
) -> Callable[[], tuple]:
    """Return a function that measures the whole training loop, including the making of batches."""
    loader, sizes = read_loader(CONFIG / f"bert_{size}.json", 8 if tiny else 256, 64, 16)
    place = FOLDER / "work/loop"
    how = {"precision": train.best_precision(device), "compile": device.type == "cuda"}
    make_trainer(loader, sizes, device, place, 5 if tiny else 40, **how).train()

    def measure() -> tuple:
        trainer = make_trainer(loader, sizes, device, place, 5 if tiny else 300, **how)
        rate, waiting, places = loop_measures(trainer)
        flops = train.flops_per_token(sizes, 64, 16)
        peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0
        text = ", ".join(f"{count} x {place}" for place, count in places.most_common(6))
        return rate, flops, peak, [f"waiting {waiting:.1%}; synchronisations: {text}"]

    return measure


def recipe(
    out: str = "gpu/out",
    minutes: float = 4.0,
    model_cfg: str = str(CONFIG / "bert_small.json"),
    batch_size: int = 256,
    lr: float = 1e-3,
    tiny: bool = False,
) -> None:
    """Pre-train on the packed ids for some minutes; write the held-out curve and the weights.

    Parameters
    ----------
    out : str
        Folder for recipe.txt, log/ and the weights in bfloat16, recipe-<n>.pt.
    minutes : float
        Time for training, without compilation.
    model_cfg : str
        The model's sizes.
    batch_size : int
        Number of examples, of 64 tokens each.
    lr : float
        Highest learning rate.
    tiny : bool
        A trial run: a few steps with few examples.
    """
    device = utils.get_device()
    report = Report(Path(out, "recipe.txt"), minutes)
    report.say(f"{machine(device)}; {model_cfg}, batches of {batch_size} x 64, lr {lr}")
    if tiny:
        model_cfg, batch_size = str(CONFIG / "bert_tiny.json"), 8
    loader, sizes = read_loader(model_cfg, batch_size, 64, 16)
    corpus, training, _ = read_packed()
    if tiny:
        pretrain.EVAL_BATCHES = 1
    evaluation = pretrain.Evaluation(corpus, ~training, loader.preprocess, device)
    how = {"precision": train.best_precision(device), "compile": device.type == "cuda", "lr": lr}
    place = FOLDER / "work/recipe"
    trial = 5 if tiny else 200
    make_trainer(loader, sizes, device, place / "trial", trial, **how).train()  # compiles
    start = time.perf_counter()
    make_trainer(loader, sizes, device, place / "trial", trial, **how).train()
    rate = trial / (time.perf_counter() - start)
    steps = trial if tiny else max(trial, int(0.85 * rate * report.left()))
    start = time.perf_counter()
    spent = 0.0

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        nonlocal start, spent
        spent += time.perf_counter() - start
        measures = evaluation(model)
        report.say(
            f"{spent:7.0f} s, step {trainer.step:6}: masked tokens "
            f"{measures['masked_lm_accuracy']:.1%}, {measures['masked_lm_loss']:.3f} nats; next "
            f"sentence {measures['next_accuracy']:.1%}"
        )
        start = time.perf_counter()
        return measures

    trainer = make_trainer(
        *(loader, sizes, device, place, steps, evaluate),
        **how,
        save_steps=max(1, steps // 10),
        log_dir=Path(out, "log"),
    )
    trainer.train()
    report.say(f"5-gram with backoff: masked tokens {evaluation.five_gram(training):.1%}")
    report.say(f"commonest token: {evaluation.commonest:.1%}")
    shards = write_shards(trainer.model.state_dict(), Path(out))
    report.say(f"{loader.n_tokens:,} ids, {steps} steps; weights in {len(shards)} files")


def write_shards(state: dict[str, torch.Tensor], folder: Path) -> list[Path]:
    """Write weights in bfloat16 to files of at most SHARD bytes; split large tensors."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, value in state.items():
        for number, part in enumerate(value.cpu().bfloat16().flatten().split(int(SHARD // 2))):
            if size + 2 * part.numel() > SHARD:
                shards.append({})
                size = 0
            shards[-1][f"{name}:{number}"] = part.clone()
            size += 2 * part.numel()
    files = [folder / f"recipe-{number}.pt" for number in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        torch.save(shard, file)
    return files


def join(
    out: str = "gpu/out", model_cfg: str = str(CONFIG / "bert_small.json"), to: str = "gpu/model.pt"
) -> None:
    """Join the weights that came back into one file, as float32.

    Parameters
    ----------
    out : str
        Folder of recipe-<n>.pt.
    model_cfg : str
        The model's sizes.
    to : str
        The file to write.
    """
    import checkpoint

    sizes = models.Config.from_json(model_cfg)
    vocab = load_vocab(FOLDER / "vocab.txt")
    model = models.BertModel4Pretrain(sizes.with_vocab_size(len(vocab), model_cfg, "gpu/vocab.txt"))
    parts: dict[str, list[torch.Tensor]] = {}
    for number in range(len(list(Path(out).glob("recipe-*.pt")))):
        for name, part in checkpoint.load_pt(Path(out, f"recipe-{number}.pt")).items():
            parts.setdefault(name.rsplit(":", 1)[0], []).append(part)
    state = {
        name: torch.cat(parts[name]).float().view(value.shape)
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    checkpoint.save_pt(model.state_dict(), to)
    print(to)


def main() -> None:
    """Train and measure on a GPU; gpu.sh shows in which order."""


if __name__ == "__main__":
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(COMPILERS))
    warnings.filterwarnings("ignore", module="torch")  # of the compiler
    command_line(main, pack=pack, speed=speed, recipe=recipe, settings=settings.run, join=join)
