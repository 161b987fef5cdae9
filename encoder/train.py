"""Train the encoder of functions: first without symbols, then by them.

`python pretrain.py functions` is the first, `python classify.py functions` the second. Both read
config/encoder.json and the file that `python dataprocess.py functions` writes. A training that was
stopped continues where it was.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pydantic
import torch
from pydantic import PositiveInt
from torch import Tensor

import checkpoint
import models
import train
import utils
from encoder.calibration import POOLS, Calibration, fit
from encoder.corpus import Build, Corpus, Functions
from encoder.file import write_encoder
from encoder.inputs import Vocabulary, look_up
from encoder.network import Network, View
from encoder.objectives import MIN_BLOCKS, OBJECTIVES, SHARES, VIEWS, Data
from features.words import LONGEST
from optim import OneCycleAdamW

QUERIES = 1000  # number of functions for validation


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=utils.STRICT)
class Stage(train.Config):
    """One stage of the training: the settings of `train.Config`, and these.

    Attributes
    ----------
    name : str
        Letters, digits, "-" and "_", as it becomes part of the name of a folder.
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
    # With fewer functions, a batch may hold nothing to compare.
    batch_size: Annotated[int, pydantic.Field(ge=4, le=2**20)]
    # The losses are means over a batch, whose parts cannot be added up.
    accumulate: Literal[1] = 1
    words_lr: pydantic.PositiveFloat
    objectives: dict[str, pydantic.PositiveFloat]
    transformer: bool = True
    instructions: PositiveInt = 64
    packages: PositiveInt | None = None

    @pydantic.model_validator(mode="after")
    def _name_and_objectives_are_possible(self) -> "Stage":
        if not re.fullmatch("[A-Za-z0-9_-]{1,50}", self.name):
            raise ValueError("'name' must be 1 to 50 letters, digits, '-' or '_'")
        if not self.objectives or self.objectives.keys() - OBJECTIVES.keys():
            raise ValueError(f"'objectives' must be some of {', '.join(OBJECTIVES)}")
        return self


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=utils.STRICT)
class Config:
    """How to train an encoder; all keys are needed.

    Attributes
    ----------
    model : models.Config
    pretraining : list of Stage
        Their objectives need no symbols. Each stage starts with the weights of the one before.
    fine_tuning : list of Stage
    """

    model: models.Config
    pretraining: Annotated[list[Stage], pydantic.Field(min_length=1)]
    fine_tuning: Annotated[list[Stage], pydantic.Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _positions_are_rotary(self) -> "Config":
        if self.model.positions != "rotary":  # encoder/encoder.py computes no others
            raise ValueError("'model.positions' must be \"rotary\"")
        return self

    @pydantic.model_validator(mode="after")
    def _pretraining_needs_no_names(self) -> "Config":
        for stage in self.pretraining:
            for key in stage.objectives:
                if OBJECTIVES[key].needs_names:
                    raise ValueError(
                        f"'pretraining' has the objective '{key}', which needs symbols; it belongs "
                        "into 'fine_tuning'"
                    )
        return self


@pydantic.dataclasses.dataclass(frozen=True, config=utils.STRICT)
class Info:
    """The content of model.json, which lies beside the network.

    Attributes
    ----------
    model : models.Config
    rows : int
        Size of the table of words.
    words_sha256, data_sha256 : str
        Hashes of vocab.txt, and of the binaries and what was read from them.
    max_len : int
        Maximum number of instructions of a function.
    """

    model: models.Config
    rows: PositiveInt
    words_sha256: str
    data_sha256: str
    max_len: PositiveInt


class Prepared(NamedTuple):
    """What all stages read: words, functions to learn from, and those for validation, if any."""

    vocabulary: Vocabulary
    data: Data
    judge: "Judge | None"


def prepare(functions: Functions) -> Prepared:
    """Look all words up in the vocabulary, and find the pairs of functions for validation.

    Raises
    ------
    utils.UserError
        No program for training has two builds.
    """
    vocabulary = functions.vocabulary
    corpus, held_out = functions.split("train"), functions.split("validation")
    data = Data(corpus, look_up(corpus.positions, vocabulary), programs_of(corpus))
    if not data.programs:
        raise utils.UserError("no program has two builds that may be trained on; give more builds")
    judge = Judge(held_out, vocabulary, corpus.content)
    n = len(judge.pairs)
    if n <= POOLS[0]:
        print(
            f"note: there are {n} {utils.plural(n, 'pair')} of functions for validation; with at "
            f"most {POOLS[0]}, the chances that search.py prints will be guesses"
        )
    return Prepared(vocabulary, data, judge if n else None)


class Training:
    """A network, and what it learns from; `run` trains it for some stages."""

    def __init__(self, cfg: models.Config, read: Prepared, seed: int) -> None:
        world = int(os.environ.get("WORLD_SIZE", 1))
        if world > 1:
            raise utils.UserError(
                f"torchrun started {world} processes, but one trains the encoder; start one"
            )
        self.read = read
        utils.set_seed(seed)
        self.network = Network(cfg, read.vocabulary.rows)
        self.words = "".join(f"{word}\n" for word in read.vocabulary.words.tolist()).encode()
        builds = read.data.corpus.builds + (read.judge.corpus.builds if read.judge else [])
        corpus, idf = read.data.corpus, read.vocabulary.idf
        manifest = "".join(f"{b.build}/{b.program} {b.sha256}\n" for b in builds)
        data = hashlib.sha256(manifest.encode())
        for array in (corpus.content, corpus.walks.block, corpus.walks.offsets, idf):
            data.update(array.tobytes())
        self.info = Info(
            cfg,
            read.vocabulary.rows,
            hashlib.sha256(self.words).hexdigest(),
            data.hexdigest(),
            LONGEST,
        )
        self.measures: dict[str, float] = {}

    def load(self, file: str) -> None:
        """Start from a network that was trained with the same sizes and words.

        Raises
        ------
        utils.UserError
            It was not, or a file cannot be read.
        """
        info = check_model(file, self.info.model)
        if info.words_sha256 != self.info.words_sha256:
            raise utils.UserError(
                f"{file} was trained with another vocabulary; train it again with the same file of "
                "functions"
            )
        checkpoint.load_model_file(self.network, file)

    def run(
        self, stages: list[Stage], save_dir: str, resume: bool = True, overwrite: bool = False
    ) -> str:
        """Train for some stages, each in a folder of its own; return the last file.

        ``resume`` and ``overwrite`` are those of `train.Trainer.run`.
        """
        for folder, stage in zip(folders_of(stages, save_dir), stages, strict=True):
            utils.remove_leftovers(folder)
            self.measures = run_stage(
                *(stage, self.info, self.network, self.read.data, self.read.judge),
                *(folder, self.words, resume, overwrite),
            )
        return f"{folder}/model_steps_{stages[-1].total_steps}.pt"

    def write(self, to: str | os.PathLike[str], analysis: str, settings: str) -> None:
        """Write the encoder, with a card that says what it was made of."""
        corpus, judge = self.read.data.corpus, self.read.judge
        card = {
            "what": "functions -> vectors, for search.py and diff.py",
            "packages": " ".join(sorted({build.package for build in corpus.builds})),
            "builds": str(len(corpus.builds)),
            "functions": str(len(corpus.name)),
            "files": self.info.data_sha256,
            "settings": settings,
            "validation": " ".join(f"{name} {value:.3f}" for name, value in self.measures.items()),
            "analysis": analysis,
        }
        self.network.cpu()
        weights = {name: value.numpy() for name, value in self.network.state_dict().items()}
        calibration = judge.calibrate(self.network) if judge else Calibration(scale=20.0, none=0.8)
        heads = self.info.model.n_heads
        write_encoder(weights, self.read.vocabulary, heads, calibration, to, card)
        print(f"{to}: {os.path.getsize(to) / 1e6:.1f} MB, trained on {card['functions']} functions")


def check_model(file: str, model: models.Config) -> Info:
    """Return what lies beside a pre-trained network; refuse one of other sizes than ``model``.

    Raises
    ------
    utils.UserError
        The network or its model.json is missing, or of other sizes.
    """
    if not Path(file).is_file():
        raise utils.UserError(
            f"the model {file} does not exist; `python pretrain.py functions` writes one"
        )
    try:
        info = utils.read_config(Info, Path(file).with_name("model.json"))
    except utils.UserError as error:
        raise utils.UserError(
            f"{error}; `python pretrain.py functions` writes it beside its models"
        ) from error
    if info.model != model:
        raise utils.UserError(f"{file} has other sizes than 'model' in the settings")
    return info


def folders_of(stages: list[Stage], save_dir: str) -> list[str]:
    """Return the folder of each stage's models."""
    return [f"{save_dir}/{number}-{stage.name}" for number, stage in enumerate(stages)]


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
    resume: bool,
    overwrite: bool,
) -> dict[str, float]:
    """Train ``network`` for one stage; return the last measures."""
    device = utils.get_device()
    network.longest = stage.instructions
    data = data._replace(programs=programs_of(data.corpus, stage.packages))
    network.reads_order = stage.transformer
    objectives = {OBJECTIVES[key]: weight for key, weight in stage.objectives.items()}
    if "walks" in stage.objectives and not len(data.corpus.walks):
        raise utils.UserError(
            f"stage {stage.name} has the objective 'walks', but no pair of builds has a path that "
            "visits both; leave it out of the settings"
        )

    def get_batch(step: int, rank: int, world: int) -> train.Batch:
        view = int(np.random.default_rng([stage.seed, step]).choice(len(VIEWS), p=SHARES))
        batch = {
            objective.key: objective.draw(
                data, stage.batch_size, np.random.default_rng([stage.seed, step, 1])
            )
            for objective in objectives
        }
        rows = next(iter(batch.values()))
        return batch | {"input_ids": rows, "view": np.full(len(rows), view)}

    def get_losses(network: Network, batch: dict[str, Tensor]) -> train.Losses:
        view = VIEWS[int(batch["view"][0])]
        return {
            objective.key: weight
            * objective.loss(network, data, batch[objective.key].cpu().numpy(), view)
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
        return trainer.run(info, words, resume, overwrite, what)


class Judge:
    """Recall@1 among functions of libraries that are not trained on, by their other build.

    Functions whose instructions have a hash in ``known`` are left out: those of the training.
    """

    def __init__(self, corpus: Corpus, vocabulary: Vocabulary, known: np.ndarray) -> None:
        self.corpus = corpus
        self.inputs = look_up(corpus.positions, vocabulary)
        pairs = []
        for builds in programs_of(corpus):
            # The two builds of a program that differ most in level.
            builds = sorted(builds, key=lambda build: build.build.rsplit("-", 1)[-1])
            pairs.append(corpus.same(builds[0], builds[-1]))
        found = np.concatenate([np.zeros((0, 2), np.int64), *pairs])
        found = found[corpus.blocks[found].min(1) >= MIN_BLOCKS]
        found = found[~np.isin(corpus.content[found], known).any(1)]
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
