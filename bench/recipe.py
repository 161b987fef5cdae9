"""Accuracy against seconds: this lineage's recipe and ours, on the same text and vocabulary.

    python bench/recipe.py --path DIR     # DIR/<build>/chroot; 190 pairs: 15 minutes, two cores
    python bench/recipe.py settings --path DIR --seeds 3   # 80 minutes of processor time

The lineage's: plain.py's model and Adam, 32 x 512 tokens of which 20 are predicted, learning rate
1e-4, dropout 0.1 everywhere. Its schedule is given as many steps as its minutes allow, so that it
ends well. Ours: what train.sh does without arguments. Both are measured on the same held-out
examples, of our length and of the lineage's; the clock stands still meanwhile.

`settings` does for each setting of the recipe what train.sh does, for the same time, on programs of
which some are held out: what does it bring in masked accuracy at both lengths, and in what the
vectors are worth (do a function's find the same function in another build)?
"""

import contextlib
import dataclasses
import datetime
import io
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import plain
import torch
from speed_training import processor

import checkpoint
import models
import optim
import pretrain
import train
import utils
from corpus.ids import read_corpus
from corpus.split import split_corpus
from pairs.folder import analysis_files, find_pairs, read_info
from samefunc import choose, read_functions
from tasks.comparer import Comparer, ComparisonData
from terminal.arguments import names_of
from terminal.command_line import command_line
from tokenization import CorpusTokenizer

LINEAGE = {"lr": 1e-4, "warmup": 0.1}
LINEAGE_BATCH = 32
# How examples are made: max_len, max_pred, mask_prob. The first is train.sh's.
OURS, THEIRS = (64, 16, 0.25), (512, 20, 0.15)
MEASURED = (64, 10, 0.15), (512, 77, 0.15)
MODEL = "config/bert_tiny.json"
EXAMPLES = 1024  # that a model is measured on
pretrain.EVAL_BATCHES = EXAMPLES // pretrain.EVAL_EXAMPLES


# Of config/pretrain.json, and of the model.
REFERENCE = "BERT's recipe"
BERTS = {"objectives": {"masked_lm": 1, "next_sentence": 1}}
SETTINGS: dict[str, tuple[dict, dict]] = {
    REFERENCE: ({}, {}),
    "no next sentence": ({"objectives": {"masked_lm": 1}}, {}),
    "whole instructions": ({"objectives": {"masked_instructions": 1, "next_sentence": 1}}, {}),
    "last tenth at full length": ({"long_share": 0.1}, {}),
    "rotary positions": ({}, {"positions": "rotary"}),
    "rotary and last tenth at full length": ({"long_share": 0.1}, {"positions": "rotary"}),
    "warm-up-stable-decay": ({"schedule": "warmup_stable_decay"}, {}),
    "growing batches": ({"ramp": 0.2}, {}),
}
COLUMNS = ("masked tokens of 64", "of 512", "functions found")
TRIAL, ROUNDS = 30, 3  # steps, and how often, that say what a step costs
POINTS = 8  # evaluations of a training
BLOCKS = 5  # functions of fewer are not searched for


def make_text(path: str, biname: str, work: str) -> tuple[Path, Path]:
    """Make vocabulary and corpus of the builds in ``work``."""
    Path(work).mkdir(exist_ok=True)
    vocab, data_file = Path(work, "vocab.txt"), Path(work, "corpus.txt")
    for arguments in (
        ["gendata.py", "--path", path, "--biname", biname],
        ["dataprocess.py", "--vocab_file", vocab, "--corpus_file", data_file],
    ):
        command = [sys.executable, *map(str, arguments), "--data", f"{work}/data"]
        command += ["--outputDir", f"{work}/output"]
        subprocess.run(command, check=True)
    return vocab, data_file


def settings(
    path: str = "experiment_data/coreutils/binaries/",
    biname: str = "*",
    steps: int = 3000,
    seeds: int = 1,
    rows: str | list[str] = "",
    work: str = "out-recipe",
) -> None:
    """Print what each setting brings on held-out programs after the same time; `--rows` chooses.

    The time is that of ``steps`` steps of BERT's recipe. What a step costs is measured in the
    processor's time, for all rows in turn, so that other work on the machine changes little. What
    is done already is not done again.

    Parameters
    ----------
    path : str
        Builds, as for gendata.py.
    biname : str
        The programs' names; of three or more, some are held out.
    steps : int
        Of the first row; others have as many as the same time allows.
    seeds : int
        Trainings of each row.
    rows : str or list of str
        Which settings; left out, all.
    work : str
        Where everything is made.
    """
    chosen = names_of(rows) if rows else list(SETTINGS)
    unknown = [row for row in chosen if row not in SETTINGS]
    if unknown:
        raise utils.UserError(f"--rows {unknown[0]}: the rows are {', '.join(SETTINGS)}")
    vocab, data_file = make_text(path, biname, work)
    tokenizer = CorpusTokenizer(vocab)
    corpus = read_corpus(data_file, tokenizer, utils.sha256_of(vocab))
    split, device = split_corpus(corpus), utils.get_device()
    evaluations = [
        pretrain.Evaluation(
            *(corpus, split.heldout, pretrain.Preprocess4Pretrain(tokenizer.vocab, *examples)),
            device,
        )
        for examples in MEASURED
    ]
    functions = Functions(work, tokenizer)
    costs = costs_of_steps(work, vocab, data_file)
    print(
        f"{datetime.date.today()}, {processor()}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}; {MODEL}, {steps * costs[REFERENCE]:.0f} s of processor time each, "
        f"{seeds} seeds; held out {split.rule}; {functions.queries:,} searches; bags of words find "
        f"{functions.recall(functions.bags(len(tokenizer.vocab))):.1%}"
    )
    print(f"{'':36}{'steps':>8}" + "".join(f"{column:>22}" for column in COLUMNS))
    for row in chosen:
        of_row = round(steps * costs[REFERENCE] / costs[row])
        found = []
        for seed in range(seeds):
            result = place_of(row, seed, of_row, work) / "result.json"
            if not result.exists():
                model, info, _ = trained(row, seed, of_row, vocab, data_file, result.parent)
                measured = [e(model.to(device))["masked_lm_accuracy"] for e in evaluations]
                measured.append(functions.recall(functions.vectors(model, info)))
                utils.write_json(result, measured)
            found.append(json.loads(result.read_text()))
        print(
            f"{row:36}{of_row:8}"
            + "".join(
                f"{f'{np.mean(v):.1%} ({np.min(v):.1%}-{np.max(v):.1%})':>22}"
                for v in zip(*found, strict=True)
            ),
            flush=True,
        )


def place_of(row: str, seed: int, steps: int, work: str) -> Path:
    """Return the folder of a row's training."""
    return Path(work, "settings", "".join(c for c in row if c.isalnum()), f"{seed}-{steps}")


def costs_of_steps(work: str, vocab: Path, data_file: Path) -> dict[str, float]:
    """Return the seconds of processor time of a step of each row, the least of some trials."""
    file = Path(work, "costs.json")
    if not file.exists():
        seconds: dict[str, list[float]] = {row: [] for row in SETTINGS}
        for _ in range(ROUNDS):
            for row, of_row in seconds.items():
                with clock() as spent:
                    trained(row, len(of_row), TRIAL, vocab, data_file, Path(work, "trial"))
                of_row.append(spent[0] / TRIAL)
        utils.write_json(file, {row: min(of_row) for row, of_row in seconds.items()})
    return json.loads(file.read_text())


@contextlib.contextmanager
def clock() -> Iterator[list[float]]:
    """Note the processor time of each training inside, without its evaluations."""
    spent: list[float] = []
    real = train.Trainer.train

    def timed(trainer: train.Trainer) -> dict[str, float]:
        trainer.evaluate = lambda model: {}
        start = time.process_time()
        measures = real(trainer)
        spent.append(time.process_time() - start)
        return measures

    train.Trainer.train = timed
    try:
        yield spent
    finally:
        train.Trainer.train = real


def trained(
    row: str, seed: int, steps: int, vocab: Path, data_file: Path, place: Path
) -> tuple[models.BertModel4Pretrain, checkpoint.ModelInfo, Path]:
    """Do what train.sh does, with the settings of a row; return the model and its file."""
    changes, of_model = SETTINGS[row]
    lengths = {"total_steps": steps, "save_steps": max(1, steps // POINTS), "n_epochs": 10**6}
    cfg = json.loads(Path("config/pretrain.json").read_text()) | BERTS | changes | lengths
    utils.write_json(place / "pretrain.json", cfg | {"seed": seed})
    utils.write_json(place / "model.json", json.loads(Path(MODEL).read_text()) | of_model)
    with contextlib.redirect_stdout(io.StringIO()):
        pretrain.main(
            *(str(place / "pretrain.json"), str(place / "model.json")),
            *(str(data_file), str(vocab), str(place / "out")),
            **dict(zip(("max_len", "max_pred", "mask_prob"), OURS, strict=True)),
            overwrite=True,
        )
    file = place / f"out/model_steps_{steps}.pt"
    model, info, _ = checkpoint.load_pretrained(file)
    return model, info, file


class Functions:
    """Functions of programs that are not trained on, to find in other builds by their vectors.

    A search takes a function of one build, and asks for the one of that symbol among all functions
    of another build of the program. Functions of a name that programs of the training have, too,
    which is what coreutils shares, are not searched for. Names (strings, imports) are left out of
    the texts.

    Parameters
    ----------
    work : str
        Where `make_text` made data/ and output/.
    tokenizer : CorpusTokenizer
    """

    def __init__(self, work: str, tokenizer: CorpusTokenizer) -> None:
        infos = [read_info(folder) for folder in find_pairs(f"{work}/data")[0]]
        seen: set[str] = set()
        texts: dict[str, int] = {}
        self.tasks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for of_training in (True, False):
            for info in infos:
                if (info.split == "train") != of_training:
                    continue
                builds = [
                    choose(read_functions(file, info.program, build.build), set(), BLOCKS)
                    for build, file in zip(
                        info.binaries, analysis_files(info, f"{work}/output"), strict=True
                    )
                ]
                if of_training:
                    seen.update(function.symbol for build in builds for function in build)
                    continue
                numbers = [
                    {f.symbol: texts.setdefault(f.texts[1], len(texts)) for f in build}
                    for build in builds
                ]
                for first, second in (numbers, numbers[::-1]):
                    names = sorted(first.keys() & second.keys() - seen)
                    queries = np.array([first[name] for name in names], np.int64)
                    answers = np.array([second[name] for name in names], np.int64)
                    self.tasks.append((queries, answers, np.array(sorted(second.values()))))
        self.tokenizer, self.texts = tokenizer, list(texts)
        self.queries = sum(len(queries) for queries, _, _ in self.tasks)

    def data(self, max_len: int) -> ComparisonData:
        pairs = ((text, text) for text in self.texts)
        return ComparisonData(pairs, None, self.tokenizer, max_len)

    def vectors(self, model: models.BertModel4Pretrain, info: checkpoint.ModelInfo) -> np.ndarray:
        """Return the mean of each function's hidden states, float32 (functions, D)."""
        comparer = Comparer(info.model, 2).eval()
        comparer.transformer = model.transformer
        return self.data(info.max_len).encode(comparer).cpu().numpy()

    def bags(self, vocab_size: int) -> np.ndarray:
        """Return each function's logarithmic counts of words, float32 (functions, V)."""
        data = self.data(64)
        return np.log1p(data.counts(np.arange(len(data.texts))))

    def recall(self, vectors: np.ndarray) -> float:
        """Return how often the nearest of a build's functions, by cosine, is the one searched."""
        x = vectors - vectors.mean(0)  # what all functions have in common tells nothing
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        right = 0
        for queries, answers, all_of_build in self.tasks:
            nearest = (x[queries] @ x[all_of_build].T).argmax(1)
            right += int((all_of_build[nearest] == answers).sum())
        return right / self.queries


class Clock:
    """Measures a model as it is trained: seconds of training, accuracy at both lengths."""

    def __init__(self, evaluations: list[pretrain.Evaluation]) -> None:
        self.evaluations, self.rows = evaluations, []
        self.spent, self.since = 0.0, time.perf_counter()

    def seconds(self) -> float:
        return self.spent + time.perf_counter() - self.since

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        self.spent = self.seconds()
        model.eval()
        accuracies = [evaluation(model)["masked_lm_accuracy"] for evaluation in self.evaluations]
        self.rows.append((self.spent, *accuracies))
        print(f"{self.spent:8.0f} s" + "".join(f"{x:10.1%}" for x in accuracies), flush=True)
        self.since = time.perf_counter()
        return {"masked_lm_accuracy": accuracies[0]}


def main(
    path: str = "experiment_data/coreutils/binaries/",
    biname: str = "chroot",
    minutes: float = 10,
    work: str = "out-recipe",
) -> None:
    """Train both, and print accuracies against seconds.

    Parameters
    ----------
    path : str
        Builds, as for gendata.py.
    biname : str
        The program's name.
    minutes : float
        How long the lineage's training lasts.
    work : str
        Where everything is made.
    """
    vocab, data_file = make_text(path, biname, work)
    tokenizer = CorpusTokenizer(vocab)
    corpus = read_corpus(data_file, tokenizer, utils.sha256_of(vocab))
    split = split_corpus(corpus)
    sizes = models.Config.from_json(MODEL).with_vocab_size(len(tokenizer.vocab), MODEL, vocab)
    device = utils.get_device()

    def loader_of(examples: tuple, batch_size: int) -> pretrain.SentPairDataLoader:
        sampler = pretrain.SentPairSampler(corpus, split.training, examples[0])
        preprocess = pretrain.Preprocess4Pretrain(tokenizer.vocab, *examples)
        return pretrain.SentPairDataLoader(sampler, preprocess, 0, batch_size, cfg.seed)

    cfg = pretrain.Config.from_json("config/pretrain.json")
    evaluations = [
        pretrain.Evaluation(
            *(corpus, split.heldout),
            *(pretrain.Preprocess4Pretrain(tokenizer.vocab, *examples), device),
        )
        for examples in MEASURED
    ]
    print(
        f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}, torch "
        f"{torch.__version__}; {biname}, vocabulary {sizes.vocab_size}; held out {split.rule}"
    )
    lengths = [examples[0] for examples in MEASURED]
    print("seconds of training, masked-LM accuracy on held-out examples of", end=" ")
    print(" and ".join(f"{length} tokens" for length in lengths))

    print("the lineage's recipe", flush=True)
    utils.set_seed(cfg.seed)
    model = plain.BertModel4Pretrain(
        models.Config(**{**vars(sizes), "p_drop_hidden": 0.1, "p_drop_attn": 0.1})
    ).to(device)
    lineage = Clock(evaluations)
    train_plainly(model, loader_of(THEIRS, LINEAGE_BATCH), lineage, 60 * minutes, device)

    print("ours", flush=True)
    utils.set_seed(cfg.seed)
    model = models.BertModel4Pretrain(sizes)
    save_dir = Path(work, "out")
    clock = Clock(evaluations)
    get_batch = loader_of(OURS, cfg.batch_size).batch
    cfg = dataclasses.replace(cfg, save_steps=math.ceil(cfg.total_steps / 12))
    precision = train.best_precision(device)
    trainer = train.Trainer(
        *(cfg, model, optim.optim4GPU(cfg, model), get_batch, pretrain.get_losses, clock),
        *(save_dir, device, {}, precision, device.type == "cuda"),
    )
    trainer.start(resume=False, overwrite=True)
    trainer.train()

    goal = lineage.rows[-1][1:]
    result = {"goal": goal, "seconds": lineage.rows[-1][0], "ours": clock.rows}
    utils.write_json(Path(work, "recipe.json"), result)
    for column, name in enumerate(lengths):
        reached = [row[0] for row in clock.rows if row[1 + column] >= goal[column]]
        text = f"the lineage's {goal[column]:.1%} of {lineage.rows[-1][0]:.0f} s"
        if reached:
            ratio = lineage.rows[-1][0] / reached[0]
            print(f"{name} tokens: {text} are ours after {reached[0]:.0f} s, {ratio:.1f} x sooner")
        else:
            print(f"{name} tokens: {text} are never ours")


def train_plainly(
    model: torch.nn.Module,
    loader: pretrain.SentPairDataLoader,
    clock: Clock,
    seconds: float,
    device: torch.device,
) -> None:
    """Train for so many seconds, and measure each tenth of them."""
    optimizer = plain.Adam(model, LINEAGE["lr"], LINEAGE["warmup"])
    tried = 0
    while clock.seconds() < seconds / 20:  # how many steps it will be
        one_step(model, optimizer, loader.batch(tried), device)
        tried += 1
    total = round(20 * tried)
    optimizer.total, k = total, tried
    while k < total and clock.seconds() < 1.1 * seconds:
        one_step(model, optimizer, loader.batch(k), device)
        k += 1
        if k % max(1, total // 10) == 0 or k == total:
            clock(model)


def one_step(
    model: torch.nn.Module, optimizer: plain.Adam, batch: train.Batch, device: torch.device
) -> None:
    model.train()
    rows = {name: torch.from_numpy(x).to(device) for name, x in batch.items()}
    optimizer.zero_grad()
    sum(pretrain.get_losses(model, rows).values()).backward()
    optimizer.step()


if __name__ == "__main__":
    command_line(main, settings=settings)
