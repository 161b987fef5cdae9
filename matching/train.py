"""Train what diff.py scores functions with, on builds of programs with symbols.

    python experiment_data/build_packages.py
    python -m matching.train                        # -> model/diff.safetensors

Two functions of two builds of a program are the same where their symbols have one name; symbols are
used for nothing else. All is contrastive (symmetric InfoNCE): an encoder learns to place functions
of one name near each other, also those of different programs (they share libraries); and networks
learn to find each function's partner among the functions most like it in the other build, or that
it has none there.

The encoder knows by heart what it was trained on. So that the networks learn how far to trust it on
other programs, the programs are dealt into parts, and the networks see the pairs of each part by an
encoder that was trained on the other parts only. The one that is written was trained on all.
"""

if __name__ == "__main__":
    from terminal.early import answer

    answer(__file__)  # --help and words on wrong flags need not wait for the imports below

import dataclasses
import itertools
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

import utils
from binary.analysis import Analysis, analysis_settings, cache_file, load_analysis
from binary.cache import analyse_all
from binary.symbols import source_names
from encoder.table import Encoder, choose_words, known_words
from features.extract import Features, extract_features
from jobs.processes import LIMITS, MACHINE, TIME_LIMIT, Limit, limited_memory
from matching.candidates import Candidates, find_candidates, plausible
from matching.evidence import ROUNDS, Surroundings
from matching.model import Model, Network, write_model
from terminal import progress
from terminal.arguments import names_of
from terminal.command_line import PARTLY, command_line

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
PARTS = 3  # in which the programs are dealt
WORDS_LEFT_OUT = 0.3  # of a function's words, at random, each time the encoder meets it
NEGATIVES = 64  # functions without a partner, beside those of a batch
FEW = 8  # two programs that share fewer names teach the encoder nothing
SHARPNESS = 14.0  # of the encoder's cosines in its loss
NO_SOURCE = {"main", "usage"}  # names that say nothing across programs
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
        Passes over all pairs, of each training of a network.
    networks : int
        How many are trained of each kind, from different weights; their mean is what counts.
    pairs : int
        Pairs of builds of each program at most, chosen at random.
    words, dimensions : int
        Size of the encoder.
    encoder_steps, encoder_batch : int
        How long it is trained, and on how many pairs of functions at once.
    encoder_lr : float
        Of Adam; goes up and down once.
    """

    seed: pydantic.NonNegativeInt
    hidden: PositiveInt
    lr: PositiveFloat
    weight_decay: pydantic.NonNegativeFloat
    n_epochs: PositiveInt
    networks: PositiveInt
    pairs: PositiveInt
    words: PositiveInt
    dimensions: PositiveInt
    encoder_steps: PositiveInt
    encoder_batch: PositiveInt
    encoder_lr: PositiveFloat


@dataclasses.dataclass
class Pair:
    """Two builds of a program and what is true of them.

    Attributes
    ----------
    program : str
    codes : (Code, Code)
    candidates : Candidates
    surroundings : Surroundings
    partner_a : int64 (F,)
        Of each function of the first build: the candidate that is its partner, NONE or UNKNOWN.
    partner_b : int64 (G,)
        Of each function of the second.
    weight_a, weight_b : float32 (F,), (G,)
    """

    program: str
    codes: tuple[Features, Features]
    candidates: Candidates
    surroundings: Surroundings
    partner_a: np.ndarray
    partner_b: np.ndarray
    weight_a: np.ndarray
    weight_b: np.ndarray


def main(
    path: Names = path,
    held_out: Names = held_out,
    train_cfg: str = train_cfg,
    outputDir: str = outputDir,
    to: str = to,
    workers: PositiveInt = workers,
    time_limit: Limit = TIME_LIMIT,
    memory_limit: Limit = MACHINE,
) -> int:
    """Train the networks of diff.py and write them as safetensors.

    Ends with exit code 3 when binaries were skipped.

    Parameters
    ----------
    path : str or list of str
        Folders whose sub-folders each hold one build of some programs, with symbols: DIR1,DIR2.
    held_out : str or list of str
        Programs that are measured and not trained on: --held_out ed,patch.
    train_cfg : str
        Settings of the training.
    outputDir : str
        Where analysed binaries are cached.
    to : str
        The file to write.
    workers : int
        Processes that work at the same time.
    time_limit : float
        Seconds of processor time that the analysis of one file may take.
    memory_limit : float
        GiB of memory that it may take, and that all the rest may take.
    """
    utils.check_outputs({"to": to}, [train_cfg], {"outputDir": outputDir})
    cfg = utils.read_config(Config, train_cfg)
    paths = names_of(path)
    others = set(names_of(held_out))
    with limited_memory(memory_limit, f"training on {', '.join(paths)}"):
        builds, skipped = find_builds(paths, outputDir, workers, (time_limit, memory_limit))
        codes = {
            program: [extract_features(analysis) for analysis in analyses]
            for program, analyses in progress.bar(builds.items(), desc="features")
        }
        known = {program: c for program, c in codes.items() if program not in others}
        if not known:
            raise utils.UserError(
                f"{', '.join(paths)}: no program in two builds that is not held out"
            )
        train = cross_fitted(known, cfg)
        model = train_model(train, train_encoder(known, cfg, "encoder"), cfg)
        card = describe(known, train, cfg)
        write_model(model, to, card)
        print(f"trained on {card['pairs of builds']} pairs of builds of: {card['programs']}")
        rest = [
            pair
            for program, c in codes.items()
            if program in others
            for pair in pairs_of(program, c, model.encoder, cfg)
        ]
        for name, part in (("trained on", train), ("held out", rest)):
            if part:
                alone, around = measure(part, model)
                print(
                    f"{name:10}  partner found by likeness {alone:.1%}, "
                    f"with surroundings {around:.1%}"
                )
        for file, reason in skipped.items():
            print(f"skipped {file}: {reason}")
        return PARTLY if skipped else 0


def cross_fitted(programs: dict[str, list[Features]], cfg: Config) -> list[Pair]:
    """Return the pairs of all programs, measured by encoders that did not meet the program."""
    names = sorted(programs)
    pairs = []
    for part in range(min(PARTS, len(names))):
        inside = names[part::PARTS]
        # Of one program alone, its encoder must do.
        rest = {p: codes for p, codes in programs.items() if p not in inside} or programs
        fitted = train_encoder(rest, cfg, f"encoder without part {part + 1} of {PARTS}")
        for program in progress.bar(inside, desc="pairs"):
            pairs += pairs_of(program, programs[program], fitted, cfg)
    return pairs


def train_model(pairs: list[Pair], fitted: Encoder, cfg: Config) -> Model:
    """Train the networks; ``fitted`` is the encoder that goes with them."""
    likeness = train_likeness(pairs, cfg)
    return Model(fitted, likeness, train_structure(pairs, likeness, cfg))


def describe(programs: dict[str, list[Features]], train: list[Pair], cfg: Config) -> dict[str, str]:
    """Return the model's card: what it was trained on, and how."""
    return {
        "what": "diff.py: an encoder of functions; networks of likeness, and of surroundings",
        "programs": " ".join(f"{name} ({len(programs[name])} builds)" for name in sorted(programs)),
        "pairs of builds": str(len(train)),
        "settings": str(dataclasses.asdict(cfg)),
        "analysis": analysis_settings(),
    }


def find_builds(
    paths: list[str], output_dir: str, workers: int, limits: tuple[float, float] = LIMITS
) -> tuple[dict[str, list[Analysis]], dict[str, str]]:
    """Analyse all programs under ``paths`` that are there in two builds or more.

    Equal files count once: two releases may hold one version.

    Returns
    -------
    dict
        Program -> its builds' analyses, in the order of the builds' names.
    dict
        File -> why it was skipped.
    """
    files = [f for path in paths for f in sorted(Path(path).glob("*/*")) if f.is_file()]
    if not files:
        raise utils.UserError(
            f"no builds under {', '.join(paths)}; `python experiment_data/build_packages.py` makes "
            "some"
        )
    binaries = [{"path": str(f), "sha256": utils.sha256_of(f), "program": f.name} for f in files]
    binaries = list({(binary["program"], binary["sha256"]): binary for binary in binaries}.values())
    times = Counter(binary["program"] for binary in binaries)
    binaries = [binary for binary in binaries if times[binary["program"]] > 1]
    skipped = analyse_all(binaries, output_dir, workers, limits)
    builds: dict[str, list[Analysis]] = {}
    for binary in binaries:
        if binary["path"] not in skipped:
            file = cache_file(output_dir, binary["sha256"])
            builds.setdefault(binary["program"], []).append(load_analysis(file))
    return builds, skipped


def pairs_of(program: str, codes: list[Features], fitted: Encoder, cfg: Config) -> list[Pair]:
    """Return pairs of a program's builds, every second one turned round."""
    rng = np.random.default_rng(cfg.seed)
    both = list(itertools.combinations(codes, 2))
    chosen = sorted(rng.permutation(len(both))[: cfg.pairs].tolist())
    pairs = [both[i] if n % 2 else both[i][::-1] for n, i in enumerate(chosen)]
    return [make_pair(program, *pair, fitted) for pair in pairs]


def make_pair(program: str, first: Features, second: Features, fitted: Encoder) -> Pair:
    """Find the candidates of two builds and which of them are true."""
    candidates = find_candidates(first, second, fitted)
    names = (
        source_names(first.analysis),
        source_names(second.analysis),
    )
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
    surroundings = Surroundings(first, second)
    return Pair(program, (first, second), candidates, surroundings, *partners, *weights)


class Learner:
    """One build as the encoder meets it: weights of known words, and functions by name."""

    def __init__(self, code: Features, words: np.ndarray, idf: np.ndarray) -> None:
        self.rows = known_words(code, words, idf)
        self.where = {name: f for f, name in enumerate(source_names(code.analysis)) if name}
        self.weight = np.where(code.sizes < MIN_BLOCKS, SMALL, 1).astype(np.float32)

    def encode(self, functions: np.ndarray, table: Tensor, rng: np.random.Generator) -> Tensor:
        """Encode functions with some of their words left out, float (n, D) of length 1."""
        rows = self.rows[functions]
        kept = (rng.random(rows.nnz) > WORDS_LEFT_OUT).astype(np.float32)
        indices = torch.from_numpy(rows.indices.astype(np.int64))
        offsets = torch.from_numpy(rows.indptr[:-1].astype(np.int64))
        weights = torch.from_numpy(rows.data * kept)
        vectors = F.embedding_bag(indices, table, offsets, mode="sum", per_sample_weights=weights)
        return F.normalize(vectors, dim=1)


def train_encoder(programs: dict[str, list[Features]], cfg: Config, what: str) -> Encoder:
    """Train an encoder on pairs of builds, half of them of different programs.

    Each function of a batch shall be nearer to its partner than to the other functions of the
    partner's build, and the other way round.
    """
    utils.set_seed(cfg.seed)
    rng = np.random.default_rng(cfg.seed)
    words, idf = choose_words(list(programs.values()), cfg.words)
    if not len(words):
        return Encoder(words, idf, np.zeros((0, cfg.dimensions), np.float16))
    builds = {p: [Learner(code, words, idf) for code in programs[p]] for p in sorted(programs)}
    table = (torch.randn(len(words), cfg.dimensions) / cfg.dimensions**0.5).requires_grad_()
    optimizer = torch.optim.Adam([table], cfg.encoder_lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, cfg.encoder_lr, total_steps=cfg.encoder_steps
    )
    for step in progress.bar(range(cfg.encoder_steps), desc=what):
        first, second, shared = choose_builds(builds, step % 2 == 1, rng)
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
            (F.cross_entropy(SHARPNESS * u[:n] @ v.T, target, reduction="none") * weight).sum()
            for u, v in ((x, y), (y, x))
        )
        optimizer.zero_grad()
        (loss / weight.sum()).backward()
        optimizer.step()
        schedule.step()
    return Encoder(words, idf, table.detach().numpy().astype(np.float16))


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


class Perceptron(nn.Module):
    """`matching.model.Network`, to be trained."""

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


def train_networks(examples: list[tuple[np.ndarray, Pair]], cfg: Config, what: str) -> Network:
    """Train networks on (inputs float32 (n, K), the pair whose candidates they describe).

    Return their mean, which is one network with all their hidden units. What one seed gets right
    and another one wrong is a matter of chance (Lakshminarayanan et al., "Deep Ensembles", 2017,
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
        b2=np.mean([network.b2 for network in found], dtype=np.float32),
    )


def train_network(
    examples: list[tuple[np.ndarray, Pair]], cfg: Config, seed: int, what: str
) -> Network:
    """Train one network, from the weights and in the order that ``seed`` draws."""
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


def train_likeness(pairs: list[Pair], cfg: Config) -> Network:
    """Train the network that scores two functions by themselves."""
    return train_networks([(p.candidates.measures, p) for p in pairs], cfg, "likeness")


def train_structure(pairs: list[Pair], likeness: Network, cfg: Config) -> Network:
    """Train the network that also hears what matches in the surroundings say.

    What it hears depends on what it said in the round before. So it is trained several times, each
    time on the rounds that the one before went through (Ross et al., "DAgger", 2011,
    https://arxiv.org/abs/1011.0686).
    """
    parts = (plausible_part(pair, likeness) for pair in pairs)
    pairs = [part for part in parts if len(part.candidates.a)]
    scores = [likeness(pair.candidates.measures) for pair in pairs]
    examples = [
        (pair.surroundings.evidence(pair.candidates, s, s), pair)
        for pair, s in zip(pairs, scores, strict=True)
    ]
    network = train_networks(examples, cfg, "structure")
    for _ in range(PASSES - 1):
        for pair, alone in zip(pairs, scores, strict=True):
            logit = pair.surroundings.hear(pair.candidates, alone, network, ROUNDS - 1)
            examples.append((pair.surroundings.evidence(pair.candidates, alone, logit), pair))
        network = train_networks(examples, cfg, "structure")
    return network


def plausible_part(pair: Pair, likeness: Network) -> Pair:
    """Return the pair with those candidates only whose surroundings `matching` asks for."""
    kept = plausible(pair.candidates, likeness(pair.candidates.measures))
    # Where each candidate goes; the last two places are those of UNKNOWN and NONE.
    place = np.append(np.where(kept, np.cumsum(kept) - 1, UNKNOWN), [UNKNOWN, NONE])
    return dataclasses.replace(
        pair,
        candidates=pair.candidates.only(kept),
        partner_a=place[pair.partner_a],
        partner_b=place[pair.partner_b],
    )


def measure(pairs: list[Pair], model: Model) -> tuple[float, float]:
    """Return the share of functions with a partner, of MIN_BLOCKS or more, that find it first."""
    right: list[list[np.ndarray]] = [[], []]
    for pair in pairs:
        asked = np.flatnonzero((pair.partner_a >= 0) & (pair.weight_a == 1))
        pair = plausible_part(pair, model.function)
        alone = model.function(pair.candidates.measures)
        logit = pair.surroundings.hear(pair.candidates, alone, model.structure)
        partner = pair.partner_a[asked]
        there = partner >= 0
        for found, score in zip(right, (alone, logit), strict=True):
            best = np.full(len(pair.partner_a), -np.inf, np.float32)
            np.maximum.at(best, pair.candidates.a, score)
            first = np.zeros(len(asked), bool)
            first[there] = score[partner[there]] >= best[asked[there]]
            found.append(first)
    return float(np.concatenate(right[0]).mean()), float(np.concatenate(right[1]).mean())


if __name__ == "__main__":
    command_line(main)
