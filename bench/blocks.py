"""What each part of the matching of blocks is worth: F1 without it, as in bench/accuracy.py.

    python bench/blocks.py --path DIR --programs sort,cp

Functions are matched once, by the model; then their blocks, with one part left out in each row.
"""

import datetime
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import accuracy as bench
import numpy as np

from matching import blocks as matching_blocks
from matching.blocks import match_blocks
from matching.functions import match_functions
from matching.model import DEFAULT, read_model
from terminal.arguments import names_of
from terminal.command_line import command_line

NEVER = 2.0  # no score is as high
# Row -> what the constants of matching/blocks.py are in it.
ROWS = {
    "all": {},
    "no surroundings": {"NEIGHBOURS": 0.0},
    "three rounds": {"BLOCK_ROUNDS": 3},
    "no calls of matched functions": {"CALL_WEIGHT": 0.0},
    "no place": {"PLACE": 0.0},
    "no depths": {"DEPTH": 0.0},
    "no same code": {"SAME": 0.0},
    "nothing that was inlined": {"INLINED_THRESHOLD": NEVER},
}


def main(
    path: str = "experiment_data/coreutils/binaries/",
    programs: bench.Names = ("sort", "cp"),
    kinds: bench.Names = tuple(bench.LEVELS_AND_VERSIONS),
    model_file: str = str(DEFAULT),
    work: str = "out-diff",
    workers: int = 2,
) -> None:
    """Print the table.

    Parameters
    ----------
    path : str
        Builds, DIR/<build>/<program>.
    programs : str or list of str
        What is measured.
    kinds : str or list of str
        Kinds of pairs, of bench/accuracy.py's.
    model_file : str
        What matching/train.py wrote.
    work : str
        Where stripped copies and analyses are kept.
    workers : int
        Processes that analyse.
    """
    programs, kinds = (names_of(x) for x in (programs, kinds))
    model = read_model(model_file)
    pairs = []
    for kind, builds in bench.read_pairs(Path(path), programs, kinds, Path(work), workers).items():
        for first, second in builds:
            matched = match_functions(first.code, second.code, model)
            lines = bench.source_lines(first, second)
            pairs.append((kind, first.code, second.code, matched, lines))
    print(f"{datetime.date.today()}, {os.cpu_count()} cores; {', '.join(programs)}; F1 over blocks")
    print(f"{'':30} {', '.join(kinds)}")
    for row, changes in ROWS.items():
        counts = {kind: np.zeros(3) for kind in kinds}
        with changed(changes):
            for kind, first, second, matched, lines in pairs:
                found = match_blocks(first, second, matched)
                counts[kind] += bench.judge_blocks(found, *lines)
        cells = [2 * right / max(said + true, 1) for right, said, true in counts.values()]
        print(f"{row:30} {' '.join(f'{cell:.3f}' for cell in cells)}", flush=True)


@contextmanager
def changed(constants: dict[str, float]) -> Iterator[None]:
    """Let matching/blocks.py have other constants inside the block."""
    before = {name: getattr(matching_blocks, name) for name in constants}
    try:
        vars(matching_blocks).update(constants)
        yield
    finally:
        vars(matching_blocks).update(before)


if __name__ == "__main__":
    command_line(main)
