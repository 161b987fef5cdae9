"""Accuracy after a time of training: the lineage's recipe and ours, on the same text.

    python bench/recipe.py --path DIR     # DIR/<build>/chroot; 190 pairs: 15 minutes, two cores

The lineage's recipe: the model and Adam of plain.py, 32 x 512 tokens of which 20 are predicted,
learning rate 1e-4, dropout 0.1 everywhere. Its schedule has as many steps as fit into the given
minutes, so that the learning rate decays to the end. Ours: what train.sh does without arguments.
Both are evaluated on the same held-out examples, of our length and of the lineage's. The clock
stops during evaluations.
"""

import dataclasses
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import plain
import torch
from settings import MODEL, OURS, make_text
from shared import machine

import models
import optim
import pretrain
import train
import utils
from corpus.ids import read_corpus
from corpus.split import split_corpus
from terminal.command_line import command_line
from tokenization import CorpusTokenizer

LINEAGE = {"lr": 1e-4, "warmup": 0.1}
LINEAGE_BATCH = 32
THEIRS = (512, 20, 0.15)  # the lineage's max_len, max_pred, mask_prob
MEASURED = (64, 10, 0.15), (512, 77, 0.15)
EXAMPLES = 1024  # number of examples to evaluate on
pretrain.EVAL_BATCHES = EXAMPLES // pretrain.EVAL_EXAMPLES


class Clock:
    """Records a training: seconds so far, and accuracy at both lengths."""

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
    """Train both, and print accuracies after some seconds of training.

    Parameters
    ----------
    path : str
        Builds, as for gendata.py.
    biname : str
        The program's name.
    minutes : float
        Time for the lineage's training.
    work : str
        Folder for everything that is made.
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
        f"{machine()}, torch {torch.__version__}; {biname}, vocabulary {sizes.vocab_size}; "
        f"held out {split.rule}"
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
        text = f"the lineage reaches {goal[column]:.1%} in {lineage.rows[-1][0]:.0f} s"
        if reached:
            ratio = lineage.rows[-1][0] / reached[0]
            print(f"{name} tokens: {text}, ours in {reached[0]:.0f} s, {ratio:.1f} times as fast")
        else:
            print(f"{name} tokens: {text}, ours never")


def train_plainly(
    model: torch.nn.Module,
    loader: pretrain.SentPairDataLoader,
    clock: Clock,
    seconds: float,
    device: torch.device,
) -> None:
    """Train for about this time, with ten evaluations."""
    optimizer = plain.Adam(model, LINEAGE["lr"], LINEAGE["warmup"])
    tried = 0
    while clock.seconds() < seconds / 20:  # to find out how many steps fit
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
    command_line(main)
