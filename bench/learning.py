"""Does pre-training learn? BERT beside simple models of the same text.

    python bench/learning.py --path DIR     # DIR/<build>/chroot; 190 pairs: 15 minutes, two cores

Runs the main line in a folder of its own (a second time, only what changed), then measures all on
the very same held-out examples. Masked LM: always the commonest token; a 5-gram model with backoff,
which sees the four true tokens to the left. Next sentence: logistic regression on the lengths and
bags of tokens of both segments and on what the bags share, at the best of three strengths of
regularisation, chosen on the held-out examples themselves.
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


def main(
    path: str = "experiment_data/coreutils/binaries/",
    biname: str = "chroot",
    model_cfg: str = "config/bert_tiny.json",
    steps: int = 12000,
    work: str = "out-learning",
) -> None:
    """Train, and print the table.

    Parameters
    ----------
    path : str
        Builds, as for gendata.py.
    biname : str
        The program's name.
    model_cfg : str
        The model's sizes.
    steps : int
        The training's total_steps; its other settings are those of config/pretrain.json.
    work : str
        Where everything is made.
    """
    folder = Path(work)
    folder.mkdir(exist_ok=True)
    cfg = json.loads(Path("config/pretrain.json").read_text()) | {"total_steps": steps}
    utils.write_json(folder / "pretrain.json", cfg | {"n_epochs": steps})
    binaries = ["--path", path, "--biname", biname]
    made = ["--data", f"{work}/data", "--outputDir", f"{work}/output"]
    text = ["--vocab_file", f"{work}/vocab.txt", "--corpus_file", f"{work}/corpus.txt"]
    settings = ["--train_cfg", f"{work}/pretrain.json", "--model_cfg", model_cfg]
    inputs = ["--data_file", f"{work}/corpus.txt", "--vocab", f"{work}/vocab.txt"]
    for arguments in (
        ["gendata.py", *binaries, *made],
        ["dataprocess.py", *made, *text],
        ["pretrain.py", *settings, *inputs, "--save_dir", f"{work}/out"],
    ):
        subprocess.run([sys.executable, *arguments], check=True)
    model_file = folder / "out" / f"model_steps_{steps}.pt"

    model, info, tokenizer = checkpoint.load_pretrained(model_file)
    corpus = read_corpus(Path(info.data_file), tokenizer, info.vocab_sha256)
    split = split_corpus(corpus)
    preprocess = pretrain.Preprocess4Pretrain(
        tokenizer.vocab, info.max_len, info.max_pred, info.mask_prob
    )
    evaluation = pretrain.Evaluation(corpus, split.heldout, preprocess, torch.device("cpu"))
    batches = [
        evaluation.loader.batch(k)
        for k in range(min(pretrain.EVAL_BATCHES, len(evaluation.loader)))
    ]

    measures = evaluation(model)
    five_gram = evaluation.five_gram(split.training)
    sampler = pretrain.SentPairSampler(corpus, split.training, info.max_len)
    loader = pretrain.SentPairDataLoader(sampler, preprocess, 0, pretrain.EVAL_EXAMPLES, seed=1)
    by_bags, by_bags_hard = bag_accuracy(loader, batches, len(tokenizer.vocab))

    print(
        f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}, "
        f"torch {torch.__version__}, {model_file}"
    )
    print(f"held out {split.rule}; {len(batches) * pretrain.EVAL_EXAMPLES:,} pairs of segments")
    print("masked LM, accuracy")
    print(f"  commonest token                  {measures['commonest_token']:7.1%}")
    print(f"  5-gram with backoff              {five_gram:7.1%}")
    print(f"  this model                       {measures['masked_lm_accuracy']:7.1%}")
    print("masked LM, nats")
    print(f"  unigram entropy                  {measures['unigram_entropy']:7.3f}")
    print(f"  this model                       {measures['masked_lm_loss']:7.3f}")
    print("next sentence, accuracy                 all    hard")
    print(f"  lengths and bags of tokens       {by_bags:7.1%} {by_bags_hard:7.1%}")
    print(
        f"  this model                       {measures['next_accuracy']:7.1%} "
        f"{measures['next_accuracy_hard']:7.1%}"
    )


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
