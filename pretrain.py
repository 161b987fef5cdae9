"""Pre-train BERT: sample pairs of segments, mask tokens, train, evaluate, predict.

Every batch is a function only of (seed, step): nothing has to be shuffled, stored or sent between
processes, and the batch of any step can be drawn again.
"""

if __name__ == "__main__":
    from terminal.early import answer

    answer(__file__)  # --help and messages about wrong flags need not wait for the imports below

import dataclasses
import functools
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pydantic
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

import checkpoint
import models
import train
import utils
from corpus.ids import Corpus, read_corpus
from corpus.ngram import five_gram_accuracy
from corpus.split import split_corpus, split_test
from models import BertModel4Pretrain
from optim import Schedule, optim4GPU
from tasks.objectives import OBJECTIVES, NextSentence, Objective, Text
from terminal.command_line import command_line
from tokenization import CorpusTokenizer
from utils import UsageError, UserError

EVAL_SEED = 0  # seed of evaluation batches, which are the same for every model
EVAL_EXAMPLES = 64  # per batch
EVAL_BATCHES = 64  # maximum number
BUCKET = 64  # minimum number of boundaries in a bucket, see SentPairSampler
CANDIDATES = 4  # drawn per negative, to find one that differs from the true continuation
COMPARED = 16  # tokens compared to tell a negative from the true continuation

Share = Annotated[float, Field(gt=0, lt=1)]
Length = Annotated[int, Field(ge=5)]


class SentPairSampler:
    """Draw pairs of segments A and B, where B follows A in the text or is from another document.

    A *boundary* is the start of a sentence that is not the first of its document. A ends at a
    boundary and B starts at one: at the same one for a true continuation, or at one of another
    document. Together they have ``max_len - 3`` tokens, split at random; if a document ends too
    early, the other side gets more.

    Only the text may tell whether B follows A. So boundaries with about the same number of tokens
    after them form a bucket, and are cut to the same number (all that have enough tokens are one
    bucket). The B of a negative comes from the bucket of the true one. So lengths, the place of B
    in its document and the text cut off after it have the same distribution for both.

    Parameters
    ----------
    corpus : Corpus
    chosen : bool (documents,)
        The documents to draw from; at least two of them must have boundaries.
    max_len : int
        Maximum length of a pair, including its three special tokens.
    """

    def __init__(self, corpus: Corpus, chosen: np.ndarray, max_len: int) -> None:
        self.corpus = corpus
        self.budget = max_len - 3
        first = corpus.documents[:-1]
        document = np.repeat(np.arange(len(first)), np.diff(corpus.documents))  # of each sentence
        inner = chosen[document]
        inner[first] = False
        document, start = document[inner], corpus.sentences[:-1][inner]
        bounds = corpus.bounds
        after = np.minimum(bounds[document + 1] - start, self.budget)
        before = np.minimum(start - bounds[document], self.budget)
        bucket, after = _buckets(after, document)
        part = np.empty_like(bucket)
        for number in range(bucket.max() + 1):
            rows = bucket == number
            part[rows], _ = _buckets(before[rows], document[rows])
        bucket = np.unique(bucket * len(bucket) + part, return_inverse=True)[1]
        order = np.lexsort((document, bucket))
        self.document, self.start = document[order], start[order]
        self.before = before[order]
        self.after = after[order]
        self.bucket = bucket[order]
        # Sorted by bucket and document, so that the boundaries of a bucket in one document, or in
        # one pair (whose documents are consecutive), are one range.
        self.n_documents = len(first)
        self.key = self.bucket * self.n_documents + self.document
        self.pair = np.searchsorted(corpus.pairs, self.document, side="right") - 1

    def __len__(self) -> int:
        return len(self.start)

    def draw(
        self, n: int, rng: np.random.Generator, true_share: float = 0.5
    ) -> dict[str, np.ndarray]:
        """Draw ``n`` pairs; ``true_share`` of them are true continuations.

        Returns
        -------
        dict of (n,) arrays
            ``a_start``, ``a_len``, ``b_start``, ``b_len`` : int64, ranges of ``corpus.tokens``.
            ``is_next`` : int64, 1 for a true continuation, else 0.
            ``is_hard`` : bool, B is from another document of the same pair of binaries.
        """
        i = rng.integers(len(self), size=n)
        a, b = self._lengths(i, rng)
        is_next = rng.random(n) < true_share
        j = np.where(is_next, i, self._others(i, rng.random(n) < 0.5, b, rng))
        return {
            "a_start": self.start[i] - a,
            "a_len": a,
            "b_start": self.start[j],
            "b_len": b,
            "is_next": is_next.astype(np.int64),
            "is_hard": ~is_next & (self.pair[i] == self.pair[j]),
        }

    def _lengths(self, i: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        before, after = self.before[i], self.after[i]
        wish = rng.integers(1, self.budget, size=len(i))
        a = np.minimum(wish, before)
        b = np.minimum(self.budget - a, after)
        return np.minimum(self.budget - b, before), b

    def _others(
        self, i: np.ndarray, hard: np.ndarray, b: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Draw boundaries of other documents from the buckets of ``i``, of the same pair if hard.

        If the pair has no other document in the bucket, any boundary of the bucket is possible. The
        first of a few candidates is used that differs from the true continuation.
        """
        base = self.bucket[i] * self.n_documents
        own = np.searchsorted(self.key, [self.key[i], self.key[i] + 1])  # (2, n) from, to
        pair = np.searchsorted(self.key, base + self.corpus.pairs[[self.pair[i], self.pair[i] + 1]])
        whole = np.searchsorted(self.key, [base, base + self.n_documents])
        own_size = own[1] - own[0]
        alone = pair[1] - pair[0] == own_size
        low, high = np.where(hard & ~alone, pair, whole)
        room = high - low - own_size  # above 0, because a bucket has at least two documents
        found = low + (rng.random((CANDIDATES, len(i))) * room).astype(np.int64)  # (C, n)
        found += np.where(found >= own[0], own_size, 0)
        offset = np.arange(COMPARED)
        compared = offset < b[:, None]  # (n, T)
        last = len(self.corpus.tokens) - 1
        there = self.corpus.tokens[np.minimum(self.start[found][..., None] + offset, last)]
        true = self.corpus.tokens[np.minimum(self.start[i][:, None] + offset, last)]
        differs = ((there != true) & compared).any(2)  # (C, n)
        return found[differs.argmax(0), np.arange(len(i))]


def _buckets(after: np.ndarray, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Assign boundaries to buckets, and cut ``after`` to the minimum of each bucket.

    From the largest ``after`` down, a bucket is closed when it contains two documents and `BUCKET`
    boundaries; the remaining ones at the end join the last bucket.
    """
    order = np.argsort(-after, kind="stable")
    _, first = np.unique(-after[order], return_index=True)
    ends = [*first[1:].tolist(), len(order)]
    starts = [0]
    for end in ends[:-1]:
        inside = document[order[starts[-1] : end]]
        if len(inside) >= BUCKET and inside.min() != inside.max():
            starts.append(end)
    rest = document[order[starts[-1] :]]
    if len(starts) > 1 and (len(rest) < BUCKET or rest.min() == rest.max()):
        starts.pop()
    number = np.zeros(len(order), np.int64)
    number[starts[1:]] = 1
    bucket = np.empty_like(number)
    bucket[order] = number.cumsum()
    least = np.minimum.reduceat(after[order], starts)
    return bucket, least[bucket]


class Preprocess4Pretrain:
    """Turn pairs of segments into [CLS] A [SEP] B [SEP], with the columns of the objectives.

    Parameters
    ----------
    vocab : dict of str to int
    max_len, max_pred : int
        Length of every sequence, and maximum number of masked tokens in one.
    mask_prob : float
        Share of the tokens of A and B to predict; at least one token is.
    objectives : list of type of Objective
    """

    def __init__(
        self,
        vocab: dict[str, int],
        max_len: int,
        max_pred: int,
        mask_prob: float,
        objectives: Sequence[type[Objective]] | None = None,
    ) -> None:
        self.max_len, self.max_pred, self.mask_prob = max_len, max_pred, mask_prob
        self.objectives = BERTS if objectives is None else objectives
        names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        self.pad, _, self.cls, self.sep, self.mask = special = [vocab[name] for name in names]
        self.is_special = np.zeros(len(vocab), bool)
        self.is_special[special] = True
        self.ordinary = np.flatnonzero(~self.is_special)

    @property
    def width(self) -> int:
        """Maximum number of masked tokens per example."""
        return min(self.max_pred, self.max_len)

    def __call__(
        self,
        corpus: Corpus,
        pairs: dict[str, np.ndarray],
        key: list[int],
        rows: slice,
    ) -> train.Batch:
        """Read some rows of a batch of B pairs from the corpus.

        Parameters
        ----------
        corpus : Corpus
        pairs : dict of (B,) arrays
            From `SentPairSampler.draw`.
        key : list of int
            Seed of the batch. Random choices for a row depend only on this and the row, so that
            processes that share a batch read only their own rows.
        rows : slice
            Selects N of the B rows.

        Returns
        -------
        dict of arrays
            ``input_ids``, ``segment_ids`` : int64 (N, S). ``input_mask`` : int64 (N, S), 1 for
            tokens and 0 for padding; left out if nothing is padded. And the objectives' columns.
        """
        some = {name: array[rows] for name, array in pairs.items()}
        a, b = some["a_len"][:, None], some["b_len"][:, None]
        at = np.arange(self.max_len)[None, :]
        in_a, in_b = (at >= 1) & (at <= a), (at >= a + 2) & (at <= a + b + 1)
        inside = in_a | in_b
        where = np.where(in_a, some["a_start"][:, None] + at - 1, 0)
        where = np.where(in_b, some["b_start"][:, None] + at - a - 2, where)
        ids = corpus.tokens[where].astype(np.int64)
        ids[~inside] = self.pad
        ids[:, 0] = self.cls
        ids[(at == a + 1) | (at == a + b + 2)] = self.sep
        text = Text(
            ids=ids,
            segment_ids=((at >= a + 2) & (at <= a + b + 2)).astype(np.int64),
            inside=inside,
            starts=None if corpus.starts is None else corpus.starts[where].astype(bool) & inside,
            pairs=some,
            lengths=pairs["a_len"] + pairs["b_len"],
            key=key,
            rows=rows,
        )
        batch = {"input_ids": ids, "segment_ids": text.segment_ids}
        for objective in self.objectives:
            batch |= objective.columns(text, self)
        if (a + b + 3 < self.max_len).any():
            batch["input_mask"] = (at < a + b + 3).astype(np.int64)
        return batch


class MaskedTokens(Objective):
    """BERT's masked language model: predict the tokens at random positions.

    80 % of the chosen tokens become [MASK], 10 % a random token, and 10 % stay. Special tokens are
    never chosen and never drawn. Columns: ``masked_pos``, ``masked_ids`` : int64 (N, P), positions
    and true tokens, 0 if there are fewer than P. ``masked_weights`` : float32 (N, P), 1 / (tokens
    to mask in the whole batch), or 0.
    """

    key, name = "masked_lm", "masked_lm"
    everywhere = False

    @classmethod
    def columns(cls, text: Text, how: Preprocess4Pretrain) -> train.Batch:
        n_pred = np.maximum(np.rint(text.lengths * how.mask_prob).astype(np.int64), 1)
        n_pred = np.minimum(n_pred, np.minimum(text.lengths, how.max_pred))  # (B,)
        may = text.inside & ~how.is_special[text.ids]
        order, chance, which = np.split(
            text.draws(how.max_len + 2 * how.width), [how.max_len, how.max_len + how.width], axis=1
        )
        order = cls.order(text, order)
        # Mask fewer tokens if there are not enough.
        count = np.minimum(n_pred[text.rows], may.sum(1))[:, None]  # (N, 1)
        rank = np.argsort(np.where(may, order, 2.0), axis=1)[:, : how.width]
        chosen = np.arange(how.width) < count  # (N, P)
        position = np.where(chosen, rank, 0)
        true = np.where(chosen, np.take_along_axis(text.ids, position, 1), 0)

        drawn = how.ordinary[(which * len(how.ordinary)).astype(np.int64)]
        new = np.where(chance < 0.8, how.mask, np.where(chance < 0.9, drawn, true))
        ids = text.ids.copy()
        row, column = np.nonzero(chosen)
        ids[row, position[row, column]] = new[row, column]
        return {
            "input_ids": ids,
            "masked_pos": position,
            "masked_ids": true,
            "masked_weights": chosen.astype(np.float32) / np.float32(max(1, n_pred.sum())),
        }

    @staticmethod
    def order(text: Text, draws: np.ndarray) -> np.ndarray:
        """Return numbers in [0, 1), (N, S); the tokens with the lowest numbers are masked."""
        return draws

    @staticmethod
    def loss(model: BertModel4Pretrain, h: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the cross-entropy per masked token (nats)."""
        logits = model.score_tokens(h, batch["masked_pos"]).float().flatten(0, 1)
        loss = F.cross_entropy(logits, batch["masked_ids"].flatten(), reduction="none")
        return (loss * batch["masked_weights"].flatten()).sum()

    @classmethod
    def sums(
        cls, model: BertModel4Pretrain, h: Tensor, batch: dict[str, Tensor]
    ) -> list[Tensor | int]:
        masked = batch["masked_weights"] > 0  # (N, P)
        logits = model.score_tokens(h, batch["masked_pos"])[masked]
        true = batch["masked_ids"][masked]
        loss = F.cross_entropy(logits, true, reduction="sum")
        return [loss, (logits.argmax(1) == true).sum(), masked.sum()]

    @classmethod
    def measures(cls, sums: list[float]) -> dict[str, float]:
        """Return ``masked_lm_loss`` (nats per masked token) and ``masked_lm_accuracy``."""
        loss, right, n = sums
        return {"masked_lm_loss": loss / max(n, 1), "masked_lm_accuracy": right / max(n, 1)}


class MaskedInstructions(MaskedTokens):
    """Mask whole instructions, because the rest of an instruction gives away a single token.

    The last chosen instruction may be masked in part, so that the number of tokens is the same.
    """

    key = "masked_instructions"

    @staticmethod
    def order(text: Text, draws: np.ndarray) -> np.ndarray:
        if text.starts is None:
            raise UserError(
                "'masked_instructions' needs a corpus with tabs between instructions; make it "
                "again: python dataprocess.py"
            )
        # All tokens of an instruction get the number of its first one, then go from left to right.
        starts = text.starts | ~text.inside
        first = np.maximum.accumulate(np.where(starts, np.arange(starts.shape[1]), 0), axis=1)
        place = np.arange(starts.shape[1]) - first
        return np.take_along_axis(draws, first, 1) + place * 1e-12


BERTS = (MaskedTokens, NextSentence)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=utils.STRICT)
class Config(train.Config):
    """Settings of pre-training: those of `train.Config`, and optional ones.

    Attributes
    ----------
    objectives : dict of str to float
        Weights of `OBJECTIVES` in the loss. Default: BERT's two, with 1 each. Without next
        sentence, B always follows A in the training.
    schedule : str
        Schedule of the learning rate, see `optim.SCHEDULES`.
    long_share : float
        Share of the steps, at the end, whose examples have the model's max_len; their batches have
        as many tokens as the others.
    """

    objectives: dict[str, pydantic.NonNegativeFloat] = dataclasses.field(
        default_factory=lambda: {objective.key: 1.0 for objective in BERTS}
    )
    schedule: Schedule = "warmup_linear"
    long_share: Annotated[float, Field(ge=0, le=1)] = 0.0

    @pydantic.model_validator(mode="after")
    def _objectives_fit(self) -> "Config":
        used = {objective.name for objective in self.used()}
        if self.objectives.keys() - OBJECTIVES.keys() or not used:
            raise ValueError(
                f"'objectives' must give weights above 0 to some of {', '.join(OBJECTIVES)}"
            )
        if len(used) < len(self.used()):
            raise ValueError("'objectives': one way of masking at a time; give the other one 0")
        return self

    def used(self) -> list[type[Objective]]:
        """Return the objectives with a weight, in the order of the settings."""
        return [
            OBJECTIVES[k] for k, weight in self.objectives.items() if weight and k in OBJECTIVES
        ]


class SentPairDataLoader:
    """Batches for pre-training; ``loader.batch(k)`` is a function of the seed and k.

    An epoch has as many tokens as the chosen documents. Boundaries are drawn uniformly and with
    replacement.

    Parameters
    ----------
    sampler : SentPairSampler
    preprocess : Preprocess4Pretrain
    n_tokens : int
        Number of tokens per epoch.
    batch_size, seed : int
    true_share : float
        Share of the pairs whose B follows A.
    """

    def __init__(
        self,
        sampler: SentPairSampler,
        preprocess: Preprocess4Pretrain,
        n_tokens: int,
        batch_size: int,
        seed: int,
        true_share: float = 0.5,
    ) -> None:
        self.sampler, self.preprocess = sampler, preprocess
        self.n_tokens, self.batch_size, self.seed = n_tokens, batch_size, seed
        self.true_share = true_share

    def __len__(self) -> int:
        return max(1, -(-self.n_tokens // (self.batch_size * self.sampler.budget)))

    def __iter__(self) -> Iterator[train.Batch]:
        return map(self.batch, range(len(self)))

    def batch(self, k: int, rank: int = 0, world: int = 1) -> train.Batch:
        """Return the k-th batch, or one process's share of its rows; k may pass the epoch's end.

        For the arrays, see `Preprocess4Pretrain`. Only the text of these rows is read.
        """
        pairs = self.sampler.draw(
            self.batch_size, np.random.default_rng([self.seed, k]), self.true_share
        )
        rows = train.share(self.batch_size, rank, world)
        return self.preprocess(self.sampler.corpus, pairs, [self.seed, k, 1], rows)


def get_losses(
    model: nn.Module,
    batch: dict[str, Tensor],
    objectives: Sequence[type[Objective]] = BERTS,
) -> train.Losses:
    """Return the loss of each objective (nats), for `train.Trainer`."""
    h, batch = encode(model, batch, objectives)
    return {f"{o.name}_loss": o.loss(model, h, batch) for o in objectives}


def encode(
    model: nn.Module, batch: dict[str, Tensor], objectives: Sequence[type[Objective]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the hidden states that ``objectives`` read, and a batch with matching positions.

    If they read only the positions of [CLS] and of masked tokens, the last block of the model does
    not compute the others, and ``masked_pos`` becomes 1, 2, ...
    """
    inputs = batch["input_ids"], batch["segment_ids"], batch.get("input_mask")
    if "masked_pos" not in batch or any(objective.everywhere for objective in objectives):
        return model.transformer(*inputs), batch
    at = F.pad(batch["masked_pos"], (1, 0))
    place = torch.arange(1, at.size(1), device=at.device).expand_as(batch["masked_pos"])
    return model.transformer(*inputs, at), batch | {"masked_pos": place}


class Evaluation:
    """Measures of a model on held-out documents: the same batches for every model.

    Parameters
    ----------
    corpus : Corpus
    heldout : bool (documents,)
    preprocess : Preprocess4Pretrain
    device : torch.device
        The model's device.
    """

    def __init__(
        self,
        corpus: Corpus,
        heldout: np.ndarray,
        preprocess: Preprocess4Pretrain,
        device: torch.device,
    ) -> None:
        counts = corpus.count_tokens(heldout, len(preprocess.is_special))
        share = counts[counts > 0] / counts.sum()
        self.unigram_entropy = float(-(share * np.log(share)).sum())
        self.commonest = float(share.max())
        sampler = SentPairSampler(corpus, heldout, preprocess.max_len)
        n_tokens = int(counts.sum())
        self.loader = SentPairDataLoader(sampler, preprocess, n_tokens, EVAL_EXAMPLES, EVAL_SEED)
        self.device = device

    @torch.inference_mode()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Evaluate ``model``, which is in evaluation mode.

        Returns
        -------
        dict of str to float
            The objectives' measures; for comparison, ``unigram_entropy`` of the held-out text
            (nats), and ``commonest_token``, the accuracy of always predicting its commonest token;
            and ``max_len``, the tokens per example.
        """
        objectives = self.loader.preprocess.objectives
        rows: list[list[Tensor]] = [[] for _ in objectives]
        for k in range(self.batches):
            arrays = self.loader.batch(k)
            batch = {name: torch.from_numpy(a).to(self.device) for name, a in arrays.items()}
            h, batch = encode(model, batch, objectives)
            for objective, row in zip(objectives, rows, strict=True):
                sums = objective.sums(model, h, batch)
                row.append(torch.tensor([float(number) for number in sums], dtype=torch.float64))
        measures: dict[str, float] = {}
        for objective, row in zip(objectives, rows, strict=True):
            measures |= objective.measures(torch.stack(row).sum(0).tolist())
        return measures | {
            "unigram_entropy": self.unigram_entropy,
            "commonest_token": self.commonest,
            "max_len": self.loader.preprocess.max_len,
        }

    @property
    def batches(self) -> int:
        """Number of batches of held-out text to use."""
        return min(EVAL_BATCHES, len(self.loader))

    def five_gram(self, training: np.ndarray) -> float:
        """Return the accuracy of a 5-gram model of the ``training`` documents on these batches."""
        batches = [self.loader.batch(k) for k in range(self.batches)]
        is_special = self.loader.preprocess.is_special
        return five_gram_accuracy(self.loader.sampler.corpus, training, batches, is_special)


def report(measures: dict[str, float], rule: str, check: bool) -> None:
    """Print an evaluation; if ``check``, raise a UserError if the model has learned too little.

    It must predict more masked tokens than a 5-gram model of the training's text if ``measures``
    has its accuracy, or else have a loss below the unigram entropy.
    """
    percent = {name: f"{100 * value:.1f} %" for name, value in measures.items()}
    lines = [f"held out {rule}"]
    if "masked_lm_loss" in measures:
        peers = f"commonest token {percent['commonest_token']}"
        if "five_gram_accuracy" in measures:
            peers += f", 5-gram {percent['five_gram_accuracy']}"
        lines.append(
            f"  masked tokens: loss {measures['masked_lm_loss']:.3f} nats "
            f"(unigram entropy {measures['unigram_entropy']:.3f}), "
            f"accuracy {percent['masked_lm_accuracy']} ({peers})"
        )
    if "next_accuracy" in measures:
        lines.append(
            f"  next sentence: accuracy {percent['next_accuracy']}, "
            f"against hard negatives {percent['next_accuracy_hard']} (chance 50 %)"
        )
    for line in lines:
        print(line)
    if not check:
        return
    if "masked_lm_loss" not in measures:
        raise UserError("--check needs an objective that masks tokens")
    if not measures["masked_lm_loss"] < measures["unigram_entropy"]:
        raise UserError(
            "the model has not learned: its held-out masked-LM loss "
            f"{measures['masked_lm_loss']:.3f} is not below the unigram entropy "
            f"{measures['unigram_entropy']:.3f} of that text; train longer, or on more text"
        )
    if not measures["masked_lm_accuracy"] > measures.get("five_gram_accuracy", -1):
        raise UserError(
            "the model has learned too little: it predicts "
            f"{percent['masked_lm_accuracy']} of the held-out masked tokens, a 5-gram model "
            f"{percent['five_gram_accuracy']}; train longer, or on more text"
        )


def main(
    train_cfg: str = "config/pretrain.json",
    model_cfg: str = "config/bert_small.json",
    data_file: str = "data/corpus.txt",
    vocab: str = "vocab/vocab.txt",
    save_dir: str = "out",
    log_dir: str | None = None,
    max_len: Length = 64,
    max_pred: PositiveInt = 16,
    mask_prob: Share = 0.25,
    pretrain_file: str | None = None,
    model_file: str | None = None,
    data_parallel: bool = True,
    precision: train.Precision | None = None,
    compile: bool | None = None,
    resume: bool = True,
    overwrite: bool = False,
    check: bool = False,
) -> None:
    """Pre-train a BERT on a corpus; `eval` and `predict` use a trained one.

    `functions` pre-trains the encoder of functions.

    Parameters
    ----------
    train_cfg : str
        JSON with the training's settings.
    model_cfg : str
        JSON with the model's sizes.
    data_file : str
        The corpus: a sentence per line, a blank line after each document.
    vocab : str
        The vocabulary: a token per line.
    save_dir : str
        Folder for model_steps_<k>.pt, model.json, vocab.txt, metrics.json, last.pt and runs/.
    log_dir : str
        Folder for TensorBoard's files. Default: runs/ in save_dir.
    max_len : int
        Maximum number of tokens per example, including special ones.
    max_pred : int
        Maximum number of masked tokens per example of max_len; in proportion for shorter ones.
    mask_prob : float
        Share of the tokens to mask.
    pretrain_file : str
        Start from this model_steps_<k>.pt of the same sizes and vocabulary.
    model_file : str
        Another name of pretrain_file.
    data_parallel : bool
        Use all GPUs when started by torchrun, as train.sh does; False: insist on one process.
    precision : {"float32", "bfloat16", "float16"}
        float32, bfloat16, or float16 (for GPUs without bfloat16). Default: bfloat16 if the device
        supports it in hardware.
    compile : bool
        Compile the model with torch.compile. Default: only on GPUs.
    resume : bool
        Go on with the training in save_dir if it is the same one; False: start again.
    overwrite : bool
        Delete another training in save_dir. Default: rename it to <save_dir>-before-<date>.
    check : bool
        Fail unless the model predicts more held-out masked tokens than a 5-gram with backoff.
    """
    utils.check_outputs({}, (), {"save_dir": save_dir, "log_dir": log_dir})
    train.check_parallel(data_parallel)
    if model_file is not None and pretrain_file not in (None, model_file):
        raise UsageError("--model_file and --pretrain_file are one setting; give one of them")
    pretrain_file = pretrain_file or model_file
    cfg = Config.from_json(train_cfg)
    tokenizer = CorpusTokenizer(vocab)
    sizes = models.Config.from_json(model_cfg)
    sizes = sizes.with_vocab_size(len(tokenizer.vocab), model_cfg, vocab)
    if max_len > sizes.max_len:
        raise UserError(
            f"max_len {max_len} is larger than the max_len {sizes.max_len} of {model_cfg}"
        )
    device = utils.get_device()
    precision = precision or train.best_precision(device)
    compile = device.type == "cuda" if compile is None else compile
    rank, world = train.start_processes(device)
    vocab_sha256 = utils.sha256_of(vocab)
    if rank == 0:
        utils.remove_leftovers(save_dir, Path(data_file).parent)
        corpus = read_corpus(Path(data_file), tokenizer, vocab_sha256)
    if world > 1:
        dist.barrier()  # wait for the ids
    if rank != 0:
        corpus = read_corpus(Path(data_file), tokenizer, vocab_sha256, may_write=False)

    split = split_corpus(corpus)
    n_tokens = int(np.diff(corpus.bounds)[split.training].sum())
    objectives = cfg.used()
    if MaskedInstructions in objectives and corpus.starts is None:
        raise UserError(
            f"{data_file} has no tabs between instructions, which 'masked_instructions' needs; "
            "make it again: python dataprocess.py"
        )

    def make_loader(length: int, batch_size: int) -> SentPairDataLoader:
        if batch_size < world * cfg.accumulate:
            raise UserError(
                f"batches of {length} tokens have {batch_size} examples, less than {world} "
                f"processes times accumulate {cfg.accumulate}; raise batch_size, or leave "
                "'long_share' out"
            )
        preprocess = Preprocess4Pretrain(
            tokenizer.vocab, length, max_pred * length // max_len, mask_prob, objectives
        )
        sampler = SentPairSampler(corpus, split.training, length)
        true_share = 0.5 if NextSentence in objectives else 1.0
        return SentPairDataLoader(sampler, preprocess, n_tokens, batch_size, cfg.seed, true_share)

    loader = make_loader(max_len, cfg.batch_size)
    cfg = cfg.with_epochs(len(loader))
    long_from = cfg.total_steps - round(cfg.long_share * cfg.total_steps)
    long = loader
    if long_from < cfg.total_steps:
        long = make_loader(sizes.max_len, cfg.batch_size * max_len // sizes.max_len)
    longest = long.preprocess

    def get_batch(step: int, rank: int, world: int) -> train.Batch:
        return (loader if step < long_from else long).batch(step, rank, world)

    def get_flops(batch: train.Batch) -> float:
        tokens = batch["input_ids"]
        predicted = batch["masked_pos"].shape[1] if "masked_pos" in batch else 0
        return tokens.numel() * train.flops_per_token(sizes, tokens.shape[1], predicted)

    info = checkpoint.ModelInfo(
        model=sizes,
        tokenizer=tokenizer.name,
        vocab_sha256=vocab_sha256,
        data_file=data_file,
        corpus_sha256=corpus.sha256,
        max_len=longest.max_len,
        max_pred=longest.max_pred,
        mask_prob=mask_prob,
        objectives=[objective.key for objective in objectives],
    )
    settings = train.settings_of(cfg, info, precision) | {"max_len of most": max_len}
    utils.set_seed(cfg.seed)
    model = BertModel4Pretrain(sizes)
    if pretrain_file is not None:
        checkpoint.load_model_file(model, pretrain_file)
        settings["pretrain_sha256"] = utils.sha256_of(pretrain_file)
    if NextSentence not in objectives:
        for part in (model.fc, model.classifier):
            part.requires_grad_(False)  # not trained, but part of the file's format
    evaluation = Evaluation(corpus, split.heldout, longest, device)
    trainer = train.Trainer(
        cfg,
        model,
        optim4GPU(cfg, model, cfg.schedule),
        get_batch,
        functools.partial(get_losses, objectives=objectives),
        evaluation,
        save_dir,
        device,
        settings,
        precision,
        compile,
        log_dir,
        {f"{objective.name}_loss": cfg.objectives[objective.key] for objective in objectives},
        get_flops,
    )
    what = (
        f"{sum(p.numel() for p in model.parameters()):,} parameters; "
        f"{split.training.sum():,} documents with {n_tokens:,} tokens"
    )
    # Only the first of several processes writes.
    with utils.one_writer(*([save_dir] if rank == 0 else [])):
        measures = trainer.run(info, Path(vocab).read_bytes(), resume, overwrite, what)
        if rank == 0:
            if check and "masked_lm_loss" in measures:
                measures |= {"five_gram_accuracy": evaluation.five_gram(split.training)}
            model_file = Path(save_dir, f"model_steps_{cfg.total_steps}.pt")
            utils.write_json(
                Path(save_dir, "metrics.json"),
                {"model_file": str(model_file), "heldout": split.rule, **measures},
            )
            print(f"model {model_file}")
            report(measures, split.rule, check)


def evaluate(
    model_file: str, data_file: str | None = None, test: bool = False, check: bool = False
) -> None:
    """Evaluate a saved model on held-out text.

    Parameters
    ----------
    model_file : str
        A model_steps_<k>.pt, with model.json and vocab.txt beside it.
    data_file : str
        The corpus. Default: that of the training. Of any other corpus, all documents are used.
    test : bool
        Use the test programs of gendata.py instead of the validation programs.
    check : bool
        Fail unless the model predicts more masked tokens than a 5-gram with backoff; with another
        corpus, unless the loss is below the unigram entropy.
    """
    device = utils.get_device()
    model, info, tokenizer = checkpoint.load_pretrained(model_file)
    corpus = read_corpus(Path(data_file or info.data_file), tokenizer, info.vocab_sha256)
    unknown = [key for key in info.objectives if key not in OBJECTIVES]
    if unknown:
        raise UserError(
            f"model.json beside {model_file} names the objective '{unknown[0]}', but there are "
            f"{', '.join(OBJECTIVES)}"
        )
    split = split_corpus(corpus) if corpus.sha256 == info.corpus_sha256 else None
    if test:
        heldout, rule = split_test(corpus)
    elif split is not None:
        heldout, rule = split.heldout, split.rule
    else:
        heldout = np.ones(len(corpus.documents) - 1, bool)
        rule = "nothing: this is not the corpus of the training, so every document is used"
    preprocess = Preprocess4Pretrain(
        tokenizer.vocab,
        *(info.max_len, info.max_pred, info.mask_prob),
        [OBJECTIVES[key] for key in info.objectives],
    )
    evaluation = Evaluation(corpus, heldout, preprocess, device)
    measures = evaluation(model.to(device))
    if check and split is not None and "masked_lm_loss" in measures:
        measures["five_gram_accuracy"] = evaluation.five_gram(split.training)
    report(measures, rule, check)


def predict(model_file: str, line: str, top: PositiveInt = 5) -> None:
    """Print the most likely tokens for each [MASK] of a line.

    Parameters
    ----------
    model_file : str
        A model_steps_<k>.pt, with model.json and vocab.txt beside it.
    line : str
        Tokens as in the corpus, separated by blanks; some of them [MASK].
    top : int
        Number of tokens to print for each.
    """
    model, info, tokenizer = checkpoint.load_pretrained(model_file)
    ids = tokenizer.convert_tokens_to_ids(["[CLS]", *tokenizer.tokenize(line), "[SEP]"])
    if len(ids) > info.max_len:
        raise UserError(
            f"the line has {len(ids) - 2} tokens, but {model_file} reads at most "
            f"{info.max_len - 2}; shorten it"
        )
    input_ids = torch.tensor([ids])  # (1, S)
    masked_pos = (input_ids == tokenizer.vocab["[MASK]"]).nonzero()[:, 1]  # (P,)
    if not len(masked_pos):
        raise UserError("the line has no [MASK]; write [MASK] where the model is to fill in")
    with torch.inference_mode():
        logits_lm, _ = model(input_ids, torch.zeros_like(input_ids), None, masked_pos[None])
    shares, fills = logits_lm[0].softmax(-1).topk(min(top, len(tokenizer.vocab)))  # (P, top)
    for number, (share, fill) in enumerate(zip(shares.tolist(), fills.tolist(), strict=True), 1):
        tokens = tokenizer.convert_ids_to_tokens(fill)
        text = ", ".join(f"{t} {100 * p:.1f} %" for t, p in zip(tokens, share, strict=True))
        print(f"[MASK] {number}: {text}")


def functions(
    data_file: str = "data/functions.npz",
    train_cfg: str = "config/encoder.json",
    save_dir: str = "out-functions",
    resume: bool = True,
    overwrite: bool = False,
) -> None:
    """Pre-train the encoder of functions, without symbols; `classify.py functions` fine-tunes it.

    Parameters
    ----------
    data_file : str
        Written by `dataprocess.py functions`.
    train_cfg : str
        JSON with the model's sizes and the stages of the training.
    save_dir : str
        Folder for the models, one sub-folder for each stage.
    resume : bool
        Go on with the training in save_dir if it is the same one; False: start again.
    overwrite : bool
        Delete another training in save_dir. Default: rename it to <folder>-before-<date>.
    """
    from encoder import train as encoder_train
    from encoder.corpus import read_functions

    utils.check_outputs({}, [data_file, train_cfg], {"save_dir": save_dir})
    cfg = utils.read_config(encoder_train.Config, train_cfg)
    with utils.one_writer(save_dir):
        read = encoder_train.prepare(read_functions(data_file))
        training = encoder_train.Training(cfg.model, read, cfg.pretraining[0].seed)
        model_file = training.run(cfg.pretraining, save_dir, resume, overwrite)
    next_step = ["python", "classify.py", "functions", "--pretrain_file", model_file]
    print(f"model {model_file}; next: {shlex.join(next_step)}")


if __name__ == "__main__":
    command_line(main, eval=evaluate, predict=predict, functions=functions)
