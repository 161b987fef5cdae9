"""The objectives of the encoder's training: each is a loss of a batch of functions.

`Masked` and `Twins` need no symbols, so they are for pre-training; `Same` is the contrast of
functions of one name.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from encoder.corpus import Build, Corpus
from encoder.inputs import Inputs, ranges
from encoder.network import Network, View

SCALE = 20.0  # of cosines in the contrast: one over the temperature
WORDS_LEFT_OUT = 0.3  # of a function's bag, at random, each time it is encoded
MASKED = 0.2  # share of instructions that are masked
MIN_BLOCKS = 3  # functions with fewer are often alike, so most are left out
SMALL = 0.3  # share of them that is drawn
FEW = 4  # pairs; two builds that have fewer are not drawn
TRIED = 20  # programs, until two are found that have enough
VIEWS = (View(), View(names=False, around=False), View(around=False))
SHARES = (0.5, 0.4, 0.1)  # of the batches that are read in each of these views

OBJECTIVES: dict[str, type["Objective"]] = {}  # by key; filled by the classes' definition


class Data(NamedTuple):
    """The corpus, what the network reads of it, and the programs with two builds or more."""

    corpus: Corpus
    inputs: Inputs
    programs: list[list[Build]]


class Objective:
    """How to pair functions of two builds, and a loss; subclasses with a key are registered."""

    key: str

    def __init_subclass__(cls) -> None:
        if "key" in vars(cls):
            OBJECTIVES[cls.key] = cls

    @staticmethod
    def pairs(corpus: Corpus, a: Build, b: Build) -> np.ndarray:
        """Return the pairs that may be drawn of two builds, int64 (k, 2)."""
        raise NotImplementedError

    @staticmethod
    def loss(network: Network, data: Data, pairs: np.ndarray, view: View) -> Tensor:
        """Return the loss of pairs (n, 2), where -1 means that there is no partner."""
        raise NotImplementedError


class Same(Objective):
    """Symmetric InfoNCE: a function is nearer to its partner than to all others of the batch.

    References
    ----------
    van den Oord et al., "Contrastive Predictive Coding", 2018, https://arxiv.org/abs/1807.03748
    """

    key = "same"
    pairs = staticmethod(Corpus.same)

    @staticmethod
    def loss(network: Network, data: Data, pairs: np.ndarray, view: View) -> Tensor:
        there = pairs >= 0
        vectors = [
            network(data.inputs, pairs[there[:, i], i], view, WORDS_LEFT_OUT) for i in (0, 1)
        ]
        both = there.all(1)
        row = [np.cumsum(there[:, i])[both] - 1 for i in (0, 1)]
        loss = vectors[0].new_zeros(())
        for i, j in ((0, 1), (1, 0)):
            others = pairs[there[:, j], j]
            with torch.autocast(vectors[i].device.type, enabled=False):  # halves are too coarse
                logits = SCALE * vectors[i][network.on(row[i])] @ vectors[j].T
            # A function that reads like the partner, or has its name, is no negative.
            alike = _alike(data.corpus, pairs[both, j], others)
            alike[np.arange(both.sum()), row[j]] = False
            logits = logits.masked_fill(network.on(alike), -1e4)
            loss = loss + F.cross_entropy(logits, network.on(row[j])) / 2
        return loss


class Twins(Same):
    """The same of functions that are twins by their names, so that no symbol is needed."""

    key = "twins"
    pairs = staticmethod(Corpus.twins)


class Masked(Objective):
    """Masked instructions: say which words stood at random places.

    A word is to be told from all other words of the masked places of the batch.
    """

    key = "masked"
    pairs = staticmethod(Corpus.twins)

    @staticmethod
    def loss(network: Network, data: Data, pairs: np.ndarray, view: View) -> Tensor:
        inputs = data.inputs
        functions = pairs[:, 0][pairs[:, 0] >= 0]
        bags = network.bags(inputs, functions)
        embed = network.transformer.embed
        found, rows, owners, n = [], [], [], 0
        for some, length in network.chunks(inputs, functions):
            x, place = network.positions(inputs, functions[some], length, bags[some], view)
            masked = (torch.rand(len(place)) < MASKED).numpy()
            at = network.on(place[masked])
            x.flatten(0, 1)[at] = embed.mask.to(x)
            h, _ = network.states(x, length, view)
            found.append(h.flatten(0, 1)[at].float())
            line = inputs.line[ranges(inputs.offsets[functions[some]], length)[masked]]
            size = np.diff(inputs.of_line.indptr)[line]
            rows.append(inputs.of_line.indices[ranges(inputs.of_line.indptr[line], size)])
            owners.append(n + np.repeat(np.arange(len(line)), size))
            n += len(line)
        words, word = np.unique(np.concatenate(rows), return_inverse=True)
        h = network.predict(torch.cat(found))
        logits = (h @ network.table[network.on(words.astype(np.int64))].T).log_softmax(1)
        owner = network.on(np.concatenate(owners))
        return -logits[owner, network.on(word)].mean()


def _alike(corpus: Corpus, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether functions have one name or the same instructions, bool (n, m)."""
    label = corpus.label[first][:, None]
    named = (label == corpus.label[second]) & (label >= 0)
    return named | (corpus.content[first][:, None] == corpus.content[second])


def draw(data: Data, objective: type[Objective], size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw pairs from two programs, and functions of the same builds that have no partner.

    Returns
    -------
    int64 (n, 2)
        ``size`` rows, or what there is; a quarter of them has one function only, and -1 in the
        place of the other.
    """
    corpus, rows = data.corpus, []
    sizes = np.array([builds[0].last - builds[0].first for builds in data.programs]) ** 0.5
    count = min(TRIED, len(sizes))
    programs = rng.choice(len(sizes), count, replace=False, p=sizes / sizes.sum())
    wanted, parts = size, min(2, len(sizes))
    for program in programs.tolist():
        builds = data.programs[program]
        a, b = (builds[i] for i in rng.choice(len(builds), 2, replace=False))
        pairs = objective.pairs(corpus, a, b)
        small = corpus.blocks[pairs].min(1) < MIN_BLOCKS
        pairs = pairs[~small | (rng.random(len(pairs)) < SMALL)]
        if len(pairs) < FEW:
            continue
        room = wanted // parts
        pairs = rng.permutation(pairs)[: room - room // 4]
        rows.append(pairs)
        for side, build in enumerate((a, b)):
            others = np.setdiff1d(np.arange(build.first, build.last), pairs[:, side])
            some = rng.permutation(others)[: (room - len(pairs) + side) // 2]
            rows.append(np.insert(some[:, None], 1 - side, -1, axis=1))
        wanted, parts = size - sum(map(len, rows)), parts - 1
        if not parts:
            break
    return np.concatenate([np.zeros((0, 2), np.int64), *rows])
