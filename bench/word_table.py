"""A peer of the encoder, which diff.py stood on before: a table with a vector for each word.

A function's vector is the weighed sum over its words. Symmetric InfoNCE trains the vectors so that
two builds of one source function are near each other: each function of a batch shall be nearer to
its partner than to the other functions of the partner's build, and the other way round.
"""

import dataclasses

import numpy as np
import pydantic
import scipy.sparse
import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

import utils
from binary.symbols import source_names
from features.extract import Features
from features.tfidf import DIMENSIONS, normalise
from features.words import GROUPS
from matching.training_pairs import loss_weights
from terminal import progress

OFFSET = {group: i * DIMENSIONS for i, group in enumerate(GROUPS)}
WORDS_LEFT_OUT = 0.3  # of a function's words, at random, each time it is encoded
NEGATIVES = 64  # functions without a partner, beside those of a batch
FEW = 8  # two programs that share fewer names teach nothing
COSINE_SCALE = 14.0  # of the cosines in the loss: one over the temperature
NO_SOURCE = {"main", "usage"}  # names that say nothing across programs


@dataclasses.dataclass
class WordVectors:
    """V words with vectors of D dimensions.

    Attributes
    ----------
    words : int32 (V,)
        A word's column in `features` plus its group's OFFSET; sorted.
    idf : float32 (V,)
        How rare each word is in the training programs.
    table : float16 (V, D)
    """

    words: np.ndarray
    idf: np.ndarray
    table: np.ndarray

    def __call__(self, code: Features) -> tuple[np.ndarray, np.ndarray]:
        """Encode the functions of a binary.

        Returns
        -------
        float32 (F, D)
            Vectors of length 1; zero for functions without a known word.
        float32 (F,)
            The share of each function's words that is known.
        """
        rows = known_words(code, self.words, self.idf)
        vectors = rows @ self.table.astype(np.float32)
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        had = sum(np.diff(code.words[group].indptr) for group in GROUPS)
        known = np.diff(rows.indptr) / np.maximum(had, 1)
        return vectors / np.maximum(length, 1e-6), known.astype(np.float32)


def known_words(code: Features, words: np.ndarray, idf: np.ndarray) -> scipy.sparse.csr_matrix:
    """Return the weights of known words, csr float32 (F, V); each group has length 1."""
    parts = []
    for group in GROUPS:
        low, high = np.searchsorted(words, [OFFSET[group], OFFSET[group] + DIMENSIONS])
        m = code.words[group]
        if low == high:
            continue
        column = words[low:high] - OFFSET[group]
        place = np.minimum(np.searchsorted(column, m.indices), len(column) - 1)
        weight = (1 + np.log(m.data)) * idf[low:high][place] * (column[place] == m.indices)
        part = scipy.sparse.csr_matrix((weight, place, m.indptr.copy()), (m.shape[0], high - low))
        part.eliminate_zeros()
        parts.append(normalise(part))
    if not parts:
        return scipy.sparse.csr_matrix((code.functions, len(words)), dtype=np.float32)
    return scipy.sparse.hstack(parts, "csr", np.float32)


def choose_words(programs: list[list[Features]], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose the words that occur in the most programs, at least two, and weigh them.

    Parameters
    ----------
    programs : list of list of Features
        Builds of each program.
    size : int
        Maximum number of words.

    Returns
    -------
    int32 (V,), float32 (V,)
        `WordVectors.words` and `WordVectors.idf`.
    """
    total = len(GROUPS) * DIMENSIONS
    in_programs = np.zeros(total, np.int64)
    in_functions = np.zeros(total, np.int64)
    n = 0
    for codes in programs:
        met = np.zeros(total, bool)
        for code in codes:
            n += code.functions
            for group in GROUPS:
                columns = code.words[group].indices + OFFSET[group]
                met[columns] = True
                np.add.at(in_functions, columns, 1)
        in_programs += met
    often = np.lexsort((-in_functions, -in_programs))[:size]
    words = np.sort(often[in_programs[often] >= min(2, len(programs))])
    idf = np.log((1 + n) / (1 + in_functions[words])) + 1
    return words.astype(np.int32), idf.astype(np.float32)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=utils.STRICT)
class TableConfig:
    """How to train a table of words; all keys are needed.

    Attributes
    ----------
    seed : int
        Of weights and of all choices.
    words, dimensions : int
        Size of the table.
    encoder_steps, encoder_batch : int
        How long it is trained, and on how many pairs of functions at once.
    encoder_lr : float
        Of Adam; goes up and down once.
    """

    seed: pydantic.NonNegativeInt
    words: PositiveInt
    dimensions: PositiveInt
    encoder_steps: PositiveInt
    encoder_batch: PositiveInt
    encoder_lr: PositiveFloat


class Learner:
    """One build as the encoder meets it: weights of known words, and functions by name."""

    def __init__(self, code: Features, words: np.ndarray, idf: np.ndarray) -> None:
        self.rows = known_words(code, words, idf)
        self.where = {name: f for f, name in enumerate(source_names(code.analysis)) if name}
        self.weight = loss_weights(code)

    def encode(self, functions: np.ndarray, table: Tensor, rng: np.random.Generator) -> Tensor:
        """Encode functions with some of their words left out, float (n, D) of length 1."""
        rows = self.rows[functions]
        kept = (rng.random(rows.nnz) > WORDS_LEFT_OUT).astype(np.float32)
        indices = torch.from_numpy(rows.indices.astype(np.int64))
        offsets = torch.from_numpy(rows.indptr[:-1].astype(np.int64))
        weights = torch.from_numpy(rows.data * kept)
        vectors = F.embedding_bag(indices, table, offsets, mode="sum", per_sample_weights=weights)
        return F.normalize(vectors, dim=1)


def train_encoder(programs: dict[str, list[Features]], cfg: TableConfig, what: str) -> WordVectors:
    """Train an encoder on pairs of builds, half of them of different programs.

    Each function of a batch shall be nearer to its partner than to the other functions of the
    partner's build, and the other way round.
    """
    utils.set_seed(cfg.seed)
    rng = np.random.default_rng(cfg.seed)
    words, idf = choose_words(list(programs.values()), cfg.words)
    builds = {}
    for program in sorted(programs):
        learners = [Learner(code, words, idf) for code in programs[program] if len(words)]
        learners = [learner for learner in learners if learner.where]  # others are stripped
        if len(learners) > 1:
            builds[program] = learners
    if not builds:
        return WordVectors(words[:0], idf[:0], np.zeros((0, cfg.dimensions), np.float16))
    table = (torch.randn(len(words), cfg.dimensions) / cfg.dimensions**0.5).requires_grad_()
    optimizer = torch.optim.Adam([table], cfg.encoder_lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, cfg.encoder_lr, total_steps=cfg.encoder_steps
    )
    for step in progress.bar(range(cfg.encoder_steps), desc=what):
        first, second, shared = choose_builds(builds, step % 2 == 1, rng)
        if not shared:
            continue
        shared = rng.permutation(shared)[: cfg.encoder_batch]
        sides = []
        for build in (first, second):
            inside = np.array([build.where[name] for name in shared])
            others = np.setdiff1d(list(build.where.values()), inside)
            others = rng.permutation(others)[:NEGATIVES]
            sides.append((inside, build.encode(np.append(inside, others), table, rng)))
        (a, x), (b, y) = sides
        n = len(a)
        target = torch.arange(n)
        weight = torch.from_numpy(np.minimum(first.weight[a], second.weight[b]))
        loss = sum(
            (F.cross_entropy(COSINE_SCALE * u[:n] @ v.T, target, reduction="none") * weight).sum()
            for u, v in ((x, y), (y, x))
        )
        optimizer.zero_grad()
        (loss / weight.sum()).backward()
        optimizer.step()
        schedule.step()
    return WordVectors(words, idf, table.detach().numpy().astype(np.float16))


def choose_builds(
    builds: dict[str, list[Learner]], across: bool, rng: np.random.Generator
) -> tuple[Learner, Learner, list[str]]:
    """Choose two builds, of one program or ``across`` two, and return the names they share."""
    names = list(builds)
    if across and len(names) > 1:
        for _ in range(20):
            p, q = (names[i] for i in rng.choice(len(names), 2, replace=False))
            pair = [builds[x][rng.integers(len(builds[x]))] for x in (p, q)]
            shared = sorted((pair[0].where.keys() & pair[1].where.keys()) - NO_SOURCE)
            if len(shared) >= FEW:
                return pair[0], pair[1], shared
    p = names[rng.integers(len(names))]
    first, second = (builds[p][i] for i in rng.choice(len(builds[p]), 2, replace=False))
    return first, second, sorted(first.where.keys() & second.where.keys())
