"""A 5-gram model with backoff, which predicts masked tokens from their left neighbours."""

from collections.abc import Sequence

import numpy as np

from corpus.ids import Corpus

N = 5
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
Batch = dict[str, np.ndarray]


def five_gram_accuracy(
    corpus: Corpus, training: np.ndarray, batches: Sequence[Batch], is_special: np.ndarray
) -> float:
    """Return the accuracy of a 5-gram model with backoff on the masked tokens of batches.

    It predicts the token that most often followed the longest known context in the ``training``
    documents. The context are up to four true tokens to the left.

    Parameters
    ----------
    corpus : Corpus
    training : bool (documents,)
    batches : sequence of dict
        Each has the columns of `pretrain.Preprocess4Pretrain` and `pretrain.MaskedTokens`.
    is_special : bool (V,)
        Tokens that end a context, such as [CLS] and [SEP].
    """
    bounds = corpus.bounds
    inside = np.repeat(training, np.diff(bounds))
    place = np.arange(len(corpus.tokens)) - np.repeat(bounds[:-1], np.diff(bounds))
    tokens = np.asarray(corpus.tokens, np.uint64)

    queries = [left_contexts(batch, is_special) for batch in batches]
    context = np.concatenate([q[0] for q in queries])  # (Q, N - 1), nearest token first
    width = np.concatenate([q[1] for q in queries])  # how many of them there are
    true = np.concatenate([q[2] for q in queries])
    guess = np.full(len(true), np.bincount(corpus.tokens[inside]).argmax())
    for n in range(1, N):
        end = np.flatnonzero(inside & (place >= n))
        left = hash_of([tokens[end - i] for i in range(1, n + 1)])
        known, following = most_frequent(left, tokens[end])
        if not len(known):  # no document is that long
            break
        query = hash_of([context[:, i] for i in range(n)])
        at = np.minimum(np.searchsorted(known, query), len(known) - 1)
        found = (width >= n) & (known[at] == query)
        guess[found] = following[at[found]]
    return float((guess == true).mean()) if len(true) else float("nan")


def left_contexts(
    batch: Batch, is_special: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the N - 1 true tokens left of each masked one, how many are real, and the true one."""
    ids, chosen = batch["input_ids"].copy(), batch["masked_weights"] > 0
    row = np.nonzero(chosen)[0]
    column, true = batch["masked_pos"][chosen], batch["masked_ids"][chosen]
    ids[row, column] = true
    segment = batch["segment_ids"]
    context, width, alive = [], np.zeros(len(row), np.int64), np.ones(len(row), bool)
    for i in range(1, N):
        left = np.maximum(column - i, 0)
        # Contexts end at the segment's border, at [CLS] or [SEP].
        alive = alive & ~is_special[ids[row, left]] & (segment[row, left] == segment[row, column])
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
