"""Train the encoder of functions, on builds of many packages: first without symbols, then by them.

    python experiment_data/build_packages.py
    python -m encoder.train                         # -> model/encoder.safetensors

config/encoder.json lists the stages; each starts with the weights of the one before, and has its
own objectives (encoder/objectives.py). A training that was stopped continues where it was.
"""

if __name__ == "__main__":
    from terminal.early import answer

    answer(__file__)  # --help and messages about wrong flags need not wait for the imports below

import dataclasses
import hashlib
import os
from typing import Annotated, NamedTuple

import numpy as np
import pydantic
import torch
from pydantic import PositiveInt
from torch import Tensor

import models
import train
import utils
from binary.analysis import analysis_settings
from binary.cache import analyse_files, report_skipped
from encoder.calibration import Calibration, fit
from encoder.corpus import Build, Corpus, find_files, read_corpus
from encoder.encoder import write_encoder
from encoder.inputs import Vocabulary, choose_words, look_up
from encoder.network import Network, View
from encoder.objectives import MIN_BLOCKS, OBJECTIVES, SHARES, VIEWS, Data, draw
from experiment_data.recipes import VALIDATION
from features.positions import LONGEST
from jobs.processes import MACHINE, TIME_LIMIT, Limit, limited_memory
from optim import OneCycleAdamW
from terminal.arguments import names_of
from terminal.command_line import PARTLY, command_line

path = "experiment_data/packages/binaries/"  # builds: path/<build>/<program>
train_cfg = "config/encoder.json"
outputDir = "output/"  # analysed binaries, shared with gendata.py
save_dir = "out-encoder"
to = "model/encoder.safetensors"
workers = os.cpu_count() or 1  # processes
QUERIES = 1000  # number of functions for validation
Names = str | list[str]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=utils.STRICT)
class Stage(train.Config):
    """One stage of the training: the settings of `train.Config`, and these.

    Attributes
    ----------
    name : str
    words_lr : float
        Highest learning rate of the words' vectors; ``lr`` is that of the rest.
    objectives : dict of str to float
        Weights in the loss, of `encoder.objectives.OBJECTIVES`.
    transformer : bool
        False: only the bag is trained, which is many times faster.
    instructions : int
        Only so many of each function are read in training, because long functions cost most.
    packages : int or None
        Learn from so many packages only (the first by hashes of their names); None: from all.
    """

    name: str
    words_lr: pydantic.PositiveFloat
    objectives: dict[str, pydantic.PositiveFloat]
    transformer: bool = True
    instructions: PositiveInt = 64
    packages: PositiveInt | None = None

    @pydantic.model_validator(mode="after")
    def _objectives_exist(self) -> "Stage":
        if not self.objectives or self.objectives.keys() - OBJECTIVES.keys():
            raise ValueError(f"'objectives' must be some of {', '.join(OBJECTIVES)}")
        return self


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=utils.STRICT)
class Config:
    """How to train an encoder; all keys are needed.

    Attributes
    ----------
    words : int
        Maximum size of the vocabulary.
    model : models.Config
    stages : list of Stage
    """

    words: PositiveInt
    model: models.Config
    stages: Annotated[list[Stage], pydantic.Field(min_length=1)]


@dataclasses.dataclass(frozen=True)
class Info:
    """The content of model.json, which lies beside the network."""

    model: models.Config
    rows: int
    words_sha256: str
    data_sha256: str
    max_len: int


def main(
    path: Names = path,
    train_cfg: str = train_cfg,
    part: Annotated[str, pydantic.Field(pattern=r"^[1-9]/[1-9]$")] = "1/1",
    outputDir: str = outputDir,
    save_dir: str = save_dir,
    to: str = to,
    workers: PositiveInt = workers,
    time_limit: Limit = TIME_LIMIT,
    memory_limit: Limit = MACHINE,
) -> int:
    """Train an encoder and write it as safetensors.

    The exit code is 3 if binaries were skipped.

    Parameters
    ----------
    path : str or list of str
        Folders whose sub-folders each hold one build of some programs, with symbols: DIR1,DIR2.
        The packages that experiment_data/recipes.py sets aside are not trained on; those for
        validation are measured.
    train_cfg : str
        Settings of the training.
    part : str
        1/2 trains on every second package only, 2/2 on the others. matching/train.py needs encoders
        that have not learned from what its networks learn from.
    outputDir : str
        Folder where analysed binaries are cached.
    save_dir : str
        Folder for the checkpoints, one sub-folder for each stage.
    to : str
        The file to write.
    workers : int
        Number of parallel processes.
    time_limit : float
        Seconds of processor time for the analysis of one file.
    memory_limit : float
        GiB of memory for the analysis of one file, and for the training.
    """
    folders = {"outputDir": outputDir, "save_dir": save_dir}
    utils.check_outputs({"to": to}, [train_cfg, *names_of(path)], folders)
    cfg = utils.read_config(Config, train_cfg)
    of, parts = map(int, part.split("/"))
    if of > parts:
        raise utils.UsageError(f"--part {part}: the first number must not be above the second")
    files = take_part(find_files(names_of(path)), of, parts)
    limits = time_limit, memory_limit
    with utils.one_writer(save_dir), limited_memory(memory_limit, "training the encoder"):
        found, skipped = analyse_files([file for _, file in files], outputDir, workers, limits)
        files = [(package, file) for package, file in files if file in found]
        held_out = [file for file in files if file[0] in VALIDATION]
        known = [file for file in files if file not in held_out]
        if not known:
            raise utils.UserError(
                f"{path} has builds of {', '.join(sorted({file[0] for file in held_out}))} only, "
                "which are not trained on; add builds of other packages"
            )
        corpus = read_corpus(known, outputDir)
        judged = read_corpus(held_out, outputDir) if held_out else None
        train_encoder(cfg, prepare(cfg, corpus, judged), analysis_settings(), save_dir, to)
    report_skipped(skipped)
    return PARTLY if skipped else 0


def take_part(files: list[tuple[str, str]], k: int, n: int) -> list[tuple[str, str]]:
    """Return the files of the k-th of n parts of the packages, and of all packages for validation.

    Packages are taken in the order of their names: the k-th and every n-th after it.
    """
    learned = sorted({package for package, _ in files} - {*VALIDATION})
    chosen = {*learned[k - 1 :: n], *VALIDATION}
    return [file for file in files if file[0] in chosen]


class Prepared(NamedTuple):
    """What all stages read: words, functions to learn from, and those for validation, if any."""

    vocabulary: Vocabulary
    data: Data
    judge: "Judge | None"


def prepare(cfg: Config, corpus: Corpus, held_out: Corpus | None) -> Prepared:
    """Choose the words and look them up in all functions."""
    vocabulary = choose_words(by_package(corpus), cfg.words)
    data = Data(corpus, look_up(corpus.positions, vocabulary), programs_of(corpus))
    if not data.programs:
        raise utils.UserError("no program has two builds that may be trained on; give more builds")
    judge = Judge(held_out, vocabulary) if held_out else None
    if judge is None or not len(judge.pairs):
        judge = None
        print(
            "no library for validation has two builds: recall is not measured, and the chances "
            "that search.py prints will be guesses"
        )
    return Prepared(vocabulary, data, judge)


def train_encoder(cfg: Config, read: Prepared, analysis: str, save_dir: str, to: str) -> None:
    """Train on the functions of analysed binaries, and write the encoder; see `main`.

    ``analysis`` says for the encoder's card how these were made.
    """
    vocabulary, data, judge = read
    corpus = data.corpus
    utils.set_seed(cfg.stages[0].seed)
    network = Network(cfg.model, vocabulary.rows)
    words = "".join(f"{word}\n" for word in vocabulary.words.tolist()).encode()
    builds = corpus.builds + (judge.corpus.builds if judge else [])
    manifest = "".join(f"{b.build}/{b.program} {b.sha256}\n" for b in builds)
    info = Info(
        cfg.model,
        vocabulary.rows,
        hashlib.sha256(words).hexdigest(),
        hashlib.sha256(manifest.encode()).hexdigest(),
        LONGEST,
    )
    measures: dict[str, float] = {}
    for number, stage in enumerate(cfg.stages):
        measures = run_stage(
            stage, info, network, data, judge, f"{save_dir}/{number}-{stage.name}", words
        )
    card = {
        "what": "functions -> vectors, for search.py and diff.py",
        "packages": " ".join(sorted({build.package for build in corpus.builds})),
        "builds": str(len(corpus.builds)),
        "functions": str(len(corpus.name)),
        "files": info.data_sha256,
        "settings": str(dataclasses.asdict(cfg)),
        "validation": " ".join(f"{name} {value:.3f}" for name, value in measures.items()),
        "analysis": analysis,
    }
    network.cpu()
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    calibration = judge.calibrate(network) if judge else Calibration(scale=20.0, none=0.8)
    write_encoder(weights, vocabulary, cfg.model.n_heads, calibration, to, card)
    print(f"{to}: {os.path.getsize(to) / 1e6:.1f} MB, trained on {card['functions']} functions")


def by_package(corpus: Corpus) -> list[list]:
    """Return the positions of each package's builds."""
    found: dict[str, list] = {}
    for build in corpus.builds:
        part = dataclasses.replace(
            corpus.positions, bags=corpus.positions.bags[build.first : build.last]
        )
        found.setdefault(build.package, []).append(part)
    return list(found.values())


def programs_of(corpus: Corpus, packages: int | None = None) -> list[list[Build]]:
    """Return the builds of each program that has two or more, of ``packages`` packages only."""
    found: dict[tuple[str, str], list[Build]] = {}
    for build in corpus.builds:
        found.setdefault((build.package, build.program), []).append(build)
    several = {program: builds for program, builds in found.items() if len(builds) > 1}
    names = sorted(
        {package for package, _ in several},
        key=lambda name: hashlib.sha256(name.encode()).digest(),
    )
    used = set(names[:packages])
    return [builds for (package, _), builds in several.items() if package in used]


def run_stage(
    stage: Stage,
    info: Info,
    network: Network,
    data: Data,
    judge: "Judge | None",
    save_dir: str,
    words: bytes,
) -> dict[str, float]:
    """Train ``network`` for one stage; return the last measures."""
    device = utils.get_device()
    network.longest = stage.instructions
    data = data._replace(programs=programs_of(data.corpus, stage.packages))
    network.reads_order = stage.transformer
    objectives = {OBJECTIVES[key]: weight for key, weight in stage.objectives.items()}

    def get_batch(step: int, rank: int, world: int) -> train.Batch:
        rng = np.random.default_rng([stage.seed, step])
        view = int(rng.choice(len(VIEWS), p=SHARES))
        first = next(iter(objectives))  # all objectives of a stage read the pairs of the first
        rows = draw(data, first, stage.batch_size, rng)
        return {"input_ids": rows, "view": np.full(len(rows), view)}

    def get_losses(network: Network, batch: dict[str, Tensor]) -> train.Losses:
        view = VIEWS[int(batch["view"][0])]
        pairs = batch["input_ids"].cpu().numpy()
        return {
            objective.key: weight * objective.loss(network, data, pairs, view)
            for objective, weight in objectives.items()
        }

    table = [network.table]
    rest = [p for n, p in network.named_parameters() if not n.endswith("embed.words.weight")]
    groups = [
        {"params": table, "lr": stage.words_lr, "weight_decay": 0.0},
        {"params": rest, "lr": stage.lr},
    ]
    precision = train.best_precision(device)
    settings = train.settings_of(stage, info, precision)
    settings["weights_sha256"] = train.weights_sha256(network)
    settings["objectives"] = str(stage.objectives)
    trainer = train.Trainer(
        stage,
        network,
        OneCycleAdamW(groups, stage.lr, stage.warmup, stage.total_steps),
        get_batch,
        get_losses,
        judge or (lambda network: {}),
        save_dir,
        device,
        settings,
        precision,
    )
    what = f"stage {stage.name}: {len(data.corpus.name):,} functions"
    with utils.one_writer(save_dir):
        return trainer.run(info, words, True, True, what)


class Judge:
    """Recall@1 among functions of libraries that are not trained on, by their other build."""

    def __init__(self, corpus: Corpus, vocabulary: Vocabulary) -> None:
        self.corpus = corpus
        self.inputs = look_up(corpus.positions, vocabulary)
        pairs = []
        for builds in programs_of(corpus):
            # The two builds of a program that differ most in level.
            builds = sorted(builds, key=lambda build: build.build.rsplit("-", 1)[-1])
            pairs.append(corpus.same(builds[0], builds[-1]))
        found = np.concatenate([np.zeros((0, 2), np.int64), *pairs])
        found = found[corpus.blocks[found].min(1) >= MIN_BLOCKS]
        for side in (0, 1):  # no two that are the same code
            _, first = np.unique(corpus.content[found[:, side]], return_index=True)
            found = found[np.sort(first)]
        self.pairs = np.random.default_rng(0).permutation(found)[:QUERIES]

    def calibrate(self, network: Network) -> Calibration:
        """Fit the chances of being right."""
        x, y = self.encode(network, View())
        return fit(x.numpy(), y.numpy())

    @torch.inference_mode()
    def encode(self, network: Network, view: View) -> tuple[Tensor, Tensor]:
        """Return the vectors of both builds' functions, float32 (N, D)."""
        x, y = (network.eval()(self.inputs, self.pairs[:, side], view) for side in (0, 1))
        return x, y

    def __call__(self, network: Network) -> dict[str, float]:
        measures = {"queries": float(len(self.pairs))}
        for name, view in (("all", View()), ("body", View(names=False, around=False))):
            x, y = self.encode(network, view)
            right = (x @ y.T).argmax(1).cpu() == torch.arange(len(x))
            measures[f"recall_{name}"] = right.float().mean().item()
        return measures


if __name__ == "__main__":
    command_line(main)
