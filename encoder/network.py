"""The encoder as a torch module: a transformer over instructions, a bag of words, and a sketch.

The input of the transformer at each position is an instruction: the sum of the vectors of its
words. Two more positions hold the words of the functions called and of the callers. A function's
vector has two parts. The learned part is the mean of the transformer's hidden states plus the sum
of the vectors of all words of the function. The weights after the transformer start at zero, so
that training starts with the bag of words alone. The second part is a sketch of the exact words,
because names and numbers that occur in no training program have no vector of their own. Only its
weight is learned.
"""

import dataclasses
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from encoder.inputs import AROUND, CONTEXT, GROUPS, NAMES, NEAR, UP, Inputs
from features.words import LONGEST, ranges

# Number of functions of similar length computed at a time; on a GPU four times as many.
TOGETHER = 64


@dataclasses.dataclass(frozen=True)
class View:
    """Which words may be used: names (imports, strings), and words of callees and callers."""

    names: bool = True
    around: bool = True

    @property
    def groups(self) -> np.ndarray:
        """Which groups of words may be used, bool (len(GROUPS),)."""
        return (self.names | ~NAMES) & (self.around | ~AROUND)


class WordSums(nn.Module):
    """The embeddings of a `models.Transformer` whose inputs are sums of vectors already."""

    def __init__(self, cfg: models.Config, rows: int) -> None:
        super().__init__()
        self.words = nn.Embedding(rows, cfg.dim)
        self.seg_embed = nn.Embedding(3, cfg.dim)
        self.mask = nn.Parameter(torch.zeros(cfg.dim))
        self.norm = models.LayerNorm(cfg.dim)
        self.p_drop = cfg.p_drop_hidden

    def forward(self, x: Tensor, seg: Tensor) -> Tensor:
        """float (B, S, D), (B, S) -> (B, S, D)"""
        h = self.norm(x + self.seg_embed(seg))
        return models.dropout(h, self.p_drop if self.training else 0.0)


class Network(nn.Module):
    """Turns functions into vectors of length 1, as the top of this file describes.

    Parameters
    ----------
    cfg : models.Config
        Sizes of the transformer.
    rows : int
        Number of rows of the table of words (`Vocabulary.rows`).
    """

    def __init__(self, cfg: models.Config, rows: int) -> None:
        super().__init__()
        self.transformer = models.Transformer(cfg, WordSums(cfg, rows))
        nn.init.normal_(self.table, std=cfg.dim**-0.5)
        self.gain = nn.Parameter(torch.sign(torch.randn(len(GROUPS), cfg.dim)))
        self.out = nn.Linear(cfg.dim, cfg.dim, bias=False)
        nn.init.zeros_(self.out.weight)
        self.reads_order = True  # False: without the transformer, many times faster
        self.predict = nn.Linear(cfg.dim, cfg.dim)  # predicts masked words, in pre-training only
        self.share = nn.Parameter(torch.tensor([0.7]))  # length of the sketch; the rest has 1
        self.longest = LONGEST  # maximum number of instructions per function in training

    @property
    def embed(self) -> WordSums:
        """The first layer."""
        return cast(WordSums, self.transformer.embed)

    @property
    def table(self) -> Tensor:
        """The vectors of words, float32 (R, D)."""
        return self.embed.words.weight

    def forward(
        self,
        inputs: Inputs,
        functions: np.ndarray,
        view: View,
        left_out: float = 0.0,
    ) -> Tensor:
        """Encode some functions.

        Parameters
        ----------
        inputs : Inputs
        functions : int64 (N,)
            Numbers of functions of ``inputs``.
        view : View
        left_out : float
            Share of each bag's words to leave out at random.

        Returns
        -------
        float32 (N, D + SKETCH)
            Vectors of length 1.
        """
        bags = self.bags(inputs, functions, left_out)  # (N, G, D)
        with torch.autocast(bags.device.type, enabled=False):
            read = self.on(view.groups).to(bags)
            vectors = (bags * (self.gain * read[:, None])).sum(1)
        if self.reads_order:
            pooled = torch.cat([h for _, h in self.pooled(inputs, functions, bags, view)])
            order = np.concatenate([some for some, _ in self.chunks(inputs.length(functions))])
            vectors = vectors + self.out(pooled[self.on(np.argsort(order))]).float()
        exact = self.on(inputs.sketches(view.groups)[functions]).float() * self.share
        return F.normalize(torch.cat([F.normalize(vectors, dim=1), exact], 1), dim=1)

    def on(self, array: np.ndarray) -> Tensor:
        """Return an array as a tensor on the network's device."""
        return torch.from_numpy(array).to(self.table.device, non_blocking=True)

    def bags(self, inputs: Inputs, functions: np.ndarray, left_out: float = 0.0) -> Tensor:
        """Return the weighted sum of each group's words, float32 (N, len(GROUPS), D)."""
        rows = inputs.bags
        segment = (functions[:, None] * len(GROUPS) + np.arange(len(GROUPS))).ravel()
        start, size = rows.indptr[segment], np.diff(rows.indptr)[segment]
        place = ranges(start, size)
        weights = self.on(rows.data[place])
        if left_out:
            weights = weights * (torch.rand(len(weights), device=weights.device) > left_out)
        return self.sum_words(rows.indices[place], size, weights).unflatten(0, (-1, len(GROUPS)))

    def sum_words(self, row: np.ndarray, size: np.ndarray, weights: Tensor) -> Tensor:
        """Return weighted sums of words' vectors; the first size[0] words are the first sum."""
        return F.embedding_bag(
            self.on(row.astype(np.int64)),
            self.table,
            self.on(np.cumsum(size) - size),
            mode="sum",
            per_sample_weights=weights,
        )

    def chunks(self, length: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Group sequences of similar length.

        ``length`` is the number of each one's instructions, int64 (N,).

        Returns
        -------
        list of (int64 array, int64 array)
            For each group, indices of its sequences, and their lengths; in training at most
            ``longest``.
        """
        if self.training:
            length = np.minimum(length, self.longest)
        order = np.argsort(length, kind="stable")
        size = 4 * TOGETHER if self.table.is_cuda else TOGETHER
        return [(some, length[some]) for some in np.split(order, range(size, len(order), size))]

    def pooled(
        self, inputs: Inputs, functions: np.ndarray, bags: Tensor, view: View
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield the indices of each chunk's functions, and their mean hidden states (n, D)."""
        context = self.context(bags, view)
        for some, length in self.chunks(inputs.length(functions)):
            at = ranges(inputs.offsets[functions[some]], length)
            x, _ = self.positions(inputs, at, length, context[some], view)
            h, mask = self.states(x, length, view)
            count = mask.sum(1, keepdim=True).clamp(min=1)
            yield some, (h.float() * mask[..., None]).sum(1) / count

    def context(self, bags: Tensor, view: View) -> Tensor:
        """Return the two positions before the instructions: (N, len(GROUPS), D) -> (N, 2, D)."""
        read = self.on(view.groups).to(bags)[:, None]
        return torch.stack([(bags * read)[:, groups].sum(1) for groups in (NEAR, UP)], 1)

    def positions(
        self, inputs: Inputs, at: np.ndarray, length: np.ndarray, context: Tensor, view: View
    ) -> tuple[Tensor, np.ndarray]:
        """Return the transformer's input for n sequences of instructions.

        Parameters
        ----------
        inputs : Inputs
        at : int64 (sum of ``length``,)
            The position in ``inputs`` of each instruction of the first sequence, of the second, ...
        length : int64 (n,)
            Number of instructions of each sequence.
        context : float32 (n, 2, D)
            The positions before them.
        view : View

        Returns
        -------
        float (n, S, D)
            The sum of the vectors of the words at each position.
        int64 (sum of ``length``,)
            Where each instruction is, as an index into the first two dimensions, flattened.
        """
        width = CONTEXT + int(length.max(initial=0))
        line, number = np.unique(inputs.line[at], return_inverse=True)
        of_line = inputs.of_line
        size = np.diff(of_line.indptr)[line]
        place = ranges(of_line.indptr[line], size)
        sums = self.sum_words(of_line.indices[place], size, self.on(of_line.data[place]))
        flat = sums[self.on(number)]
        if view.names:
            size = np.diff(inputs.names.indptr)[at]
            named = np.flatnonzero(size)
            place = ranges(inputs.names.indptr[at[named]], size[named])
            weights = self.on(inputs.names.data[place])
            names = self.sum_words(inputs.names.indices[place], size[named], weights)
            flat = flat.index_add(0, self.on(named), names.to(flat))
        row = np.repeat(np.arange(len(length)), length)
        column = CONTEXT + np.arange(len(at)) - np.repeat(np.cumsum(length) - length, length)
        x = flat.new_zeros(len(length), width, flat.shape[1])
        x = x.index_put((self.on(row), self.on(column)), flat)
        x[:, :CONTEXT] = context.to(x)
        return x, row * width + column

    def states(self, x: Tensor, length: np.ndarray, view: View) -> tuple[Tensor, Tensor]:
        """Return hidden states (n, S, D), and 1 for what is not padding, float (n, S)."""
        at = torch.arange(x.shape[1], device=x.device)
        mask = (at < self.on(length)[:, None] + CONTEXT) & ((at >= CONTEXT) | view.around)
        mask[:, 0] |= ~mask.any(1)  # a function without instructions still needs one position
        seg = torch.where(at < CONTEXT, at + 1, 0).expand(len(x), -1)
        return self.transformer(x, seg, mask), mask.float()
