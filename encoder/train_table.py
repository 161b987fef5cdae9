"""Train the table of words: functions of one name, in any two builds, lie near each other.

Symmetric InfoNCE: each function of a batch shall be nearer to its partner than to the other
functions of the partner's build, and the other way round.
"""

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

import utils
from binary.symbols import source_names
from encoder.table import WordVectors, choose_words, known_words
from features.extract import Features
from terminal import progress

SMALL = 0.3  # weight in the loss of functions with fewer than MIN_BLOCKS blocks
MIN_BLOCKS = 3
WORDS_LEFT_OUT = 0.3  # of a function's words, at random, each time it is encoded
NEGATIVES = 64  # functions without a partner, beside those of a batch
FEW = 8  # two programs that share fewer names teach nothing
COSINE_SCALE = 14.0  # of the cosines in the loss: one over the temperature
NO_SOURCE = {"main", "usage"}  # names that say nothing across programs


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


def loss_weights(code: Features) -> np.ndarray:
    """Return how much each function counts in a loss, float32 (F,): small ones are often alike."""
    return np.where(code.sizes < MIN_BLOCKS, SMALL, 1).astype(np.float32)


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
