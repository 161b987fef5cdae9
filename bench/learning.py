"""Does pre-training learn? A saved model beside simple models of the same text.

    python bench/learning.py --model_file out/model_steps_2000.pt

All are trained on the training documents of the corpus and measured on the very same held-out
examples. Masked LM: always the commonest token; a 5-gram model with backoff, which sees the four
true tokens to the left. Next sentence: logistic regression on the lengths and bags of tokens of
both segments and on what the bags share.
"""

import datetime
import platform
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
from corpus import Corpus, read_corpus, split_corpus

N = 5
TRAINING_BATCHES = 1000  # of 64 pairs, for the logistic regression
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def main(model_file: str, data_file: str | None = None) -> None:
    """Print the table.

    Args:
        model_file: A model_steps_<k>.pt of pretrain.py, with model.json and vocab.txt beside it.
        data_file: The corpus that it was trained on; left out, the one that model.json names.
    """
    model, info, tokenizer = checkpoint.load_pretrained(model_file)
    corpus = read_corpus(Path(data_file or info.data_file), tokenizer, info.vocab_sha256)
    if corpus.sha256 != info.corpus_sha256:
        raise utils.UserError(f"{model_file} was trained on another corpus than {data_file}")
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
    five_gram = n_gram_accuracy(corpus, split.training, batches)
    sampler = pretrain.SentPairSampler(corpus, split.training, info.max_len)
    loader = pretrain.SentPairDataLoader(sampler, preprocess, 0, pretrain.EVAL_EXAMPLES, seed=1)
    bags, bags_hard = bag_accuracy(loader, batches, len(tokenizer.vocab))

    print(f"{datetime.date.today()}, {platform.machine()}, torch {torch.__version__}, {model_file}")
    print(f"held out {split.rule}; {len(batches) * pretrain.EVAL_EXAMPLES:,} pairs of segments")
    print("masked LM, accuracy")
    print(f"  commonest token                  {measures['commonest_token']:7.1%}")
    print(f"  5-gram with backoff              {five_gram:7.1%}")
    print(f"  this model                       {measures['masked_lm_accuracy']:7.1%}")
    print("masked LM, nats")
    print(f"  unigram entropy                  {measures['unigram_entropy']:7.3f}")
    print(f"  this model                       {measures['masked_lm_loss']:7.3f}")
    print("next sentence, accuracy                 all    hard")
    print(f"  lengths and bags of tokens       {bags:7.1%} {bags_hard:7.1%}")
    print(
        f"  this model                       {measures['next_accuracy']:7.1%} "
        f"{measures['next_accuracy_hard']:7.1%}"
    )


def n_gram_accuracy(corpus: Corpus, training: np.ndarray, batches: list[dict]) -> float:
    """Return how often an n-gram model with backoff guesses the masked tokens.

    It says the token that most often followed the longest known context of at most N - 1 tokens.
    """
    bounds = corpus.bounds
    inside = np.repeat(training, np.diff(bounds))
    place = np.arange(len(corpus.tokens)) - np.repeat(bounds[:-1], np.diff(bounds))
    tokens = np.asarray(corpus.tokens, np.uint64)

    queries = [left_contexts(batch) for batch in batches]
    context = np.concatenate([q[0] for q in queries])  # (Q, N - 1), nearest token first
    width = np.concatenate([q[1] for q in queries])  # how many of them there are
    true = np.concatenate([q[2] for q in queries])
    guess = np.full(len(true), np.bincount(corpus.tokens[inside]).argmax())
    for n in range(1, N):
        end = np.flatnonzero(inside & (place >= n))
        left = hash_of([tokens[end - i] for i in range(1, n + 1)])
        known, following = most_frequent(left, tokens[end])
        query = hash_of([context[:, i] for i in range(n)])
        at = np.minimum(np.searchsorted(known, query), len(known) - 1)
        found = (width >= n) & (known[at] == query)
        guess[found] = following[at[found]]
    return float((guess == true).mean())


def left_contexts(batch: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the N - 1 true tokens left of each masked one, how many are real, and the true one."""
    ids, chosen = batch["input_ids"].copy(), batch["masked_weights"] > 0
    row = np.nonzero(chosen)[0]
    column, true = batch["masked_pos"][chosen], batch["masked_ids"][chosen]
    ids[row, column] = true
    segment = batch["segment_ids"]
    context, width, alive = [], np.zeros(len(row), np.int64), np.ones(len(row), bool)
    for i in range(1, N):
        left = np.maximum(column - i, 0)
        # not beyond the segment: [CLS] and [SEP] stand there
        alive = alive & (ids[row, left] >= 5) & (segment[row, left] == segment[row, column])
        context.append(ids[row, left])
        width += alive
    return np.stack(context, 1).astype(np.uint64), width, true


def hash_of(columns: list[np.ndarray]) -> np.ndarray:
    """Return a 64-bit hash of each row."""
    value = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        value = (value + column + np.uint64(1)) * MULTIPLIER
        value ^= value >> np.uint64(29)
    return value


def most_frequent(context: np.ndarray, following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct contexts, sorted, and the token that most often followed each."""
    both = hash_of([context, following])
    _, index, count = np.unique(both, return_index=True, return_counts=True)
    context, following = context[index], following[index]
    order = np.lexsort((following, -count, context))
    first = np.unique(context[order], return_index=True)[1]
    return context[order][first], following[order][first].astype(np.int64)


def bag_accuracy(loader, batches: list[dict], vocab_size: int) -> tuple[float, float]:
    """Return next-sentence accuracies, all and against hard negatives, of logistic regression."""
    model = make_pipeline(
        MaxAbsScaler(), SGDClassifier("log_loss", alpha=1e-5, max_iter=50, random_state=0)
    )
    training = [loader.batch(k) for k in range(TRAINING_BATCHES)]
    model.fit(
        scipy.sparse.vstack([bags(batch, vocab_size) for batch in training]),
        np.concatenate([batch["is_next"] for batch in training]),
    )
    guess = np.concatenate([model.predict(bags(batch, vocab_size)) for batch in batches])
    is_next = np.concatenate([batch["is_next"] for batch in batches])
    is_hard = np.concatenate([batch["is_hard"] for batch in batches])
    right = guess == is_next
    return right.mean(), (right[is_next == 1].mean() + right[is_hard].mean()) / 2


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
    utils.command_line(main)
