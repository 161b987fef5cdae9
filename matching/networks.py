"""Train the networks of diff.py to find a function's partner among its candidates, if any."""

import dataclasses

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

import utils
from matching.candidates import plausible
from matching.evidence import ROUNDS
from matching.model import Network
from matching.training_pairs import NONE, UNKNOWN, Pair
from terminal import progress

PASSES = 2  # how often the neighbour network is trained on its own matches


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=utils.STRICT)
class MatchingConfig:
    """Settings for training the networks; all keys are required.

    Attributes
    ----------
    seed : int
        Of the initial weights and of all choices.
    hidden : int
        Width of the networks' hidden layer.
    lr, weight_decay : float
        Settings of AdamW; the learning rate follows one cycle up and down.
    n_epochs : int
        Passes over all pairs in each training of a network.
    networks : int
        Number of networks of each kind, trained from different initial weights and then averaged.
    pairs : int
        Maximum number of pairs of builds of a program, chosen at random.
    """

    seed: pydantic.NonNegativeInt
    hidden: PositiveInt
    lr: PositiveFloat
    weight_decay: pydantic.NonNegativeFloat
    n_epochs: PositiveInt
    networks: PositiveInt
    pairs: PositiveInt


class Perceptron(nn.Module):
    """`matching.model.Network` as a trainable module."""

    mean: Tensor
    scale: Tensor

    def __init__(self, inputs: np.ndarray, hidden: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(inputs.mean(0)))
        self.register_buffer("scale", torch.from_numpy(inputs.std(0) + 1e-3))
        self.fc1 = nn.Linear(inputs.shape[1], hidden)
        self.fc2 = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, K) -> (n,)"""
        return self.fc2(F.relu(self.fc1((x - self.mean) / self.scale))).squeeze(-1)

    def network(self) -> Network:
        """Return the network as arrays."""
        parts = (self.mean, self.scale, self.fc1.weight, self.fc1.bias, self.fc2.weight[0])
        arrays = [part.detach().numpy() for part in (*parts, self.fc2.bias[0])]
        return Network(*arrays)


def log_shares(logit: Tensor, index: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Log-softmax over the candidates with the same index and "none", whose logit is 0.

    Parameters
    ----------
    logit : float (c,)
    index : int64 (c,)
        0..n - 1.

    Returns
    -------
    float (c,), float (n,)
        Log-probability of each candidate; log-probability of "none" for each index.
    """
    highest = logit.new_zeros(n).scatter_reduce(0, index, logit.detach(), "amax")
    e = (logit - highest[index]).exp()
    log_total = highest + ((-highest).exp().index_add(0, index, e)).log()
    return logit - log_total[index], -log_total


def contrastive_loss(logit: Tensor, pair: Pair) -> Tensor:
    """Cross-entropy of each function's partner among its candidates, from both sides.

    References
    ----------
    van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018,
    https://arxiv.org/abs/1807.03748 (InfoNCE); here with "none" as a further class.
    """
    loss = logit.new_zeros(())
    sides = (
        (pair.candidates.a, pair.partner_a, pair.weight_a),
        (pair.candidates.b, pair.partner_b, pair.weight_b),
    )
    for index, partner, weight in sides:
        of_candidate, of_none = log_shares(logit, torch.from_numpy(index), len(partner))
        found = torch.from_numpy(partner)
        value = torch.where(found >= 0, of_candidate[found.clamp(min=0)], of_none)
        used = torch.from_numpy(weight * (partner != UNKNOWN))
        loss = loss - (value * used).sum() / used.sum().clamp(min=1e-6)
    return loss


def train_networks(
    examples: list[tuple[np.ndarray, Pair]], cfg: MatchingConfig, what: str
) -> Network:
    """Train networks on (inputs float32 (n, K), the pair whose candidates they describe).

    Return their average as one network that contains all their hidden units. Averaging reduces the
    influence of the seed (Lakshminarayanan et al., "Deep Ensembles", 2017,
    https://arxiv.org/abs/1612.01474).
    """
    found = [
        train_network(examples, cfg, cfg.seed + i, f"{what} {i + 1} of {cfg.networks}")
        for i in range(cfg.networks)
    ]
    return dataclasses.replace(
        found[0],
        w1=np.concatenate([network.w1 for network in found]),
        b1=np.concatenate([network.b1 for network in found]),
        w2=np.concatenate([network.w2 for network in found]) / np.float32(len(found)),
        b2=np.asarray(np.mean([network.b2 for network in found], dtype=np.float32)),
    )


def train_network(
    examples: list[tuple[np.ndarray, Pair]], cfg: MatchingConfig, seed: int, what: str
) -> Network:
    """Train one network; ``seed`` determines its initial weights and the order of examples."""
    utils.set_seed(seed)
    rng = np.random.default_rng(seed)
    model = Perceptron(np.concatenate([x for x, _ in examples]), cfg.hidden)
    optimizer = torch.optim.AdamW(model.parameters(), cfg.lr, weight_decay=cfg.weight_decay)
    steps = cfg.n_epochs * len(examples)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, cfg.lr, total_steps=steps)
    with progress.bar(total=steps, desc=what) as bar:
        for _ in range(cfg.n_epochs):
            for i in rng.permutation(len(examples)):
                x, pair = examples[i]
                loss = contrastive_loss(model(torch.from_numpy(x)), pair)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    return model.network()


def train_similarity(pairs: list[Pair], cfg: MatchingConfig) -> Network:
    """Train the network that scores two functions without their neighbours."""
    return train_networks([(p.candidates.measures, p) for p in pairs], cfg, "similarity network")


def train_neighbours(pairs: list[Pair], similarity: Network, cfg: MatchingConfig) -> Network:
    """Train the network that also uses the matches around a pair.

    Its input depends on its own output in the previous round. So it is trained several times, each
    time on the rounds of the previously trained network (Ross et al., "DAgger", 2011,
    https://arxiv.org/abs/1011.0686).
    """
    parts = (plausible_part(pair, similarity) for pair in pairs)
    pairs = [part for part in parts if len(part.candidates.a)]
    scores = [similarity(pair.candidates.measures) for pair in pairs]
    examples = [
        (pair.evidence.columns(pair.candidates, s, s), pair)
        for pair, s in zip(pairs, scores, strict=True)
    ]
    network = train_networks(examples, cfg, "neighbour network")
    for _ in range(PASSES - 1):
        for pair, alone in zip(pairs, scores, strict=True):
            logit = pair.evidence.rounds(pair.candidates, alone, network, ROUNDS - 1)
            examples.append((pair.evidence.columns(pair.candidates, alone, logit), pair))
        network = train_networks(examples, cfg, "neighbour network")
    return network


def plausible_part(pair: Pair, similarity: Network) -> Pair:
    """Return the pair with only the candidates that take part in the neighbour rounds."""
    kept = plausible(pair.candidates, similarity(pair.candidates.measures))
    # The new index of each candidate; the last two entries are for UNKNOWN and NONE.
    place = np.append(np.where(kept, np.cumsum(kept) - 1, UNKNOWN), [UNKNOWN, NONE])
    return dataclasses.replace(
        pair,
        candidates=pair.candidates.only(kept),
        partner_a=place[pair.partner_a],
        partner_b=place[pair.partner_b],
    )
