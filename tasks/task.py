"""What a fine-tuning task is: a table, and how it is learned."""

import dataclasses
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import train
from tokenization import CorpusTokenizer, FullTokenizer

TASKS: dict[str, type["Task"]] = {}  # by name; filled by the classes' definition


@dataclasses.dataclass
class Examples:
    """The rows of a table; ``text_b`` and ``label`` (index into the task's) may be None."""

    text_a: list[str]
    text_b: list[str] | None
    label: np.ndarray | None


class Task:
    """Columns and labels of a TSV file; network, data, losses and optimizer that learn them.

    A subclass with ``labels`` is a task of `classify.py`, called like the class in lower case.
    What `tasks.sentences.SentenceTask` and `tasks.comparer.ComparisonTask` bring suits most; then
    only the table is left to say::

        class Sentiment(SentenceTask):
            labels = ("negative", "positive")
            label, text_a, text_b = "label", "sentence", None
            tokenizer = "bert"

    Attributes
    ----------
    labels : tuple of str
        Of two labels the last one is the positive one.
    label, text_a, text_b : str
        Names of columns in the header; ``text_b`` is None for single texts.
    no_label : str or None
        What stands in the label's column of rows that have none; these are left out.
    tokenizer : {"corpus", "bert"}
        How texts are read, where no pre-trained model says it.
    network : callable
        (sizes, number of labels) -> the module to train, whose BERT is called ``transformer``.
    """

    labels: tuple[str, ...]
    label: str
    text_a: str
    text_b: str | None
    no_label: str | None = None
    tokenizer: Literal["corpus", "bert"]
    network: type[nn.Module]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "labels" in vars(cls):
            TASKS[cls.__name__.lower()] = cls

    @staticmethod
    def read(examples: Examples, tokenizer: CorpusTokenizer | FullTokenizer, max_len: int) -> Any:
        """Return the examples as what the network reads.

        That has ``lengths`` (tokens of each example), ``batch(rows)`` -> arrays, among them
        ``input_ids``, ``label``, and ``weight`` (1 / rows), and ``scorer(model, device)`` -> a
        function from rows to logits, float (rows, labels).
        """
        raise NotImplementedError

    @staticmethod
    def prepare(model: Any, data: Any, seed: int) -> None:
        """Set what of the model is taken from the training's data and not learned: here nothing."""

    @staticmethod
    def get_losses(model: Any, batch: dict[str, Tensor]) -> train.Losses:
        """Return named losses of a batch, as `train.Trainer` wants them."""
        raise NotImplementedError

    @staticmethod
    def get_optimizer(cfg: train.Config, model: Any) -> torch.optim.Optimizer:
        """Return what trains the model."""
        raise NotImplementedError
