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
P_DROP = 0.1  # dropout before the classification


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
    similarity of two tokens is the cosine of their projections. What is classified are the texts'
    sizes and averages, both under learned weights of the tokens, of two things: each token's best
    match in the other text, and how much of the token the other text matches when no token is used
    twice.

    BERT and the random vectors are not trained (BERT, section 5.3, the feature-based approach):
    some hundred functions' names are learnt by heart sooner than how to compare. So BERT may
    compute in bfloat16; the comparison is float32 always.

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
        self.importance = nn.Linear(2 * cfg.dim, KINDS)
        self.sharpness = nn.Parameter(torch.tensor(3.0))  # exp(3) = 20 times a cosine
        self.norm = nn.BatchNorm1d(8 * KINDS)
        self.combine = nn.Linear(8 * KINDS, cfg.dim)
        self.drop = nn.Dropout(P_DROP)
        self.classifier = nn.Linear(cfg.dim, n_labels)
        nn.init.orthogonal_(self.project.weight)

    def train(self, mode: bool = True) -> "Comparer":
        """Switch dropout on or off; in BERT, which is not trained, it is always off."""
        super().train(mode)
        self.transformer.eval()
        return self

    def forward(self, input_ids: Tensor, input_mask: Tensor) -> Tensor:
        """int64 (B, 2, W, S), (B, 2, W, S) -> logits (B, labels)"""
        used = input_mask[..., 0].bool()  # (B, 2, W)
        tokens = self.tokens(input_ids[used], input_mask[used])
        with torch.autocast(input_ids.device.type, enabled=False):
            features = self.features(tokens, input_mask)
            self.norm.train(self.training and len(features) > 1)  # one example has no variance
            return self.classifier(self.drop(F.gelu(self.combine(self.norm(features)))))

    def tokens(self, input_ids: Tensor, input_mask: Tensor) -> Tensor:
        """int64 (N, S), (N, S), N windows -> float32 (N, S, 2 D)"""
        h = self.transformer(input_ids, torch.zeros_like(input_ids), input_mask)
        return torch.cat([h.float(), self.identity(input_ids)], -1)

    def features(self, tokens: Tensor, input_mask: Tensor) -> Tensor:
        """float32 (N, S, 2 D) of the N windows in use, int64 (B, 2, W, S) -> (B, 8 KINDS)"""
        used = input_mask[..., 0].bool()
        vectors = tokens.new_zeros(*input_mask.shape, self.project.out_features)
        vectors[used] = self.project(tokens)
        weight = tokens.new_zeros(*input_mask.shape, KINDS)
        weight[used] = self.importance(tokens)
        # (B, 2, W, S, ...) -> (B, 2, T, ...), [CLS] and [SEP] being padding like any other
        vectors, weight = vectors.flatten(2, 3), weight.flatten(2, 3)
        mask = inner(input_mask).flatten(2, 3)
        a, b = F.normalize(vectors, dim=-1).unbind(1)
        similarity = a @ b.transpose(1, 2)  # (B, T of A, T of B)
        best = best_matches(similarity, mask)
        matched = one_to_one_matches(similarity * self.sharpness.exp(), mask)
        shares = weight.masked_fill(~mask[..., None], -1e4).softmax(2) * mask[..., None]
        features = []
        for found in (best, matched):  # (B, 2, T)
            x, y = (shares * found[..., None]).sum(2).unbind(1)  # (B, KINDS) each
            features += [x + y, (x - y).abs(), torch.minimum(x, y)]
        size_a, size_b = (weight.exp() * mask[..., None]).sum(2).log1p().unbind(1)
        return torch.cat([*features, (size_a - size_b).abs(), size_a + size_b], 1)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[dict[str, Tensor]]) -> None:
        """Let ``project`` and ``importance`` begin with inputs of mean 0 and variance 1.

        Hidden states of a pre-trained BERT share one large direction, which would make any two
        tokens alike. Only the weights' start is changed: a data-dependent initialisation
        (Salimans and Kingma, 2016, section 3, https://arxiv.org/abs/1602.07868).
        """
        self.eval()
        n, total, squares = 0, 0.0, 0.0
        for batch in batches:
            used = batch["input_mask"][..., 0].bool()
            tokens = self.tokens(batch["input_ids"][used], batch["input_mask"][used])
            tokens = tokens[inner(batch["input_mask"])[used]].double()
            n, total = n + len(tokens), total + tokens.sum(0)
            squares = squares + tokens.square().sum(0)
        mean = total / max(n, 1)
        deviation = (squares / max(n, 1) - mean.square()).clamp(min=1e-6).sqrt()
        for layer in (self.project, self.importance):
            layer.weight /= deviation.float()
            layer.bias -= layer.weight @ mean.float()


def inner(input_mask: Tensor) -> Tensor:
    """Return which places hold the text's tokens: no padding, no [CLS], no [SEP].

    int (B, 2, W, S) -> bool (B, 2, W, S)
    """
    mask = input_mask.bool()
    followed = F.pad(mask[..., 1:], (0, 1))
    return mask & followed & (torch.arange(mask.size(-1), device=mask.device) > 0)


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
