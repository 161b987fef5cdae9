"""Are the chances that search.py prints right, for libraries that nothing was trained or fitted on?

    python bench/retrieval.py analyse
    python bench/chances.py

Queries and functions are those of bench/retrieval.py, with names and context. Each query searches a
random pool of functions of the other build, which contains the right one in half of the cases. The
chance of the best candidate is compared with the share of queries for which it is right.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "experiment_data"))

import numpy as np
from retrieval import PACKAGES, TASKS, WORK, Vectors, check_task, held_out, make_task
from rows import OfEncoder

import utils
from encoder.calibration import Calibration
from terminal.command_line import PARTLY, command_line

CELL = "names and context"
POOLS = (100, 1000)
DRAWS = 5  # random pools of each size
BORDERS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the groups of chances


def main(
    *,
    packages: str = PACKAGES,
    outputDir: str = "output/",
    work: str = WORK,
    model: str = str(ROOT / "model/encoder.safetensors"),
    task: str = "optimisation, O0 to O3",
) -> int:
    """Print, for groups of equal chances, the mean chance and the share that is right.

    Parameters
    ----------
    packages : str
        The folder made by build_packages.py.
    outputDir : str
        Folder of the analyses.
    work : str
        Folder for the cache.
    model : str
        The encoder.
    task : str
        Beginning of the name of a task of bench/retrieval.py.
    """
    check_task("--task", task)
    name, between = next((name, two) for name, two in TASKS.items() if name.startswith(task))
    held, known, asked, lacking = held_out(packages, outputDir, work)
    wanted = make_task(between, held, known, asked)
    if not wanted.queries:
        raise utils.UserError(
            f"{packages}: no held-out library has both builds of {name!r} analysed in {outputDir}"
        )
    row = OfEncoder(Path(model))
    vectors = Vectors({"encoder": [row]}, outputDir, work)
    vectors.make([b for b in held if between is None or b.setting in between], [CELL])
    queries, pool = (vectors.of(row, CELL, some) for some in (wanted.queries, wanted.pool))
    print(f"{name}, {len(queries):,} queries")
    for size in POOLS:
        found = list(answers(queries, pool, np.array(wanted.target), row.encoder.calibration, size))
        report(size, *map(np.concatenate, zip(*found, strict=True)))
    return PARTLY if lacking else 0


def answers(
    queries: np.ndarray, pool: np.ndarray, target: np.ndarray, fitted: Calibration, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the best candidates' chances, float32 (Q,), and whether they are right, bool (Q,).

    Queries whose target is in the random pool are asked, and equally many others.
    """
    rng = np.random.default_rng(0)
    for _ in range(DRAWS):
        drawn = rng.permutation(len(pool))[:size]
        place = np.full(len(pool), -1)
        place[drawn] = np.arange(size)
        there = np.flatnonzero(place[target] >= 0)
        strangers = rng.permutation(np.flatnonzero(place[target] < 0))[: len(there)]
        some = np.concatenate([there, strangers])
        chance = fitted.chances(queries[some] @ pool[drawn].T)
        yield chance.max(1), chance.argmax(1) == place[target[some]]


def report(size: int, chance: np.ndarray, right: np.ndarray) -> None:
    """Print the table for pools of one size."""
    group = np.digitize(chance, BORDERS)
    print()
    print(f"### pools of {size:,}")
    print()
    print("| chance | answers | mean chance | right |")
    print("| --- | --- | --- | --- |")
    gap = 0.0
    for g, (low, high) in enumerate(zip((0, *BORDERS), (*BORDERS, 1), strict=True)):
        inside = group == g
        if inside.any():
            mean, share = chance[inside].mean(), right[inside].mean()
            gap += inside.mean() * abs(mean - share)
            print(f"| {low} to {high} | {inside.sum():,} | {mean:.3f} | {share:.3f} |")
    print()
    print(f"mean gap {gap:.3f}")


if __name__ == "__main__":
    command_line(main)
