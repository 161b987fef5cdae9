"""Compare two texts token by token: `classify.py`'s network for tasks that ask "the same?".

[CLS] before both texts, as BERT has it for sentences, does not learn to compare code from some
thousand pairs, and leaves each text half of the room. Here each text is encoded by itself, in
several windows when it is long, and each token looks for the one most like it in the other text.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from tokenization import CorpusTokenizer, FullTokenizer

WINDOWS = 4  # of max_len tokens each; what is left of a longer text is not read
KINDS = 8  # ways to weigh tokens


class ComparisonData:
    """Pairs of texts as token ids, each text in windows: [CLS] tokens [SEP].

    Parameters
    ----------
    pairs : iterable of (str, str)
    label : int (N,), or None
    tokenizer : CorpusTokenizer or FullTokenizer
    max_len : int
        Most tokens of a window, special ones included.

    Attributes
    ----------
    lengths : int (N,)
        Tokens of each pair's longer text; batches of alike ones hold little padding.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[str, str]],
        label: np.ndarray | None,
        tokenizer: CorpusTokenizer | FullTokenizer,
        max_len: int,
    ) -> None:
        self.pad, self.cls, self.sep = (tokenizer.vocab[t] for t in ("[PAD]", "[CLS]", "[SEP]"))
        self.label = label
        self.room = max_len - 2  # tokens of a window
        known: dict[str, np.ndarray] = {}  # a function is in many pairs

        def encode(text: str) -> np.ndarray:
            if text not in known:
                ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
                known[text] = np.array(ids[: WINDOWS * self.room], np.int32)
            return known[text]

        self.rows = [(encode(a), encode(b)) for a, b in pairs]
        self.lengths = np.array([max(len(a), len(b)) for a, b in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the pairs ``rows``, padded to the longest window and to the most windows.

        Returns
        -------
        dict of arrays
            ``input_ids``, ``input_mask`` : int64 (B, 2, W, S); a text has one window at least.
            ``label`` : int64 (B,), 0 where there are none. ``weight`` : float32 (B,), 1 / B.
        """
        longest = int(self.lengths[rows].max())
        n_windows = max(1, -(-longest // self.room))
        shape = len(rows), 2, n_windows, min(longest, self.room) + 2
        ids, mask = np.full(shape, self.pad, np.int64), np.zeros(shape, np.int64)
        for i, row in enumerate(rows):
            for j, text in enumerate(self.rows[row]):
                for k in range(max(1, -(-len(text) // self.room))):
                    window = text[k * self.room : (k + 1) * self.room]
                    ids[i, j, k, : len(window) + 2] = [self.cls, *window, self.sep]
                    mask[i, j, k, : len(window) + 2] = 1
        label = np.zeros(len(rows), np.int64) if self.label is None else self.label[rows]
        weight = np.full(len(rows), 1 / len(rows), np.float32)
        return dict(input_ids=ids, input_mask=mask, label=label, weight=weight)


class Comparer(nn.Module):
    """BERT and a comparison of two texts by their tokens' matches.

    A token is its hidden state beside a random vector of its own: pre-training draws rare words
    together, whose contexts are alike, but "which word" is what tells two functions apart. The
    similarity of two tokens is the cosine of their projections. What is classified are averages,
    under learned weights, of two things: each token's best match in the other text, and how much
    of the token the other text matches when no token is used twice.

    BERT and the random vectors are not trained (BERT, section 5.3, the feature-based approach):
    some hundred functions' names are learnt by heart sooner than how to compare.

    References
    ----------
    Khattab and Zaharia, "ColBERT", 2020, section 3.3 (late interaction),
    https://arxiv.org/abs/2004.12832
    """

    def __init__(self, cfg: models.Config, n_labels: int) -> None:
        super().__init__()
        self.transformer = models.Transformer(cfg).requires_grad_(False)
        self.identity = nn.Embedding(cfg.vocab_size, cfg.dim).requires_grad_(False)
        self.project = nn.Linear(2 * cfg.dim, cfg.dim)
        self.importance = nn.Linear(cfg.dim, KINDS)
        self.sharpness = nn.Parameter(torch.tensor(3.0))  # exp(3) = 20 times a cosine
        self.combine = nn.Linear(7 * KINDS, cfg.dim)
        self.drop = nn.Dropout(cfg.p_drop_hidden)
        self.classifier = nn.Linear(cfg.dim, n_labels)
        nn.init.orthogonal_(self.project.weight)

    def train(self, mode: bool = True) -> "Comparer":
        """Switch dropout on or off; in BERT, which is not trained, it is always off."""
        super().train(mode)
        self.transformer.eval()
        return self

    def forward(self, input_ids: Tensor, input_mask: Tensor) -> Tensor:
        """int64 (B, 2, W, S), (B, 2, W, S) -> logits (B, labels)"""
        mask = input_mask.bool()
        features = self.features(self.tokens(input_ids, mask), mask)
        return self.classifier(self.drop(F.gelu(self.combine(features))))

    def tokens(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """int64 (B, 2, W, S), bool (B, 2, W, S) -> float (N, S, 2 D), of the N windows in use"""
        used = mask[..., 0]  # (B, 2, W)
        ids = input_ids[used]
        h = self.transformer(ids, torch.zeros_like(ids), mask[used])
        return torch.cat([h, self.identity(ids)], -1)

    def features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """float (N, S, 2 D), bool (B, 2, W, S) -> float (B, 7 KINDS)"""
        projected = self.project(tokens)
        vectors = projected.new_zeros(*mask.shape, projected.size(-1))
        vectors[mask[..., 0]] = projected
        vectors, mask = vectors.flatten(2, 3), mask.flatten(2, 3)  # (B, 2, T, D), (B, 2, T)
        weight = self.importance(vectors).masked_fill(~mask[..., None], -torch.inf)
        a, b = F.normalize(vectors, dim=-1).unbind(1)
        similarity = a @ b.transpose(1, 2)  # (B, T of A, T of B)
        best = best_matches(similarity, mask)
        matched = one_to_one_matches(similarity * self.sharpness.exp(), mask)
        shares = weight.softmax(2)  # (B, 2, T, KINDS)
        features = []
        for found in (best, matched):  # (B, 2, T)
            x, y = (shares * found[..., None]).sum(2).unbind(1)  # (B, KINDS) each
            features += [x + y, (x - y).abs(), torch.minimum(x, y)]
        size_a, size_b = weight.logsumexp(2).unbind(1)
        return torch.cat([*features, (size_a - size_b).abs()], 1)

    @torch.no_grad()
    def calibrate(self, batch: dict[str, Tensor]) -> None:
        """Give both projections an input of mean 0 and variance 1, as ``batch`` has it.

        Hidden states of a pre-trained BERT share one large direction, which would make any two
        tokens alike. Only the weights' start is changed: a data-dependent initialisation
        (Salimans and Kingma, 2016, section 3, https://arxiv.org/abs/1602.07868).
        """
        self.eval()
        mask = batch["input_mask"].bool()
        tokens = self.tokens(batch["input_ids"], mask)
        _standardise(self.project, tokens[mask[mask[..., 0]]])
        _standardise(self.combine, self.features(tokens, mask))


def best_matches(similarity: Tensor, mask: Tensor) -> Tensor:
    """Return how similar each token's most similar one in the other text is.

    Parameters
    ----------
    similarity : float (B, T, T)
        Of each token of A to each of B.
    mask : bool (B, 2, T)
        Which are tokens.

    Returns
    -------
    float (B, 2, T)
    """
    of_a = similarity.masked_fill(~mask[:, 1, None, :], -1).amax(2)
    of_b = similarity.masked_fill(~mask[:, 0, :, None], -1).amax(1)
    return torch.stack([of_a, of_b], 1)


def one_to_one_matches(logits: Tensor, mask: Tensor) -> Tensor:
    """Return which share of each token is matched when a token that is used is used up.

    A token spreads itself over the other text by a softmax, in both directions; a pair counts with
    the smaller of its two shares. Where all similarities are 0 or infinite, m and n copies of a
    word have min(m, n) matches: the intersection of two bags of words. Parameters and result are
    those of `best_matches`.
    """
    both = mask[:, 0, :, None] & mask[:, 1, None, :]
    logits = logits.masked_fill(~both, -1e4)  # finite: a row of padding alone makes no NaN
    pairs = torch.minimum(logits.softmax(2), logits.softmax(1)) * both
    return torch.stack([pairs.sum(2), pairs.sum(1)], 1)


def _standardise(layer: nn.Linear, inputs: Tensor) -> None:
    """Make ``layer`` see inputs (N, D) of mean 0 and variance 1, by changing its weights."""
    layer.weight /= inputs.std(0).clamp(min=1e-3)
    layer.bias -= layer.weight @ inputs.mean(0)
