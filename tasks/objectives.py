"""Objectives of pre-training: each adds columns to a batch and computes a loss."""

import dataclasses
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

import train
from models import BertModel4Pretrain

OBJECTIVES: dict[str, type["Objective"]] = {}  # by key; filled by the classes' definition


@dataclasses.dataclass
class Text:
    """N of the B rows of a batch, with S tokens each, before anything is masked.

    Attributes
    ----------
    ids, segment_ids : int64 (N, S)
    inside : bool (N, S)
        True for tokens of A and B, False for special tokens and padding.
    starts : bool (N, S), or None
        Where an instruction starts; None if the corpus does not separate instructions.
    pairs : dict of (N,) arrays
        From `SentPairSampler.draw`.
    lengths : int64 (B,)
        Number of tokens of A and B together, for all rows of the batch.
    key : list of int
        Seed of the batch.
    rows : slice
        Which of the B rows these are.
    """

    ids: np.ndarray
    segment_ids: np.ndarray
    inside: np.ndarray
    starts: np.ndarray | None
    pairs: dict[str, np.ndarray]
    lengths: np.ndarray
    key: list[int]
    rows: slice

    def draws(self, count: int) -> np.ndarray:
        """Return random numbers in [0, 1), (N, count); those of a row do not depend on ``rows``."""
        start, end, _ = self.rows.indices(len(self.lengths))
        generator = np.random.PCG64(self.key)
        generator.advance(start * count)  # this generator takes one step per number
        return np.random.Generator(generator).random((end - start, count))


class Objective:
    """An objective of pre-training: columns that are added to a batch, and a loss.

    To add one, write a subclass with a ``key``, and give its weight in "objectives" in the
    training's settings. See `NextSentence` below, and `pretrain.MaskedTokens`.

    Attributes
    ----------
    key : str
        Its name in the settings.
    name : str
        Prefix of the names of its measures.
    everywhere : bool
        Whether it reads hidden states other than those at [CLS] and at ``masked_pos``.
    """

    key: str
    name: str
    everywhere = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "key" in vars(cls):
            OBJECTIVES[cls.key] = cls

    @staticmethod
    def columns(text: Text, how: Any) -> train.Batch:
        """Return arrays to add to a batch or to replace; by default none.

        ``how`` is the `pretrain.Preprocess4Pretrain` that reads the text.
        """
        return {}

    @staticmethod
    def loss(model: BertModel4Pretrain, h: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of hidden states ``h`` (N, S, D), as a share of the batch's mean."""
        raise NotImplementedError

    @classmethod
    def sums(
        cls, model: BertModel4Pretrain, h: Tensor, batch: dict[str, Tensor]
    ) -> list[Tensor | int]:
        """Return numbers of a batch; `measures` gets their sums over batches."""
        return [cls.loss(model, h, batch), 1]

    @classmethod
    def measures(cls, sums: list[float]) -> dict[str, float]:
        """Return named measures of held-out text from sums over its batches."""
        return {f"{cls.name}_loss": sums[0] / sums[1]}


class NextSentence(Objective):
    """BERT's second objective: does B follow A in the text?

    Columns: ``is_next`` : int64 (N,). ``is_next_weights`` : float32 (N,), 1 / B. ``is_hard`` :
    bool (N,).
    """

    key, name = "next_sentence", "next"
    everywhere = False

    @staticmethod
    def columns(text: Text, how: Any) -> train.Batch:
        return {
            "is_next": text.pairs["is_next"],
            "is_next_weights": np.full(len(text.ids), 1 / len(text.lengths), np.float32),
            "is_hard": text.pairs["is_hard"],
        }

    @staticmethod
    def loss(model: BertModel4Pretrain, h: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the cross-entropy per pair (nats)."""
        logits = model.score_next(h).float()
        loss = F.cross_entropy(logits, batch["is_next"], reduction="none")
        return (loss * batch["is_next_weights"]).sum()

    @classmethod
    def sums(
        cls, model: BertModel4Pretrain, h: Tensor, batch: dict[str, Tensor]
    ) -> list[Tensor | int]:
        logits, is_next, is_hard = model.score_next(h), batch["is_next"], batch["is_hard"]
        right = logits.argmax(1) == is_next
        loss = F.cross_entropy(logits, is_next, reduction="sum")
        true = is_next == 1
        next_true, hard = (right & true).sum(), (right & is_hard).sum()
        return [loss, right.sum(), len(right), next_true, true.sum(), hard, is_hard.sum()]

    @classmethod
    def measures(cls, sums: list[float]) -> dict[str, float]:
        """Return ``next_loss`` (nats per pair), ``next_accuracy`` and ``next_accuracy_hard``.

        The last is the mean of the accuracies on true continuations and on hard negatives, so
        guessing gives 0.5.
        """
        loss, right, n, next_right, n_next, hard_right, n_hard = sums
        return {
            "next_loss": loss / n,
            "next_accuracy": right / n,
            "next_accuracy_hard": (next_right / max(n_next, 1) + hard_right / max(n_hard, 1)) / 2,
        }
