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
from tqdm import tqdm

import models
import train
from tokenization import CorpusTokenizer, FullTokenizer

WINDOWS = 4  # of max_len tokens each; what is left of a longer text is not read
ENCODED = 64  # windows at a time
KINDS = 8  # ways to weigh tokens
P_DROP = 0.1  # dropout before the classification


class ComparisonData:
    """Pairs of texts. A text is encoded once, however many pairs it is in.

    Parameters
    ----------
    pairs : iterable of (str, str)
    label : int (N,), or None
    tokenizer : CorpusTokenizer or FullTokenizer
    max_len : int
        Most tokens of a window, special ones included.
    windows : int
        How many windows of a text are read.

    Attributes
    ----------
    texts : list of int64 (T,)
        The distinct texts' token ids, without special tokens.
    hidden : list of float16 (T, D)
        Their hidden states, once `encode` has been called.
    lengths : int (N,)
        Tokens of each pair's longer text; batches of alike ones hold little padding.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[str, str]],
        label: np.ndarray | None,
        tokenizer: CorpusTokenizer | FullTokenizer,
        max_len: int,
        windows: int = WINDOWS,
    ) -> None:
        self.pad, self.cls, self.sep = (tokenizer.vocab[t] for t in ("[PAD]", "[CLS]", "[SEP]"))
        self.label = label
        self.room = max_len - 2  # tokens of a window
        self.texts: list[np.ndarray] = []
        self.hidden: list[np.ndarray] = []
        numbers: dict[str, int] = {}

        def number(text: str) -> int:
            if text not in numbers:
                numbers[text] = len(self.texts)
                ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
                self.texts.append(np.array(ids[: windows * self.room], np.int64))
            return numbers[text]

        self.rows = np.array([(number(a), number(b)) for a, b in pairs]).reshape(-1, 2)
        sizes = np.array([len(text) for text in self.texts], np.int64)
        self.lengths = sizes[self.rows].max(1) if len(self.rows) else sizes

    def __len__(self) -> int:
        return len(self.rows)

    @torch.inference_mode()
    def encode(self, transformer: models.Transformer, precision: train.Precision) -> None:
        """Fill ``hidden``: encode each text in windows, [CLS] tokens [SEP].

        ``transformer`` is in evaluation mode.
        """
        device = next(transformer.parameters()).device
        windows = [
            (number, text[start : start + self.room])
            for number, text in enumerate(self.texts)
            for start in range(0, len(text), self.room)
        ]
        dim = transformer.embed.tok_embed.embedding_dim
        found = [np.empty((0, dim), np.float16)] * len(windows)
        # Windows of about the same length together, so that little is padding.
        order = np.argsort([len(window) for _, window in windows], kind="stable")
        batches = np.split(order, range(ENCODED, len(order), ENCODED))
        for some in tqdm(batches, "encoding", unit="batch", disable=None):
            if not len(some):
                continue
            ids = np.full((len(some), len(windows[some[-1]][1]) + 2), self.pad, np.int64)
            mask = np.zeros_like(ids)
            for row, at in enumerate(some):
                window = windows[at][1]
                ids[row, : len(window) + 2] = [self.cls, *window, self.sep]
                mask[row, : len(window) + 2] = 1
            x, used = (torch.from_numpy(array).to(device) for array in (ids, mask))
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                h = transformer(x, torch.zeros_like(x), used).to(torch.float16).cpu().numpy()
            for row, at in enumerate(some):
                found[at] = h[row, 1 : len(windows[at][1]) + 1].copy()
        parts: list[list[np.ndarray]] = [[np.empty((0, dim), np.float16)] for _ in self.texts]
        for (number, _), h in zip(windows, found, strict=True):
            parts[number].append(h)
        self.hidden = [np.concatenate(part) for part in parts]

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the pairs ``rows``, padded to the longest text.

        Returns
        -------
        dict of arrays
            ``input_ids``, ``input_mask`` : int64 (B, 2, T). ``hidden`` : float16 (B, 2, T, D).
            ``label`` : int64 (B,), 0 where there are none. ``weight`` : float32 (B,), 1 / B.
        """
        longest = max(1, int(self.lengths[rows].max()))
        ids = np.full((len(rows), 2, longest), self.pad, np.int64)
        mask = np.zeros_like(ids)
        hidden = np.zeros((*ids.shape, self.hidden[0].shape[1]), np.float16)
        for i, pair in enumerate(self.rows[rows]):
            for j, number in enumerate(pair):
                length = len(self.texts[number])
                ids[i, j, :length] = self.texts[number]
                mask[i, j, :length] = 1
                hidden[i, j, :length] = self.hidden[number]
        label = np.zeros(len(rows), np.int64) if self.label is None else self.label[rows]
        weight = np.full(len(rows), 1 / len(rows), np.float32)
        return dict(input_ids=ids, input_mask=mask, hidden=hidden, label=label, weight=weight)


class Comparer(nn.Module):
    """A comparison of two texts by their tokens' matches, on top of BERT.

    A token is its hidden state beside a random vector of its own: pre-training draws rare words
    together, whose contexts are alike, but "which word" is what tells two functions apart. The
    similarity of two tokens is the cosine of their projections. What is classified are the texts'
    sizes and averages, both under learned weights of the tokens, of two things: each token's best
    match in the other text, and how much of the token the other text matches when no token is used
    twice.

    BERT and the random vectors are not trained (BERT, section 5.3, the feature-based approach):
    some hundred functions' names are learnt by heart sooner than how to compare. So hidden states
    are computed once (`ComparisonData.encode`, with this ``transformer``) and given to `forward`.

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

    def forward(self, input_ids: Tensor, input_mask: Tensor, hidden: Tensor) -> Tensor:
        """int64 (B, 2, T), (B, 2, T), float (B, 2, T, D) -> logits (B, labels)"""
        with torch.autocast(input_ids.device.type, enabled=False):
            features = self.features(self.tokens(input_ids, hidden), input_mask.bool())
            self.norm.train(self.training and len(features) > 1)  # one example has no variance
            return self.classifier(self.drop(F.gelu(self.combine(self.norm(features)))))

    def tokens(self, input_ids: Tensor, hidden: Tensor) -> Tensor:
        """int64 (...), float (..., D) -> float32 (..., 2 D)"""
        return torch.cat([hidden.float(), self.identity(input_ids)], -1)

    def features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """float32 (B, 2, T, 2 D), bool (B, 2, T) -> (B, 8 KINDS)"""
        a, b = F.normalize(self.project(tokens), dim=-1).unbind(1)  # (B, T, D) each
        weight = self.importance(tokens)  # (B, 2, T, KINDS)
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
    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Let ``project`` and ``importance`` begin with inputs of mean 0 and variance 1.

        Hidden states of a pre-trained BERT share one large direction, which would make any two
        tokens alike. Only the weights' start is changed: a data-dependent initialisation
        (Salimans and Kingma, 2016, section 3, https://arxiv.org/abs/1602.07868).

        Parameters
        ----------
        batches : iterable of (int64 (T,), float (T, D))
            Token ids and hidden states of some texts.
        """
        n, total, squares = 0, 0.0, 0.0
        for input_ids, hidden in batches:
            tokens = self.tokens(input_ids, hidden).double()
            n, total = n + len(tokens), total + tokens.sum(0)
            squares = squares + tokens.square().sum(0)
        if n == 0:  # texts without tokens
            return
        mean = total / n
        deviation = (squares / n - mean.square()).clamp(min=1e-6).sqrt()
        for layer in (self.project, self.importance):
            layer.weight /= deviation.float()
            layer.bias -= layer.weight @ mean.float()


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
