"""Tasks that ask whether two texts are the same: the network, its data and its losses.

BERT's usual way, one sequence [CLS] A [SEP] B, does not learn to compare code from a few thousand
pairs, and leaves each text only half of the sequence. Here each text becomes a vector by itself:
the mean of its hidden states in several windows. The similarity of two vectors is judged together
with the similarity of the texts' words: shared words distinguish functions best, and BERT is needed
for code that compilers wrote differently.
"""

from collections.abc import Callable, Iterable

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

import models
import train
from optim import OneCycleAdamW
from tasks.contrast import info_nce
from tasks.task import Examples, Task
from terminal import progress
from tokenization import CorpusTokenizer, FullTokenizer

# BERT reads so many windows of max_len tokens of each text. Words are counted in the whole text.
WINDOWS = 6  # from the start
TRAINED = 2  # in training: from a random place, a new one each time
ENCODED = 64  # texts to encode at a time
TEMPERATURE = 0.07  # of cosines in the contrastive loss
CALIBRATION = 4096  # pairs used to compute the weights of words
HEAD_LR = 40  # learning rate of everything except BERT, as a multiple of BERT's cfg.lr


class ComparisonData:
    """Pairs of texts. Each distinct text is encoded once.

    Parameters
    ----------
    pairs : iterable of (str, str)
    label : int (N,), or None
    tokenizer : CorpusTokenizer or FullTokenizer
    max_len : int
        Maximum number of tokens per window, including special ones.

    Attributes
    ----------
    texts : list of int64 (T,)
        Token ids of the distinct texts, without special tokens.
    rows : int64 (N, 2)
        The two texts of each pair.
    group : int64 (texts,)
        Texts that are connected by pairs of label 1, directly or not, are in one group.
    lengths : int (N,)
        Number of tokens of each pair's longer text.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[str, str]],
        label: np.ndarray | None,
        tokenizer: CorpusTokenizer | FullTokenizer,
        max_len: int,
    ) -> None:
        self.pad, self.cls, self.sep = (tokenizer.vocab[t] for t in ("[PAD]", "[CLS]", "[SEP]"))
        self.n_words = len(tokenizer.vocab)
        self.label = label
        self.room = max_len - 2  # tokens of a window
        self.texts: list[np.ndarray] = []
        numbers: dict[str, int] = {}

        def number(text: str) -> int:
            if text not in numbers:
                numbers[text] = len(self.texts)
                ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
                self.texts.append(np.array(ids, np.int64))
            return numbers[text]

        self.rows = np.array([(number(a), number(b)) for a, b in pairs], np.int64).reshape(-1, 2)
        sizes = np.array([len(text) for text in self.texts], np.int64)
        self.lengths = sizes[self.rows].max(1) if len(self.rows) else sizes
        same = self.rows[:0] if label is None else self.rows[label == 1]
        n = len(self.texts)
        links = scipy.sparse.coo_matrix((np.ones(len(same)), (*same.T,)), (n, n))
        self.group = connected_components(links, directed=False)[1].astype(np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def windows(self, texts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Cut N texts into windows, [CLS] tokens [SEP]; the longest text has W windows.

        Returns
        -------
        ids, mask : int64 (N, W, S)
            If a text has no tokens for a window, the window is completely masked.
        """
        longest = max(1, *map(len, texts))
        shape = len(texts), -(-longest // self.room), min(longest, self.room) + 2
        ids = np.full(shape, self.pad, np.int64)
        mask = np.zeros_like(ids)
        for i, text in enumerate(texts):
            for w in range(shape[1]):
                window = text[w * self.room : (w + 1) * self.room]
                if w == 0 or len(window):
                    ids[i, w, : len(window) + 2] = [self.cls, *window, self.sep]
                    mask[i, w, : len(window) + 2] = 1
        return ids, mask

    def counts(self, some: np.ndarray) -> np.ndarray:
        """Return how often each word is in the whole texts: int64 (...) -> float32 (..., V)."""
        found = [np.bincount(self.texts[i], minlength=self.n_words) for i in some.flat]
        return np.array(found, np.float32).reshape(*some.shape, self.n_words)

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the pairs ``rows``, with a random part of each text, seeded by ``rows``.

        Returns
        -------
        dict of arrays
            ``input_ids``, ``input_mask`` : int64 (B, 2, W, S). ``counts`` : float32 (B, 2, V).
            ``group`` : int64 (B, 2). ``label`` : int64 (B,), 0 if there are no labels.
            ``weight`` : float32 (B,), 1 / B.
        """
        texts = self.rows[rows]
        rng = np.random.default_rng(rows)
        most = TRAINED * self.room
        parts = []
        for text in (self.texts[i] for i in texts.flat):
            start = rng.integers(max(1, len(text) - most + 1))
            parts.append(text[start : start + most])
        ids, mask = (x.reshape(len(rows), 2, *x.shape[1:]) for x in self.windows(parts))
        return {
            "input_ids": ids,
            "input_mask": mask,
            "counts": self.counts(texts),
            "group": self.group[texts],
            "label": np.zeros(len(rows), np.int64) if self.label is None else self.label[rows],
            "weight": np.full(len(rows), 1 / len(rows), np.float32),
        }

    @torch.inference_mode()
    def encode(self, model: "Comparer") -> Tensor:
        """Return each text's vector, float32 (texts, D); ``model`` is in evaluation mode."""
        device = next(model.parameters()).device
        # Batch texts of similar length, so that little is padding.
        order = np.argsort([len(text) for text in self.texts], kind="stable")
        found = []
        for some in np.split(order, range(ENCODED, len(order), ENCODED)):
            texts = [self.texts[i][: WINDOWS * self.room] for i in some]
            ids, mask = (torch.from_numpy(x).to(device) for x in self.windows(texts))
            found.append(model.vectors(ids, mask))
        return torch.cat(found)[torch.from_numpy(np.argsort(order)).to(device)]

    def scorer(self, model: "Comparer", device: torch.device) -> Callable[[np.ndarray], Tensor]:
        """Return a function from rows to logits, float (rows, labels); each text is read once."""
        vectors = self.encode(model)

        def score(rows: np.ndarray) -> Tensor:
            texts = self.rows[rows]
            return model.compare(vectors[texts], torch.from_numpy(self.counts(texts)).to(device))

        return score


class Comparer(nn.Module):
    """Logistic regression on the similarity of two texts' words and of their BERT vectors.

    The features of words are those of logistic regression on TF-IDF (each word's weights in both
    texts, and the cosine), and the shares of each text that are also in the other one. The vector
    of a text is the mean of BERT's hidden states. BERT is trained together with the rest, mainly by
    `contrast`.

    References
    ----------
    Reimers and Gurevych, "Sentence-BERT", 2019, https://arxiv.org/abs/1908.10084
    Cheng et al., "Wide & Deep Learning", 2016, https://arxiv.org/abs/1606.07792
    """

    idf: Tensor
    largest: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, cfg: models.Config, n_labels: int) -> None:
        super().__init__()
        assert cfg.vocab_size is not None  # a network is made when the vocabulary is known
        self.transformer = models.Transformer(cfg)
        # Set by `calibrate`. Rare words weigh more; features of words are at most 1.
        self.register_buffer("idf", torch.ones(cfg.vocab_size))
        self.register_buffer("largest", torch.ones(cfg.vocab_size))
        self.register_buffer("mean", torch.zeros(10))
        self.register_buffer("deviation", torch.ones(10))
        self.alike = nn.Linear(12, n_labels)
        self.words = nn.Linear(2 * cfg.vocab_size, n_labels, bias=False)
        nn.init.zeros_(self.alike.weight)
        nn.init.zeros_(self.words.weight)

    def forward(
        self, input_ids: Tensor, input_mask: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compare texts.

        Parameters
        ----------
        input_ids, input_mask : int64 (B, 2, W, S)
        counts : float32 (B, 2, V)

        Returns
        -------
        logits : float32 (B, labels)
        vectors : float32 (B, 2, D)
        """
        vectors = self.vectors(input_ids.flatten(0, 1), input_mask.flatten(0, 1))
        vectors = vectors.unflatten(0, (-1, 2))
        return self.compare(vectors, counts), vectors

    def vectors(self, input_ids: Tensor, input_mask: Tensor) -> Tensor:
        """int64 (N, W, S), (N, W, S) -> float32 (N, D), of length 1"""
        used = input_mask.any(-1)  # (N, W)
        ids, mask = input_ids[used], input_mask[used]  # (windows, S)
        h = self.transformer(ids, torch.zeros_like(ids), mask).float() * mask[..., None]
        text = used.nonzero()[:, 0]  # of each window
        sums = h.new_zeros(len(used), h.size(-1)).index_add(0, text, h.sum(1))
        return F.normalize(sums, dim=-1)  # so sums are as good as means

    def compare(self, vectors: Tensor, counts: Tensor) -> Tensor:
        """float32 (B, 2, D), (B, 2, V) -> (B, labels)"""
        with torch.autocast(counts.device.type, enabled=False):
            alike, words = self.word_features(counts)
            alike = (alike - self.mean) / self.deviation
            cosine = (vectors[:, 0] * vectors[:, 1]).sum(-1, keepdim=True)
            distance = (1 - cosine).clamp(min=1e-6).sqrt()
            return self.alike(torch.cat([alike, cosine, distance], 1)) + self.words(words)

    def word_features(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """float32 (B, 2, V) -> (B, 10), (B, 2 V)"""
        tf_idf = self.tf_idf(counts)
        lengths = tf_idf.norm(dim=-1, keepdim=True)
        x, y = (tf_idf / lengths.clamp(min=1e-6)).unbind(1)
        words = torch.cat([(x - y).abs(), torch.minimum(x, y)], 1) / self.largest.repeat(2)
        weights = torch.stack([torch.ones_like(self.idf), self.idf, self.idf**2], 1)  # (V, 3)
        common = counts.amin(1) @ weights  # (B, 3)
        a, b = (common[:, None] / (counts @ weights).clamp(min=1e-6)).unbind(1)
        sizes = torch.stack([counts.sum(-1), tf_idf.sum(-1)], -1).log1p()  # (B, 2, 2)
        differences = (sizes[:, 0] - sizes[:, 1]).abs()
        alike = [(x * y).sum(1, keepdim=True), a + b, torch.minimum(a, b), differences]
        return torch.cat([*alike, sizes[:, :, 1].sum(1, keepdim=True)], 1), words

    def tf_idf(self, counts: Tensor) -> Tensor:
        """float32 (..., V) -> (..., V)"""
        return torch.where(counts > 0, 1 + counts.clamp(min=1).log(), 0.0) * self.idf

    @torch.no_grad()
    def calibrate(self, counts: Tensor) -> None:
        """Compute weights of words, scales of features from training pairs, float32 (N, 2, V)."""
        texts = counts.flatten(0, 1)
        held = (texts > 0).sum(0)
        self.idf.copy_(((1 + len(texts)) / (1 + held)).log() + 1)
        largest = F.normalize(self.tf_idf(texts), dim=-1, eps=1e-6).amax(0)
        self.largest.copy_(torch.where(held > 0, largest, 1.0))
        alike, _ = self.word_features(counts)
        self.mean.copy_(alike.mean(0))
        self.deviation.copy_(alike.std(0, correction=0).clamp(min=1e-3))


def contrast(vectors: Tensor, group: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Return the loss of finding each text's partner among all texts of the batch (nats).

    In every pair of label 1, each text should be nearer to its partner than to all texts of other
    groups, i.e. the other pairs of the batch are negatives. If a batch is computed in parts, by
    several processes or with ``accumulate``, only pairs of the same part are.

    Parameters
    ----------
    vectors : float32 (B, 2, D)
    group, label, weight
        See `ComparisonData.batch`.
    """
    x, group = vectors.flatten(0, 1), group.flatten()
    partner = torch.arange(len(x), device=x.device) ^ 1
    loss = info_nce(x, x, 1 / TEMPERATURE, partner, group[:, None] == group[None, :])
    return (loss * (label * weight).repeat_interleave(2)).sum()


class ComparisonTask(Task):
    """A task for `Comparer`. Its new layers get a higher learning rate than BERT."""

    network = Comparer

    @staticmethod
    def read(
        examples: Examples, tokenizer: CorpusTokenizer | FullTokenizer, max_len: int
    ) -> ComparisonData:
        assert examples.text_b is not None  # a comparison has two columns of texts
        pairs = zip(examples.text_a, examples.text_b, strict=True)
        rows = progress.bar(pairs, desc="texts", total=len(examples.text_a), unit="row")
        return ComparisonData(rows, examples.label, tokenizer, max_len)

    @staticmethod
    def prepare(model: Comparer, data: ComparisonData, seed: int) -> None:
        some = np.random.default_rng(seed).permutation(len(data))[:CALIBRATION]
        model.calibrate(torch.from_numpy(data.counts(data.rows[some])))

    @staticmethod
    def get_losses(model: Comparer, batch: dict[str, Tensor]) -> train.Losses:
        """Return the mean cross-entropy (nats), and `contrast`."""
        label, weight = batch["label"], batch["weight"]
        logits, vectors = model(batch["input_ids"], batch["input_mask"], batch["counts"])
        loss = F.cross_entropy(logits.float(), label, reduction="none")
        return {
            "loss": (loss * weight).sum(),
            "contrast_loss": contrast(vectors, batch["group"], label, weight),
        }

    @staticmethod
    def get_optimizer(cfg: train.Config, model: Comparer) -> OneCycleAdamW:
        bert = {"params": list(model.transformer.parameters()), "lr": cfg.lr}
        head = [p for n, p in model.named_parameters() if not n.startswith("transformer.")]
        groups = [bert, {"params": head, "lr": HEAD_LR * cfg.lr, "weight_decay": 0.1}]
        return OneCycleAdamW(groups, cfg.lr, cfg.warmup, cfg.total_steps)
