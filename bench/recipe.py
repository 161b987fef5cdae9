"""Accuracy against seconds: this lineage's recipe and ours, on the same text and vocabulary.

    python bench/recipe.py --path DIR     # DIR/<build>/chroot; 190 pairs: 15 minutes, two cores
    python bench/recipe.py settings --path DIR --minutes 3 --seeds 3   # 90 minutes, two cores

The lineage's: plain.py's model and Adam, 32 x 512 tokens of which 20 are predicted, learning rate
1e-4, dropout 0.1 everywhere. Its schedule is given as many steps as its minutes allow, so that it
ends well. Ours: what train.sh does without arguments. Both are measured on the same held-out
examples, of our length and of the lineage's; the clock stands still meanwhile.

`settings` does for each setting of the recipe what train.sh does, for the same time, on programs of
which some are held out: what does it bring in masked accuracy at both lengths?
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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import plain
import torch

import checkpoint
import models
import optim
import pretrain
import train
import utils
from corpus.ids import read_corpus
from corpus.split import split_corpus
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


# Of config/pretrain.json, and of the model.
SETTINGS: dict[str, tuple[dict, dict]] = {
    "as it is": ({}, {}),
    "no next sentence": ({"objectives": {"masked_lm": 1}}, {}),
    "whole instructions": ({"objectives": {"masked_instructions": 1, "next_sentence": 1}}, {}),
    "last tenth at full length": ({"long_share": 0.1}, {}),
    "rotary positions": ({}, {"positions": "rotary"}),
    "rotary, last tenth at full length": ({"long_share": 0.1}, {"positions": "rotary"}),
    "warm-up, stable, decay": ({"schedule": "warmup_stable_decay"}, {}),
    "growing batches": ({"ramp": 0.2}, {}),
}
TRIAL = 100  # steps that say how many fit into the time


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
    minutes: float = 3,
    seeds: int = 1,
    rows: str | list[str] = "",
    work: str = "out-recipe",
) -> None:
    """Print masked accuracy on held-out programs, of each setting after the same time.

    Parameters
    ----------
    path : str
        Builds, as for gendata.py.
    biname : str
        The programs' names; of three or more, some are held out.
    minutes : float
        Of each training.
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
    print(
        f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}, torch "
        f"{torch.__version__}; {MODEL}, {minutes:g} minutes each, {seeds} seeds; held out "
        f"{split.rule}"
    )
    lengths = [examples[0] for examples in MEASURED]
    print(f"{'masked tokens, examples of':36}{'steps':>8}" + "".join(f"{n:>18}" for n in lengths))
    table = {}
    for row in chosen:
        found = []
        for seed in range(seeds):
            model, steps = train_for(60 * minutes, row, seed, vocab, data_file, work)
            measured = []
            for examples in MEASURED:
                preprocess = pretrain.Preprocess4Pretrain(tokenizer.vocab, *examples)
                evaluation = pretrain.Evaluation(corpus, split.heldout, preprocess, device)
                measured.append(evaluation(model.to(device))["masked_lm_accuracy"])
            found.append(measured)
        table[row] = found
        text = "".join(
            f"{f'{np.mean(values):.1%} ({np.min(values):.1%}-{np.max(values):.1%})':>18}"
            for values in zip(*found, strict=True)
        )
        print(f"{row:36}{steps:8}{text}", flush=True)
    utils.write_json(Path(work, "settings.json"), {"minutes": minutes, "accuracies": table})


def train_for(
    seconds: float, row: str, seed: int, vocab: Path, data_file: Path, work: str
) -> tuple[torch.nn.Module, int]:
    """Train with the settings of a row for so long; return the model and the steps that fitted."""
    changes, of_model = SETTINGS[row]
    place = Path(work, "settings", row.replace(",", "").replace(" ", "-"))
    cfg = json.loads(Path("config/pretrain.json").read_text()) | changes
    utils.write_json(place / "model.json", json.loads(Path(MODEL).read_text()) | of_model)

    def run(steps: int, save_dir: Path) -> float:
        lengths = {"total_steps": steps, "save_steps": steps, "n_epochs": 10**6, "seed": seed}
        utils.write_json(place / "pretrain.json", cfg | lengths)
        spent: list[float] = []
        real = train.Trainer.train

        def timed(trainer: train.Trainer) -> dict[str, float]:
            evaluate = trainer.evaluate
            start, pause = time.perf_counter(), 0.0

            def paused(model: torch.nn.Module) -> dict[str, float]:
                nonlocal pause
                before = time.perf_counter()
                measures = evaluate(model)
                pause += time.perf_counter() - before
                return measures

            trainer.evaluate = paused
            measures = real(trainer)
            spent.append(time.perf_counter() - start - pause)
            return measures

        train.Trainer.train = timed
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                pretrain.main(
                    *(str(place / "pretrain.json"), str(place / "model.json")),
                    *(str(data_file), str(vocab), str(save_dir)),
                    **dict(zip(("max_len", "max_pred", "mask_prob"), OURS, strict=True)),
                    resume=False,
                    overwrite=True,
                )
        finally:
            train.Trainer.train = real
        return spent[0]

    rate = TRIAL / run(TRIAL, place / "trial")
    steps = max(1, round(seconds * rate))
    run(steps, place / f"out-{seed}")
    model, _, _ = checkpoint.load_pretrained(place / f"out-{seed}/model_steps_{steps}.pt")
    return model, steps


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
    pretrain.EVAL_BATCHES = EXAMPLES // pretrain.EVAL_EXAMPLES

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
    trainer.forget(overwrite=True)
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
