"""Train variants of the encoder: the rows of bench/retrieval.py's tables, several seeds each.

    python dataprocess.py functions       here: writes data/functions.npz
    python bench/encoder_rows.py train    there: trains all rows
    python bench/encoder_rows.py unpack   here: gpu/out/*.tar -> models for bench/retrieval.py

"There" is a machine without the analysed binaries (bench/gpu.sh packs the wheels). On a GPU, all
trainings run at once. Their processes first measure together how long a step takes, so that all
seeds of a row make the same number of steps; the longest row takes --minutes. On two cores,
`train --steps 600 --at_once 2` runs two trainings at a time, and continues where it was stopped.
"""

import dataclasses
import multiprocessing
import multiprocessing.connection
import shutil
import sys
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import torch
from neutral import without_operations
from pydantic import PositiveInt

import encoder.train as encoder_train
import utils
from encoder.corpus import Functions, part_of, read_functions, with_vocabulary
from encoder.objectives import VIEWS
from terminal.command_line import command_line

TRIAL = 30  # number of steps whose time is measured
BAG = 0.4  # time of a step without the transformer, as a share of a step with it
SHARE = 0.8  # share of the time to plan for training; the rest is for evaluations
BOTH = {"masked": 1.0, "twins": 1.0}
WALKS = {"masked": 1.0, "walks": 1.0, "twins": 1.0}
SAME = {"same": 1.0}


class Row(NamedTuple):
    """How a row is trained.

    Attributes
    ----------
    stages : list of (dict of str to float, bool, int or None, float)
        Objectives, with the transformer, of so many packages only, time as a share of that of
        the row "labels".
    seeds : int
        Number of trainings.
    part : (int, int)
        Of the packages, the k-th of n parts, as for `dataprocess.py functions`.
    neutral : bool
        Whether it reads the words that all processors share.
    like : str
        A row that begins with the same stages. With --steps these are trained once for both rows.
    """

    stages: list[tuple[dict[str, float], bool, int | None, float]]
    seeds: int = 3
    part: tuple[int, int] = (1, 1)
    neutral: bool = True
    like: str = ""


def labels(packages: int | None = None, share: float = 1.0) -> list:
    """Return the stages of config/encoder.json."""
    return [(SAME, False, packages, 0.15 * share), (SAME, True, packages, 0.85 * share)]


ROWS = {
    "labels": Row(labels()),
    "half-1": Row(labels(), 1, (1, 2)),
    "half-2": Row(labels(), 1, (2, 2)),
    "bag": Row([(SAME, False, None, 1.0)]),
    "no-neutral": Row(labels(), neutral=False),
    "pretrained": Row([(BOTH, True, None, 0.4), (SAME, True, None, 0.6)]),
    "pretrained-only": Row([(BOTH, True, None, 1.0)]),
    "few-labels": Row(labels(10, 0.5)),
    "few-labels-long": Row(labels(10)),
    # As long as "pretrained-longer-few-labels" on a CPU, where a step of BOTH is twice one of SAME.
    "few-labels-longer": Row(labels(10, 2.2)),
    "pretrained-few-labels": Row([(BOTH, True, None, 0.5), *labels(10, 0.5)]),
    "pretrained-longer-few-labels": Row(
        [(BOTH, True, None, 1.0), *labels(10, 0.5)], like="pretrained-only"
    ),
    "walks-only": Row([(WALKS, True, None, 1.0)]),
    "walks-few-labels": Row([(WALKS, True, None, 1.0), *labels(10, 0.5)], like="walks-only"),
    "walks-labels": Row([(WALKS, True, None, 1.0), *labels()], like="walks-only"),
    # As long as "walks-labels" on a CPU, where a step of WALKS takes 1.7 times one of SAME.
    "labels-longer": Row(labels(None, 2.7)),
    "packages-20": Row(labels(20)),
    "packages-40": Row(labels(40)),
}


def train(
    data_file: str = "data/functions.npz",
    out: str = "gpu/out",
    minutes: float = 3.0,
    rows: str = "",
    steps: PositiveInt | None = None,
    at_once: PositiveInt | None = None,
    train_cfg: str = str(ROOT / "config/encoder.json"),
) -> None:
    """Train all rows.

    Parameters
    ----------
    data_file : str
        Written by `dataprocess.py functions`.
    out : str
        Folder for the rows' models, and what they print.
    minutes : float
        Time for everything; the longest row takes all of it.
    rows : str
        Which rows, separated by blanks. Default: all; with --minutes, those that take no longer
        than "labels", because the others would shorten them.
    steps : int
        Instead of --minutes: the length of the row "labels", in steps with the transformer.
    at_once : int
        With --steps: number of trainings at the same time. Default: all.
    train_cfg : str
        Settings as for classify.py; each row has its own stages.
    """
    wanted = rows.split() or [row for row in ROWS if steps or length(row) <= 1]
    unknown = [row for row in wanted if row not in ROWS]
    if unknown:
        raise utils.UserError(f"--rows {unknown[0]}: the rows are {' '.join(ROWS)}")
    chosen = [row for row in ROWS if row in wanted]  # a row before those that continue it
    if at_once and not steps:
        raise utils.UsageError("--at_once needs --steps")
    end = time.monotonic() + 60 * minutes
    functions = read_functions(data_file)
    cfg = utils.read_config(encoder_train.Config, train_cfg)
    read = prepared(functions, Row([]))
    names = [(row, seed) for row in chosen for seed in range(ROWS[row].seeds)]
    longest = max(map(length, chosen))
    fork = multiprocessing.get_context("fork")  # so that processes share what was read
    # The timeout ends the other processes if one fails before the barrier.
    wait, times = fork.Barrier(len(names), timeout=100), fork.Array("d", len(names))
    Path(out).mkdir(parents=True, exist_ok=True)

    def clock(number: int) -> tuple:
        return number, wait, times, end, longest

    jobs = {
        name: fork.Process(
            target=run,
            args=(cfg, functions, read, *name, out, steps, clock(i)),
        )
        for i, name in enumerate(names)
    }
    running: list = []
    for (row, seed), job in jobs.items():
        if steps and (ROWS[row].like, seed) in jobs:
            jobs[ROWS[row].like, seed].join()
        while len(running) == (at_once or len(jobs)):
            ended = multiprocessing.connection.wait([other.sentinel for other in running])
            running = [other for other in running if other.sentinel not in ended]
        job.start()
        running.append(job)
    for job in running:
        job.join()
    for row in chosen:
        with tarfile.open(Path(out, f"{row}.tar"), "w") as tar:
            for file in sorted(Path(out).glob(f"{row}-seed*")):
                tar.add(file, file.name)
                file.unlink()
    failed = [f"{row}-seed{seed}" for (row, seed), job in jobs.items() if job.exitcode]
    if failed:
        raise utils.UserError(f"{' '.join(failed)} failed; the archives hold their output as .txt")


def length(row: str) -> float:
    """Return the time of a row's stages, as a share of that of the row "labels"."""
    return sum(stage[-1] for stage in ROWS[row].stages)


def prepared(functions: Functions, row: Row) -> encoder_train.Prepared:
    """Return what a row reads."""
    corpus, size = functions.corpus, len(functions.vocabulary.words)
    if row.part != (1, 1):
        packages = part_of((b.package for b in corpus.builds if b.split == "train"), *row.part)
        corpus = corpus.only(
            b for b in corpus.builds if b.split != "train" or b.package in packages
        )
    if not row.neutral:
        corpus = dataclasses.replace(corpus, positions=without_operations(corpus.positions))
    if corpus is not functions.corpus:
        functions = with_vocabulary(corpus, size, functions.analysis)
    read = encoder_train.prepare(functions)
    for part in filter(None, (read.data, read.judge)):
        for view in VIEWS:
            part.inputs.sketches(view.groups)  # caches them before processes fork
    return read


def run(
    cfg,
    functions: Functions,
    read: encoder_train.Prepared,
    row: str,
    seed: int,
    out: str,
    steps: int | None,
    clock: tuple,
) -> None:
    """Train one row with one seed, in a process of its own."""
    torch.set_num_threads(1)
    how, name = ROWS[row], f"{row}-seed{seed}"
    sys.stdout = sys.stderr = open(Path(out, f"{name}.txt"), "w", buffering=1)  # noqa: SIM115
    if how.part != (1, 1) or not how.neutral:
        read = prepared(functions, how)
    base = dataclasses.replace(cfg.fine_tuning[-1], batch_size=256, seed=seed, keep=1)
    if steps:
        work = Path("gpu/work", f"{how.like or row}-seed{seed}")
    else:
        work = Path("gpu/work", name)
        shutil.rmtree(work, ignore_errors=True)
        steps = measured_steps(cfg, base, read, work, *clock)
    work.mkdir(parents=True, exist_ok=True)
    stages = []
    for objectives, transformer, packages, part in how.stages:
        length = max(int(part * steps / (1 if transformer else BAG)), 8)
        stages.append(
            dataclasses.replace(
                base,
                name=f"{len(stages)}",
                objectives=objectives,
                transformer=transformer,
                packages=packages,
                total_steps=length,
                save_steps=length,
                words_lr=base.words_lr if transformer else cfg.fine_tuning[0].words_lr,
            )
        )
    print(f"stages of {[stage.total_steps for stage in stages]} steps")
    training = encoder_train.Training(cfg.model, read, seed)
    training.run(stages, str(work))
    training.write(Path(out, f"{name}.safetensors"), functions.analysis, str(stages))


def measured_steps(
    cfg, base, read, work: Path, number: int, wait, times, end: float, longest: float
) -> int:
    """Return how many steps the row "labels" has time for, as all processes measure together."""
    trial = dataclasses.replace(base, total_steps=TRIAL, save_steps=TRIAL, objectives=SAME)
    for repetition in range(2):  # the first one only warms up
        start = time.monotonic()
        training = encoder_train.Training(cfg.model, read._replace(judge=None), base.seed)
        training.run([trial], str(work / f"trial{repetition}"))
        times[number] = (time.monotonic() - start) / TRIAL
        wait.wait()
    print(f"{max(times):.3f} s a step")
    return int(SHARE * (end - time.monotonic()) / max(times) / longest)


def unpack(out: str = "gpu/out", to: str = "out-retrieval/models") -> None:
    """Unpack the rows' models.

    Parameters
    ----------
    out : str
        Folder of the archives.
    to : str
        The folder that bench/retrieval.py reads.
    """
    Path(to).mkdir(parents=True, exist_ok=True)
    for archive in sorted(Path(out).glob("*.tar")):
        with tarfile.open(archive) as tar:
            tar.extractall(to, filter="data")


def main() -> None:
    """Train the rows on a machine without the analysed files, and unpack the models."""


if __name__ == "__main__":
    command_line(main, train=train, unpack=unpack)
