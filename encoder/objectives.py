"""The objectives of the encoder's training: each draws a batch, and computes a loss from it.

`Masked`, `Walked` and `Twins` need no symbols, so they can pre-train on stripped programs. `Same`
learns from functions that have the same name in two builds.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import utils
from encoder.corpus import Build, Corpus
from encoder.inputs import CONTEXT, Inputs
from encoder.network import Network, View
from features.words import ranges
from tasks.contrast import info_nce

SCALE = 20.0  # factor of cosines in the contrastive loss: one over the temperature
WORDS_LEFT_OUT = 0.3  # share of a bag's words, at random, each time a function is encoded
MASKED = 0.2  # share of instructions that are masked
MIN_BLOCKS = 3  # functions with fewer blocks often look alike, so most are left out
SMALL = 0.3  # share of these small functions that is kept
FEW = 4  # two builds with fewer pairs than this are not used
TRIED = 20  # maximum number of programs to look at, until two have enough pairs
REDRAWN = 20  # times that other builds are drawn if none of them has enough
VIEWS = (View(), View(names=False, around=False), View(around=False))
SHARES = (0.5, 0.4, 0.1)  # share of the batches that are encoded in each of these views

OBJECTIVES: dict[str, type["Objective"]] = {}  # by key; each subclass adds itself


class Data(NamedTuple):
    """The corpus, the network's inputs for it, and the builds of each program that has several."""

    corpus: Corpus
    inputs: Inputs
    programs: list[list[Build]]


class Objective:
    """What a batch consists of, and a loss; subclasses with a key are registered.

    By default a batch is pairs of functions of two builds, as `draw` returns them.
    """

    key: str
    needs_names = False  # of functions, in two builds

    def __init_subclass__(cls) -> None:
        if "key" in vars(cls):
            OBJECTIVES[cls.key] = cls

    @staticmethod
    def pairs(corpus: Corpus, a: Build, b: Build, /) -> np.ndarray:
        """Return the pairs of functions of two builds that may be drawn, int64 (k, 2)."""
        raise NotImplementedError

    @classmethod
    def draw(cls, data: Data, size: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the rows of a batch."""
        return draw(data, cls.pairs, size, rng)

    @staticmethod
    def loss(network: Network, data: Data, rows: np.ndarray, view: View) -> Tensor:
        """Return the loss of a batch; in pairs, -1 means that there is no partner."""
        raise NotImplementedError


class Same(Objective):
    """A function should be nearer to its partner than to the rest of the batch, and vice versa."""

    key = "same"
    needs_names = True
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
            # A function with the partner's name or instructions is not a negative example.
            alike = network.on(_alike(data.corpus, pairs[both, j], others))
            x, partner = vectors[i][network.on(row[i])], network.on(row[j])
            loss = loss + info_nce(x, vectors[j], SCALE, partner, alike).mean() / 2
        return loss


class Twins(Same):
    """The same loss for twins (`Corpus.twins`), so that no symbols are needed."""

    key = "twins"
    needs_names = False
    pairs = staticmethod(Corpus.twins)


class Masked(Objective):
    """Masked instructions: predict the words of instructions that were masked at random.

    The choices are all words of the batch's masked instructions.
    """

    key = "masked"
    pairs = staticmethod(Corpus.twins)

    @staticmethod
    def loss(network: Network, data: Data, pairs: np.ndarray, view: View) -> Tensor:
        functions = pairs[:, 0][pairs[:, 0] >= 0]
        bags = network.bags(data.inputs, functions)
        context = network.context(bags, view)
        return predict_masked(
            network,
            data.inputs,
            [
                (ranges(data.inputs.offsets[functions[some]], length), length, context[some])
                for some, length in network.chunks(data.inputs.length(functions))
            ],
            view,
        )


class Walked(Objective):
    """Masked instructions of paths that cross from one build to the other, and back.

    A path goes from one build's code to the other's where both use the same import or string. So
    what surrounds a masked instruction is the same source by another compiler or for another
    processor: parallel text, as multilingual models of language learn from.
    """

    key = "walks"

    @classmethod
    def draw(cls, data: Data, size: int, rng: np.random.Generator) -> np.ndarray:
        """Draw paths and the numbers of their crossings, int64 (n, 2).

        There are half as many as rows, because `Masked` reads one side of each pair.
        """
        n = size // 2
        return np.stack([rng.integers(len(data.corpus.walks), size=n), rng.integers(64, size=n)], 1)

    @staticmethod
    def loss(network: Network, data: Data, rows: np.ndarray, view: View) -> Tensor:
        view = View(view.names, around=False)  # a path has no callers of its own
        corpus, most = data.corpus, network.longest
        at = [
            corpus.walks.positions(walk, corpus.first_block, crossing, most)
            for walk, crossing in rows.tolist()
        ]
        none = network.table.new_zeros(len(at), CONTEXT, network.table.shape[1])
        lengths = np.array([len(some) for some in at])
        return predict_masked(
            network,
            data.inputs,
            [
                (np.concatenate([at[i] for i in some.tolist()]), length, none[some])
                for some, length in network.chunks(lengths)
            ],
            view,
        )


def predict_masked(
    network: Network,
    inputs: Inputs,
    chunks: list[tuple[np.ndarray, np.ndarray, Tensor]],
    view: View,
) -> Tensor:
    """Mask instructions of sequences, and return the loss of predicting their words.

    ``chunks`` are arguments of `Network.positions`.
    """
    found, rows, owners, n = [], [], [], 0
    for at, length, context in chunks:
        x, place = network.positions(inputs, at, length, context, view)
        masked = (torch.rand(len(place)) < MASKED).numpy()
        hidden = network.on(place[masked])
        x.flatten(0, 1)[hidden] = network.embed.mask.to(x)
        h, _ = network.states(x, length, view)
        found.append(h.flatten(0, 1)[hidden].float())
        line = inputs.line[at[masked]]
        size = np.diff(inputs.of_line.indptr)[line]
        rows.append(inputs.of_line.indices[ranges(inputs.of_line.indptr[line], size)])
        owners.append(n + np.repeat(np.arange(len(line)), size))
        n += len(line)
    words, word = np.unique(np.concatenate(rows), return_inverse=True)
    h = network.predict(torch.cat(found))
    if not n:
        return h.sum() * 0  # a small batch, of which nothing was masked: the mean would be NaN
    logits = (h @ network.table[network.on(words.astype(np.int64))].T).log_softmax(1)
    owner = network.on(np.concatenate(owners))
    return -logits[owner, network.on(word)].mean()


def _alike(corpus: Corpus, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return whether functions have the same name or the same instructions, bool (n, m)."""
    label = corpus.label[first][:, None]
    named = (label == corpus.label[second]) & (label >= 0)
    return named | (corpus.content[first][:, None] == corpus.content[second])


def draw(
    data: Data,
    pairs_of: Callable[[Corpus, Build, Build], np.ndarray],
    size: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw a batch: pairs of functions from two programs, and functions without a partner.

    Parameters
    ----------
    data : Data
    pairs_of : callable
        (corpus, build, build) -> the pairs of their functions, int64 (k, 2).
    size : int
        Number of rows; fewer if the programs have too few functions.
    rng : numpy.random.Generator

    Returns
    -------
    int64 (n, 2)
        Numbers of functions. A quarter of the rows has only one function, and -1 for the other.

    Raises
    ------
    utils.UserError
        No two builds have enough pairs.
    """
    sizes = np.array([builds[0].last - builds[0].first for builds in data.programs]) ** 0.5
    for _ in range(REDRAWN):
        order = rng.choice(len(sizes), min(TRIED, len(sizes)), replace=False, p=sizes / sizes.sum())
        rows: list[np.ndarray] = []
        wanted, parts = size, min(2, len(sizes))
        for program in order.tolist():
            found = _draw_program(data, program, pairs_of, wanted // parts, rng)
            rows += found
            if found:
                wanted, parts = size - sum(map(len, rows)), parts - 1
            if not parts:
                break
        if rows:
            return np.concatenate(rows)
    raise utils.UserError(
        f"two builds of a program were drawn {REDRAWN * len(order)} times, and never had {FEW} "
        "functions that are known to be the same; give builds with symbols, or more builds"
    )


def _draw_program(
    data: Data,
    program: int,
    pairs_of: Callable[[Corpus, Build, Build], np.ndarray],
    room: int,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Draw ``room`` rows from two builds of a program; none if they have too few pairs."""
    corpus, builds = data.corpus, data.programs[program]
    a, b = (builds[i] for i in rng.choice(len(builds), 2, replace=False))
    pairs = pairs_of(corpus, a, b)
    small = corpus.blocks[pairs].min(1) < MIN_BLOCKS
    pairs = pairs[~small | (rng.random(len(pairs)) < SMALL)]
    if len(pairs) < FEW:
        return []
    pairs = rng.permutation(pairs)[: room - room // 4]
    rows = [pairs]
    for side, build in enumerate((a, b)):
        others = np.setdiff1d(np.arange(build.first, build.last), pairs[:, side])
        some = rng.permutation(others)[: (room - len(pairs) + side) // 2]
        rows.append(np.insert(some[:, None], 1 - side, -1, axis=1))
    return rows
