"""Which part of samefunc is words, which is context, and which is pre-training?

    python bench/matches.py --work out-samefunc    # what bench/samefunc.py has made there

Logistic regression on TF-IDF, alone and beside *matches*: how like each token of a function is the
one most like it in the other function. A token is its word, or its word and BERT's hidden state,
from random weights or from pre-training. Nothing is trained but the regression, from few or many
labelled pairs, so that what differs between rows is what a token is.
"""

import copy
import datetime
import os
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from bags import Bags, read
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from tqdm import tqdm

import checkpoint
import classify
import models
import utils
from compare import ComparisonData

WINDOWS = 6  # of a function
SHARPNESS = 20.0  # times a cosine, for matches of which none is used twice
STATES = (1.0, 0.5, 0.0)  # share of the hidden states in a similarity; the rest is the word
# Both by cross-validation on the training pairs, over names.
REGULARISATION = 0.3  # scikit-learn's C
SCALE = 0.3  # of matches, beside features of words of at most 1


def main(
    work: str = "out-samefunc",
    pretrain_file: str | None = None,
    max_len: int = 64,
    pairs: str | list[int] = (500, 2000, 8000),
    tests: int = 4000,
    seeds: int = 3,
    threads: int | None = None,
) -> None:
    """Print accuracies and AUCs on cp and sort.

    Args:
        work: Where bench/samefunc.py has made pairs and models.
        pretrain_file: The model; left out, bench/samefunc.py's last one of short texts.
        max_len: Tokens of a window, as in pre-training.
        pairs: How many labelled pairs are learned from; the most are the same with each seed.
        tests: Pairs of cp and of sort that are measured, at most.
        seeds: How often pairs, and random weights, are drawn.
        threads: Of PyTorch.
    """
    if threads:
        torch.set_num_threads(threads)
    folder = Path(work)
    if pretrain_file is None:
        files = (folder / "short").glob("model_steps_*.pt")
        pretrain_file = str(max(files, key=lambda file: int(file.stem.rsplit("_", 1)[1])))
    model, info, tokenizer = checkpoint.load_pretrained(pretrain_file)
    sets = {s: read(folder / "pairs" / f"{s}.tsv") for s in ("train", "dev", "test")}
    sizes = {"train": max(pairs), "dev": tests, "test": tests}
    sets = {split: first(examples, sizes[split]) for split, examples in sets.items()}
    bags = Bags("TF-IDF", sets["train"])
    words = {split: bags.features(examples) for split, examples in sets.items()}
    data = {
        split: ComparisonData(
            zip(some.text_a, some.text_b, strict=True), some.label, tokenizer, max_len, WINDOWS
        )
        for split, some in sets.items()
    }
    rows = {"TF-IDF": [None], "and matches of words": [match(data, None)]}
    untrained = []
    for seed in range(seeds):
        utils.set_seed(seed)
        untrained.append(match(data, models.Transformer(info.model)))
    rows["and matches of random BERT's states"] = untrained
    rows["and matches of pre-trained BERT's states"] = [match(data, model.transformer)]
    print(f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}; {pretrain_file}")
    print("labelled pairs; accuracy and ROC AUC on dev, accuracy and ROC AUC on test")
    for n in pairs:
        for name, matches in rows.items():
            runs = [
                run(n, seed, words, matches[seed % len(matches)], sets) for seed in range(seeds)
            ]
            cells = [f"{np.mean(x):6.1f} ±{np.std(x, ddof=1):.1f}" for x in zip(*runs, strict=True)]
            print(f"{n:6,} {name:42} {'  '.join(cells)}", flush=True)


def first(examples: classify.Examples, n: int) -> classify.Examples:
    return classify.Examples(examples.text_a[:n], examples.text_b[:n], examples.label[:n])


def match(
    data: dict[str, ComparisonData], transformer: models.Transformer | None
) -> dict[str, np.ndarray]:
    """Return each split's features, float32 (N, features); without BERT, of words alone.

    Hidden states are whitened by the training texts' mean and covariance: a few large directions,
    which all tokens share, would hide the others.
    """
    data = {split: copy.copy(some) for split, some in data.items()}  # keep no hidden states
    whiten = None
    if transformer is not None:
        for some in data.values():
            some.encode(transformer.eval(), "float32")
        whiten = whitening(data["train"].hidden)
    known = data["train"]
    seen = np.zeros(int(max(text.max(initial=0) for d in data.values() for text in d.texts)) + 1)
    for text in known.texts:
        seen[np.unique(text)] += 1
    idf = torch.from_numpy(np.log((1 + len(known.texts)) / (1 + seen)) + 1).float()
    weights = torch.stack([torch.ones_like(idf), idf, idf**2], 1)  # (V, 3)
    found = {}
    for split, some in data.items():
        texts = [torch.from_numpy(text) for text in some.texts]
        states = [None if whiten is None else whiten(h) for h in some.hidden or texts]
        found[split] = np.stack(
            [
                features(texts[i], texts[j], states[i], states[j], weights)
                for i, j in tqdm(some.rows, split, disable=None)
            ]
        )
    return found


def whitening(hidden: list[np.ndarray]):
    """Return the function that makes hidden states (T, D) whitened ones of length 1."""
    x = np.concatenate(hidden).astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(x.T))
    matrix = torch.from_numpy(vectors / np.sqrt(values + 0.01 * values.mean())).float()
    mean = torch.from_numpy(x.mean(0)).float()
    return lambda h: F.normalize((torch.from_numpy(h).float() - mean) @ matrix, dim=-1)


@torch.inference_mode()
def features(
    a: Tensor, b: Tensor, states_a: Tensor | None, states_b: Tensor | None, weights: Tensor
) -> np.ndarray:
    """Return a pair's features.

    Parameters
    ----------
    a, b : int64 (T,)
        Tokens.
    states_a, states_b : float32 (T, D), or None
    weights : float32 (V, K)
        Of tokens, several ways.

    Returns
    -------
    float32 (features,)
        For each similarity and way to weigh: best matches, one-to-one matches, averaged over a
        text's tokens; of both texts the sum and the smaller.
    """
    same = (a[:, None] == b[None, :]).float()
    shares = [weights[text] / weights[text].sum(0) for text in (a, b)]  # (T, K)
    found = []
    for state in (0.0,) if states_a is None else STATES:
        similarity = (1 - state) * same + (state * states_a @ states_b.T if state else 0)
        for matches in (
            (similarity.amax(1), similarity.amax(0)),
            one_to_one(similarity * SHARPNESS),
        ):
            x, y = (m @ share for m, share in zip(matches, shares, strict=True))
            found += [x + y, torch.minimum(x, y)]
    return torch.cat(found).numpy()


def one_to_one(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return `compare.one_to_one_matches` of a single pair without padding, as it is quicker."""
    pairs = torch.minimum(logits.softmax(1), logits.softmax(0))
    return pairs.sum(1), pairs.sum(0)


def run(
    n: int,
    seed: int,
    words: dict[str, scipy.sparse.csr_matrix],
    matches: dict[str, np.ndarray] | None,
    sets: dict[str, classify.Examples],
) -> list[float]:
    """Learn from ``n`` pairs; return accuracy and AUC (%) on dev and on test."""
    label = sets["train"].label
    some = np.random.default_rng(seed).permutation(len(label))[:n]
    x = words
    if matches is not None:
        scaler = StandardScaler().fit(matches["train"][some])
        x = {
            split: scipy.sparse.hstack([words[split], SCALE * scaler.transform(m)]).tocsr()
            for split, m in matches.items()
        }
    model = LogisticRegression(C=REGULARISATION, max_iter=1000).fit(x["train"][some], label[some])
    found = []
    for split in ("dev", "test"):
        measures = classify.measure(model.predict_proba(x[split]), sets[split].label)
        found += [100 * measures["accuracy"], 100 * measures["roc_auc"]]
    return found


if __name__ == "__main__":
    utils.command_line(main)
