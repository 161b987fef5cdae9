"""The base class of fine-tuning tasks."""

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
    """The rows of a table; ``text_b`` and ``label`` (indices into the task's) may be None."""

    text_a: list[str]
    text_b: list[str] | None
    label: np.ndarray | None


class Task:
    """A fine-tuning task: the columns of its TSV file, its network, data, losses and optimizer.

    A subclass with ``labels`` is a task of `classify.py`; its name is that of the class in lower
    case. Most tasks can inherit everything else from `tasks.sentences.SentenceTask` or
    `tasks.comparer.ComparisonTask`, and only describe the table::

        class Sentiment(SentenceTask):
            labels = ("negative", "positive")
            label, text_a, text_b = "label", "sentence", None
            tokenizer = "bert"

    Attributes
    ----------
    labels : tuple of str
        If there are two, the last one is the positive one.
    label, text_a, text_b : str
        Names of columns in the header; ``text_b`` is None for single texts.
    no_label : str or None
        Marks rows without a label in the label's column; they are left out.
    tokenizer : {"corpus", "bert"}
        How texts are read, unless a pre-trained model says it.
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
        """Convert the examples to input for the network.

        The result has ``lengths`` (tokens of each example), ``batch(rows)`` -> arrays including
        ``input_ids``, ``label`` and ``weight`` (1 / rows), and ``scorer(model, device)`` -> a
        function from rows to logits, float (rows, labels).
        """
        raise NotImplementedError

    @staticmethod
    def prepare(model: Any, data: Any, seed: int) -> None:
        """Set parts of the model that are computed from the training's data; by default none."""

    @staticmethod
    def get_losses(model: Any, batch: dict[str, Tensor]) -> train.Losses:
        """Return named losses of a batch for `train.Trainer`."""
        raise NotImplementedError

    @staticmethod
    def get_optimizer(cfg: train.Config, model: Any) -> torch.optim.Optimizer:
        """Return the optimizer for the model."""
        raise NotImplementedError
