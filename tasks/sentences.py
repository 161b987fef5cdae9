"""Tasks for BERT's classifier of one text or two: the network and its batches."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
import train
from optim import optim4GPU
from tasks.task import Examples, Task
from terminal import progress
from tokenization import CorpusTokenizer, FullTokenizer


class Classifier(nn.Module):
    """BERT with one linear layer on the pooled [CLS]."""

    def __init__(self, cfg: models.Config, n_labels: int) -> None:
        super().__init__()
        self.transformer = models.Transformer(cfg)
        self.fc = nn.Linear(cfg.dim, cfg.dim)
        self.drop = nn.Dropout(cfg.p_drop_hidden)
        self.classifier = nn.Linear(cfg.dim, n_labels)
        models.init_weights(self.fc)
        models.init_weights(self.classifier)

    def forward(self, input_ids: Tensor, segment_ids: Tensor, input_mask: Tensor) -> Tensor:
        """int64 (B, S), (B, S), (B, S) -> logits (B, labels)"""
        at = torch.zeros_like(input_ids[:, :1])  # [CLS] only
        h = self.transformer(input_ids, segment_ids, input_mask, at)
        return self.classifier(self.drop(torch.tanh(self.fc(h[:, 0]))))


class ClassificationData:
    """Examples as token ids; ``data.batch(rows)`` is [CLS] A [SEP] or [CLS] A [SEP] B [SEP].

    If a pair is too long, the longer text is cut first. ``lengths``: tokens of each example.

    Parameters
    ----------
    examples : Examples
    tokenizer : CorpusTokenizer or FullTokenizer
    max_len : int
        Maximum number of tokens per example, including special ones.
    """

    def __init__(
        self, examples: Examples, tokenizer: CorpusTokenizer | FullTokenizer, max_len: int
    ) -> None:
        self.pad, self.cls, self.sep = (tokenizer.vocab[t] for t in ("[PAD]", "[CLS]", "[SEP]"))
        self.label = examples.label
        known: dict[str, np.ndarray] = {}  # texts occur in many pairs

        def encode(text: str) -> np.ndarray:
            if text not in known:
                ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
                known[text] = np.array(ids[:max_len], np.int32)
            return known[text]

        self.rows: list[tuple[np.ndarray, np.ndarray | None]] = []
        texts_b: list[str | None] = [None] * len(examples.text_a)
        if examples.text_b is not None:
            texts_b = [*examples.text_b]
        texts = zip(examples.text_a, texts_b, strict=True)
        for text_a, text_b in progress.bar(texts, desc="texts", total=len(texts_b), unit="row"):
            a = encode(text_a)
            if text_b is None:
                self.rows.append((a[: max_len - 2], None))
                continue
            b, room = encode(text_b), max_len - 3
            a = a[: max(room - len(b), room - room // 2)]
            self.rows.append((a, b[: room - len(a)]))
        self.lengths = np.array([len(a) + (0 if b is None else len(b)) for a, b in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: np.ndarray) -> train.Batch:
        """Return the examples ``rows``, padded to the longest.

        Returns
        -------
        dict of arrays
            ``input_ids``, ``segment_ids``, ``input_mask`` : int64 (B, S). ``label`` : int64 (B,),
            0 if there are no labels. ``weight`` : float32 (B,), 1 / B.
        """
        sequences = []
        for row in rows:
            a, b = self.rows[row]
            sequences.append([self.cls, *a, self.sep] + ([] if b is None else [*b, self.sep]))
        length = max(map(len, sequences))
        ids = np.full((len(rows), length), self.pad, np.int64)
        segment, mask = np.zeros_like(ids), np.zeros_like(ids)
        for i, (sequence, row) in enumerate(zip(sequences, rows, strict=True)):
            ids[i, : len(sequence)] = sequence
            mask[i, : len(sequence)] = 1
            segment[i, len(self.rows[row][0]) + 2 : len(sequence)] = 1
        label = np.zeros(len(rows), np.int64) if self.label is None else self.label[rows]
        weight = np.full(len(rows), 1 / len(rows), np.float32)
        return dict(input_ids=ids, segment_ids=segment, input_mask=mask, label=label, weight=weight)

    def scorer(self, model: Classifier, device: torch.device) -> Callable[[np.ndarray], Tensor]:
        """Return a function from rows to logits, float (rows, labels)."""

        def score(rows: np.ndarray) -> Tensor:
            batch = self.batch(rows)
            names = ("input_ids", "segment_ids", "input_mask")
            return model(*(torch.from_numpy(batch[name]).to(device) for name in names))

        return score


class SentenceTask(Task):
    """A task for `Classifier`, trained like in the BERT paper."""

    network = Classifier
    read = ClassificationData
    get_optimizer = staticmethod(optim4GPU)

    @staticmethod
    def get_losses(model: Classifier, batch: dict[str, Tensor]) -> train.Losses:
        """Return the mean cross-entropy (nats)."""
        logits = model(batch["input_ids"], batch["segment_ids"], batch["input_mask"])
        loss = F.cross_entropy(logits.float(), batch["label"], reduction="none")
        return {"loss": (loss * batch["weight"]).sum()}
