"""Does pre-training learn? BERT beside simple models of the same text, on held-out programs.

    python bench/learning.py --path DIR     # DIR/<build>/<program>; three seeds, 15 minutes each

Runs the main line in a folder of its own (a second time, only what changed), then measures all on
the very same examples of the programs that gendata.py holds out. Masked LM: always the commonest
token; a 5-gram model with backoff, which sees the four true tokens to the left. Next sentence:
logistic regression on the lengths and bags of tokens of both segments and on what the bags share,
at the best of three strengths of regularisation, chosen on the held-out examples themselves.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import scipy.sparse
import torch
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

import checkpoint
import pretrain
import utils
from corpus.ids import read_corpus
from corpus.split import split_corpus
from terminal.command_line import command_line

TRAINING_BATCHES = 3000  # of 64 pairs, for the logistic regression
REGULARISATION = (1e-6, 1e-5, 1e-4)
POINTS = 12  # of a curve
ROOT = Path(__file__).resolve().parent.parent


def main(
    path: str = "experiment_data/coreutils/binaries/",
    biname: str = "*",
    pairs: int = 20,
    model_cfg: str = "config/bert_tiny.json",
    steps: int = 12000,
    seeds: int = 3,
    work: str = "out-learning",
    plot: str = "out-learning/learning.svg",
) -> None:
    """Train, print the table, and draw the curves.

    Parameters
    ----------
    path : str
        Builds, as for gendata.py.
    biname : str
        The programs' names; of three or more, some are held out.
    pairs : int
        Pairs of builds of each program at most.
    model_cfg : str
        The model's sizes.
    steps : int
        The training's total_steps; its other settings are those of config/pretrain.json.
    seeds : int
        Trainings, of which mean, least and most are printed.
    work : str
        Where everything is made.
    plot : str
        The picture to draw, .svg.
    """
    utils.check_outputs({"plot": plot}, (), {"work": work})
    made = ["--data", f"{work}/data", "--outputDir", f"{work}/output"]
    text = ["--vocab_file", f"{work}/vocab.txt", "--corpus_file", f"{work}/corpus.txt"]
    script("gendata.py", "--path", path, "--biname", biname, "--pairs", pairs, *made)
    script("dataprocess.py", *made, *text)
    model_files = [pretrained(seed, model_cfg, steps, work) for seed in range(seeds)]

    _, info, tokenizer = checkpoint.load_pretrained(model_files[0])
    corpus = read_corpus(Path(info.data_file), tokenizer, info.vocab_sha256)
    split = split_corpus(corpus)
    preprocess = pretrain.Preprocess4Pretrain(
        tokenizer.vocab, info.max_len, info.max_pred, info.mask_prob
    )
    evaluation = pretrain.Evaluation(corpus, split.heldout, preprocess, torch.device("cpu"))
    batches = [evaluation.loader.batch(k) for k in range(evaluation.batches)]
    found = [evaluation(checkpoint.load_pretrained(file)[0]) for file in model_files]
    five_gram = evaluation.five_gram(split.training)
    sampler = pretrain.SentPairSampler(corpus, split.training, info.max_len)
    loader = pretrain.SentPairDataLoader(sampler, preprocess, 0, pretrain.EVAL_EXAMPLES, seed=1)
    by_bags, by_bags_hard = bag_accuracy(loader, batches, len(tokenizer.vocab))

    def ours(name: str, form: str = ".1%") -> str:
        values = [measures[name] for measures in found]
        return f"{np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"

    print(
        f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}, torch "
        f"{torch.__version__}; {model_cfg}, {steps} steps, {seeds} seeds: mean (least to most)"
    )
    print(f"held out {split.rule}; {len(batches) * pretrain.EVAL_EXAMPLES:,} pairs of segments")
    for title, rows in (
        (
            "masked LM, accuracy",
            {
                "commonest token": f"{evaluation.commonest:.1%}",
                "5-gram with backoff": f"{five_gram:.1%}",
                "this model": ours("masked_lm_accuracy"),
            },
        ),
        (
            "masked LM, nats",
            {
                "unigram entropy": f"{evaluation.unigram_entropy:.3f}",
                "this model": ours("masked_lm_loss", ".3f"),
            },
        ),
        (
            "next sentence, accuracy; against hard negatives",
            {
                "lengths and bags of tokens": f"{by_bags:.1%}; {by_bags_hard:.1%}",
                "this model": f"{ours('next_accuracy')}; {ours('next_accuracy_hard')}",
            },
        ),
    ):
        print(title)
        for name, value in rows.items():
            print(f"  {name:28}{value}")
    curves = [curve(file.parent) for file in model_files]
    lines = {"5-gram with backoff": five_gram, "commonest token": evaluation.commonest}
    draw(curves, lines, Path(plot))
    print(plot)


def script(*arguments: object) -> None:
    """Run one of our scripts."""
    subprocess.run(
        [sys.executable, *map(str, [ROOT / str(arguments[0]), *arguments[1:]])], check=True
    )


def pretrained(seed: int, model_cfg: str, steps: int, work: str) -> Path:
    """Pre-train with one seed, as far as that is not done; return the model's file."""
    cfg = json.loads((ROOT / "config/pretrain.json").read_text())
    cfg |= {"total_steps": steps, "n_epochs": steps, "seed": seed}
    settings = Path(work, f"pretrain-{seed}.json")
    utils.write_json(settings, cfg | {"save_steps": max(1, steps // POINTS)})
    save_dir = Path(work, f"out-{seed}")
    script(
        *("pretrain.py", "--train_cfg", settings, "--model_cfg", model_cfg),
        *("--data_file", f"{work}/corpus.txt", "--vocab", f"{work}/vocab.txt"),
        *("--save_dir", save_dir),
    )
    return save_dir / f"model_steps_{steps}.pt"


def curve(save_dir: Path) -> tuple[list[int], list[float]]:
    """Return steps, and the accuracy on held-out masked tokens at each, from a training's log."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(save_dir / "runs")).Reload().Scalars("eval/masked_lm_accuracy")
    return [event.step for event in events], [event.value for event in events]


def draw(curves: list[tuple[list[int], list[float]]], lines: dict[str, float], file: Path) -> None:
    """Draw the seeds' curves, and lines to compare with, as SVG; the same bytes each time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "learning"}):
        figure, axes = pyplot.subplots(figsize=(6.4, 3.6))
        for number, (steps, accuracies) in enumerate(curves):
            label = "this model, each seed" if number == 0 else None
            axes.plot([0, *steps], [0, *accuracies], color="tab:blue", label=label)
        for (name, value), style in zip(lines.items(), ("--", ":"), strict=True):
            axes.axhline(value, color="black", linestyle=style, linewidth=1, label=name)
        axes.set(xlabel="steps", ylabel="held-out masked tokens guessed", ylim=(0, 1))
        axes.legend(loc="lower right")
        with utils.atomic_file(file, "wb") as out:
            figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)


def bag_accuracy(loader, batches: list[dict], vocab_size: int) -> tuple[float, float]:
    """Return next-sentence accuracies, all and against hard negatives, of logistic regression."""
    training = [loader.batch(k) for k in range(TRAINING_BATCHES)]
    known = scipy.sparse.vstack([bags(batch, vocab_size) for batch in training])
    answers = np.concatenate([batch["is_next"] for batch in training])
    asked = scipy.sparse.vstack([bags(batch, vocab_size) for batch in batches])
    is_next = np.concatenate([batch["is_next"] for batch in batches])
    is_hard = np.concatenate([batch["is_hard"] for batch in batches])
    results = []
    for alpha in REGULARISATION:
        classifier = SGDClassifier("log_loss", alpha=alpha, average=True, random_state=0)
        model = make_pipeline(MaxAbsScaler(), classifier).fit(known, answers)
        right = model.predict(asked) == is_next
        hard = (right[is_next == 1].mean() + right[is_hard].mean()) / 2
        results.append((float(right.mean()), float(hard)))
    return max(results, key=lambda result: result[1])


def bags(batch: dict, vocab_size: int) -> scipy.sparse.csr_matrix:
    """Return lengths, bag of A, bag of B, and what they share, of each pair (masked as it is)."""
    rows = np.arange(len(batch["is_next"]))[:, None]
    sides = []
    ordinary = batch["input_ids"] >= 5
    for side in (0, 1):
        inside = ordinary & (batch["segment_ids"] == side)
        where = (rows + 0 * batch["input_ids"])[inside]
        counts = (np.ones(inside.sum()), (where, batch["input_ids"][inside]))
        sides.append(scipy.sparse.csr_matrix(counts, (len(rows), vocab_size)))
    a, b = sides
    lengths = np.log1p(np.stack([a.sum(1).A1, b.sum(1).A1], 1))
    shared = [a.minimum(b), a.multiply(b).sqrt(), abs(a - b)]
    return scipy.sparse.hstack([lengths, a.log1p(), b.log1p(), *shared]).tocsr()


if __name__ == "__main__":
    command_line(main)
