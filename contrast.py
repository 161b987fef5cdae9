"""Train what diff.py scores functions with, on builds of programs with symbols.

    python experiment_data/build_packages.py
    python contrast.py                        # -> model/diff.safetensors

Two functions of two builds of a program are the same where their symbols have one name; symbols are
used for nothing else. Contrastive: each function shall find its partner among the functions most
like it in the other build, or that it has none there (symmetric InfoNCE; the negatives are hard by
choice of the candidates).
"""

import dataclasses
import itertools
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from tqdm import tqdm

import features
import gendata
import matching
import preprocessing
import samefunc
import similarity
import utils
from features import Code
from similarity import Candidates, Network

path = "experiment_data/packages/binaries/"  # builds: path/<build>/<program>
held_out = ["ed", "xargs"]  # programs that are only measured
train_cfg = "config/contrast.json"
outputDir = "output/"  # analysed binaries, shared with gendata.py
to = "model/diff.safetensors"
workers = os.cpu_count() or 1  # processes

SMALL = 0.3  # weight in the loss of functions with fewer than MIN_BLOCKS blocks
MIN_BLOCKS = 3
UNKNOWN, NONE = -2, -1  # instead of a partner's candidate
PASSES = 2  # over which the structure network meets its own matches

Names = str | list[str]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=utils.STRICT)
class Config:
    """How to train; all keys are needed.

    Attributes
    ----------
    seed : int
        Of weights and of the order of the pairs.
    hidden : int
        Width of the networks' one hidden layer.
    lr, weight_decay : float
        Of AdamW; the learning rate goes up and down once.
    n_epochs : int
        Passes over all pairs, of each training.
    """

    seed: pydantic.NonNegativeInt
    hidden: PositiveInt
    lr: PositiveFloat
    weight_decay: pydantic.NonNegativeFloat
    n_epochs: PositiveInt


@dataclasses.dataclass
class Pair:
    """Two builds of a program and what is true of them.

    Attributes
    ----------
    program : str
    candidates : Candidates
    surroundings : matching.Surroundings
    partner_a : int64 (F,)
        Of each function of the first build: the candidate that is its partner, NONE or UNKNOWN.
    partner_b : int64 (G,)
        Of each function of the second.
    weight_a, weight_b : float32 (F,), (G,)
    """

    program: str
    candidates: Candidates
    surroundings: matching.Surroundings
    partner_a: np.ndarray
    partner_b: np.ndarray
    weight_a: np.ndarray
    weight_b: np.ndarray


def main(
    path: str = path,
    held_out: Names = held_out,
    train_cfg: str = train_cfg,
    outputDir: str = outputDir,
    to: str = to,
    workers: PositiveInt = workers,
) -> int:
    """Train the networks of diff.py and write them as safetensors.

    Ends with exit code 3 when binaries were skipped.

    Parameters
    ----------
    path : str
        Folder whose sub-folders each hold one build of some programs, with symbols.
    held_out : str or list of str
        Programs that are measured and not trained on: --held_out ed,patch.
    train_cfg : str
        Settings of the training.
    outputDir : str
        Where analysed binaries are cached.
    to : str
        The file to write.
    workers : int
        Processes.
    """
    cfg = utils.read_config(Config, train_cfg)
    builds, skipped = find_builds(path, outputDir, workers)
    others = {held_out} if isinstance(held_out, str) else set(held_out)
    pairs = [
        pair
        for program, analyses in tqdm(builds.items(), desc="programs", disable=None)
        for pair in pairs_of(program, analyses)
    ]
    train = [pair for pair in pairs if pair.program not in others]
    if not train:
        raise utils.UserError(f"{path} holds no program in two builds that is not held out")
    networks = {"function": train_likeness(train, cfg)}
    networks["structure"] = train_structure(train, networks["function"], cfg)
    card = describe(train, cfg)
    similarity.write_networks(networks, to, card)
    print(f"trained on {card['pairs of builds']} pairs of builds of: {card['programs']}")
    rest = [pair for pair in pairs if pair.program in others]
    for name, part in (("trained on", train), ("held out", rest)):
        if part:
            alone, around = measure(part, networks)
            print(
                f"{name:10}  partner found by likeness {alone:.1%}, with surroundings {around:.1%}"
            )
    for file, reason in skipped.items():
        print(f"skipped {file}: {reason}")
    return gendata.SKIPPED if skipped else 0


def describe(train: list[Pair], cfg: Config) -> dict[str, str]:
    """Return the model's card: what it was trained on, and how."""
    return {
        "what": "networks of diff.py: likeness of functions, likeness and surroundings",
        "programs": " ".join(sorted({pair.program for pair in train})),
        "pairs of builds": str(len(train)),
        "settings": str(dataclasses.asdict(cfg)),
        "analysis": preprocessing.analysis_settings(),
    }


def find_builds(
    path: str, output_dir: str, workers: int
) -> tuple[dict[str, list[preprocessing.Analysis]], dict[str, str]]:
    """Analyse all programs under ``path`` that are there in two builds or more.

    Returns
    -------
    dict
        Program -> its builds' analyses, in the order of the builds' names.
    dict
        File -> why it was skipped.
    """
    files = sorted(f for f in Path(path).glob("*/*") if f.is_file())
    if not files:
        raise utils.UserError(
            f"no builds under {path}; `python experiment_data/build_packages.py` makes some"
        )
    binaries = [{"path": str(f), "sha256": utils.sha256_of(f), "program": f.name} for f in files]
    times = Counter(binary["program"] for binary in binaries)
    binaries = [binary for binary in binaries if times[binary["program"]] > 1]
    skipped = gendata.analyse_all(binaries, output_dir, workers)
    builds: dict[str, list[preprocessing.Analysis]] = {}
    for binary in binaries:
        if binary["path"] not in skipped:
            file = preprocessing.cache_file(output_dir, binary["sha256"])
            builds.setdefault(binary["program"], []).append(preprocessing.load(file))
    return builds, skipped


def pairs_of(program: str, analyses: list[preprocessing.Analysis]) -> list[Pair]:
    """Return all pairs of a program's builds, every second one turned round."""
    codes = [features.read_code(analysis) for analysis in analyses]
    pairs = list(itertools.combinations(codes, 2))
    return [make_pair(program, *(pair if i % 2 else pair[::-1])) for i, pair in enumerate(pairs)]


def source_names(code: Code) -> list[str]:
    """Return the name of each function's source; "" where the symbol says none for sure."""
    names = []
    for name in code.analysis.function_name[: code.functions]:
        name = re.sub(r"\.(isra|constprop)\.\d+", "", name)
        sure = samefunc.is_symbol(name) and "." not in name
        names.append(name if sure and name not in samefunc.STARTUP else "")
    times = Counter(names)
    return [name if times[name] == 1 else "" for name in names]


def make_pair(program: str, first: Code, second: Code) -> Pair:
    """Find the candidates of two builds and which of them are true."""
    candidates = similarity.find_candidates(first, second)
    names = source_names(first), source_names(second)
    number = {pair: i for i, pair in enumerate(zip(candidates.a, candidates.b, strict=True))}
    partners = []
    for side in (0, 1):
        # A part that the compiler split off (foo.part.0) may be the better partner of foo.
        other = second if side == 0 else first
        split = {n.split(".")[0] for n in other.analysis.function_name if "." in n}
        where = {name: f for f, name in enumerate(names[1 - side]) if name}
        found = []
        for f, name in enumerate(names[side]):
            if not name or (name not in where and name in split):
                found.append(UNKNOWN)
            elif name not in where:
                found.append(NONE)
            else:
                pair = (f, where[name]) if side == 0 else (where[name], f)
                found.append(number.get(pair, UNKNOWN))
        partners.append(np.array(found, np.int64))
    weights = [np.where(c.sizes < MIN_BLOCKS, SMALL, 1).astype(np.float32) for c in (first, second)]
    return Pair(program, candidates, matching.Surroundings(first, second), *partners, *weights)


# ------------------------------------------------------------------------------------- training


class Perceptron(nn.Module):
    """`similarity.Network`, to be trained."""

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
    """Log-softmax over the candidates with the same index, and "none" with logit 0.

    Parameters
    ----------
    logit : float (c,)
    index : int64 (c,)
        0..n - 1.

    Returns
    -------
    float (c,), float (n,)
        Of each candidate; of none, for each index.
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


def train_network(examples: list[tuple[np.ndarray, Pair]], cfg: Config, what: str) -> Network:
    """Train a network on (inputs float32 (n, K), the pair whose candidates they describe)."""
    utils.set_seed(cfg.seed)
    rng = np.random.default_rng(cfg.seed)
    model = Perceptron(np.concatenate([x for x, _ in examples]), cfg.hidden)
    optimizer = torch.optim.AdamW(model.parameters(), cfg.lr, weight_decay=cfg.weight_decay)
    steps = cfg.n_epochs * len(examples)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, cfg.lr, total_steps=steps)
    with tqdm(total=steps, desc=what, disable=None) as bar:
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


def train_likeness(pairs: list[Pair], cfg: Config) -> Network:
    """Train the network that scores two functions by themselves."""
    return train_network([(p.candidates.measures, p) for p in pairs], cfg, "likeness")


def train_structure(pairs: list[Pair], likeness: Network, cfg: Config) -> Network:
    """Train the network that also hears what matches in the surroundings say.

    What it hears depends on what it said in the round before. So it is trained several times, each
    time on the rounds that the one before went through (Ross et al., "DAgger", 2011,
    https://arxiv.org/abs/1011.0686).
    """
    scores = [likeness(pair.candidates.measures) for pair in pairs]
    examples = [
        (pair.surroundings.evidence(pair.candidates, s, s), pair)
        for pair, s in zip(pairs, scores, strict=True)
    ]
    network = train_network(examples, cfg, "structure")
    for _ in range(PASSES - 1):
        for pair, alone in zip(pairs, scores, strict=True):
            logit = alone
            for _ in range(matching.ROUNDS - 1):
                logit = network(pair.surroundings.evidence(pair.candidates, alone, logit))
            examples.append((pair.surroundings.evidence(pair.candidates, alone, logit), pair))
        network = train_network(examples, cfg, "structure")
    return network


def measure(pairs: list[Pair], networks: dict[str, Network]) -> tuple[float, float]:
    """Return the share of functions with a partner, of MIN_BLOCKS or more, that find it first."""
    right: list[list[np.ndarray]] = [[], []]
    for pair in pairs:
        alone = logit = networks["function"](pair.candidates.measures)
        for _ in range(matching.ROUNDS):
            evidence = pair.surroundings.evidence(pair.candidates, alone, logit)
            logit = networks["structure"](evidence)
        asked = np.flatnonzero((pair.partner_a >= 0) & (pair.weight_a == 1))
        for found, score in zip(right, (alone, logit), strict=True):
            best = np.full(len(pair.partner_a), -np.inf, np.float32)
            np.maximum.at(best, pair.candidates.a, score)
            found.append(score[pair.partner_a[asked]] >= best[asked])
    return float(np.concatenate(right[0]).mean()), float(np.concatenate(right[1]).mean())


if __name__ == "__main__":
    utils.command_line(main)
