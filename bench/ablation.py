"""How much each part of diff.py contributes: train and measure the networks without it.

    python bench/ablation.py --train DIR2,DIR3 --encoders E1,E2 --path DIR --programs sort,cp
    python bench/ablation.py blocks --path DIR --programs sort,cp     # matching of blocks

Encoders and candidates are those of `matching/train.py`. Each row sets some measures of a pair of
functions, or some of the evidence around it, to zero, both in training and in the measurement. Two
rows have all measures and less training. Everything is measured as in `bench/accuracy.py`.

`blocks` matches functions once with the model, then their blocks with one part left out in each
row, and prints F1 over blocks.
"""

import dataclasses
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import accuracy as bench
import numpy as np
from shared import machine

import utils
from encoder.encoder import DEFAULT as ENCODER
from encoder.encoder import Encoder, read_encoder
from encoder.file import packages_of
from matching import blocks as matching_blocks
from matching.blocks import match_blocks
from matching.candidates import MEASURES, OF_ENCODER, Candidates, find_candidates
from matching.evidence import EVIDENCE, ROUNDS, Evidence
from matching.functions import match_candidates, match_functions
from matching.model import DEFAULT, Model, read_model
from matching.networks import MatchingConfig
from matching.train import encoder_for, names_held_out, train_both
from matching.training_pairs import find_builds, pairs_of
from terminal.arguments import names_of
from terminal.command_line import command_line


def columns(of: list[str], pattern: str) -> list[int]:
    """Return the indices of the names that match a pattern."""
    return [i for i, name in enumerate(of) if re.match(pattern, name)]


LEFT_OUT = {
    "all": [],
    "no encoder": [MEASURES.index(name) for name in OF_ENCODER],
    "no names": columns(MEASURES, "cosine of .*name|equal names"),
    "no numbers, no fields": columns(MEASURES, "cosine of .*(number|field)"),
    "no sequences of instructions": columns(MEASURES, "cosine of gram"),
    "no words of callees and callers": columns(MEASURES, "cosine of .*(near|far|up)"),
    "encoder and sizes only": columns(MEASURES, "cosine of|equal"),
}
NO_EVIDENCE = {
    "no shared variables": columns(EVIDENCE, "shared variables"),
    "no tables of pointers": columns(EVIDENCE, "tables"),
}
QUARTERS = {"networks a quarter as wide": "hidden", "trained a quarter as long": "n_epochs"}
NEVER = 2.0  # higher than any score
# Row -> values of constants in matching/blocks.py.
BLOCK_ROWS = {
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
    train: str | tuple[str, ...] | list[str],
    path: str,
    programs: str | tuple[str, ...] | list[str] = ("sort", "cp"),
    seen: str | tuple[str, ...] | list[str] = (),
    kinds: str | tuple[str, ...] | list[str] = ("O0-O3", "5.93-8.30 at O2"),
    held_out: str | tuple[str, ...] | list[str] = ("ed", "xargs"),
    encoders: str | tuple[str, ...] | list[str] = (),
    train_cfg: str = "config/contrast.json",
    outputDir: str = "output/",
    work: str = "out-diff",
    workers: int = 2,
) -> None:
    """Print the table.

    Parameters
    ----------
    train : str or list of str
        Pairs to train on, as for matching/train.py's --data.
    path : str
        Builds to measure, DIR/<build>/<program>.
    programs : str or list of str
        Programs to measure.
    seen : str or list of str
        Binaries, or folders of them, used for training or for choosing settings.
    kinds : str or list of str
        Kinds of pairs, see bench/accuracy.py.
    held_out : str or list of str
        Programs to leave out of the training.
    encoders : str or list of str
        As for matching/train.py.
    train_cfg : str
        Settings of the training.
    outputDir : str
        Folder of the analyses of the pairs to train on.
    work : str
        Folder for stripped copies and analyses.
    workers : int
        Number of parallel processes.
    """
    train, programs, seen, kinds, held_out = (
        names_of(x) for x in (train, programs, seen, kinds, held_out)
    )
    cfg = utils.read_config(MatchingConfig, train_cfg)
    found = find_builds(train, outputDir)
    known = bench.seen_names(seen)
    both = bench.read_pairs(Path(path), programs, kinds, Path(work), workers)
    shipped = read_encoder()
    known_to = [(shipped, packages_of(ENCODER))]
    known_to += [(read_encoder(file), packages_of(file)) for file in names_of(encoders)]
    held = names_held_out(found, held_out)
    pairs = []
    for program in found:
        encoder = encoder_for(program, known_to)
        if encoder is not None and program.name not in held:
            pairs += pairs_of(program, encoder, cfg.pairs, cfg.seed)
    measured = {kind: [measures(*pair, shipped) for pair in both[kind]] for kind in kinds}
    print(f"{machine()}; {', '.join(programs)}")
    print("recall@1 all, unseen; F1 all, unseen")
    for row, left_out in LEFT_OUT.items():
        without = [
            dataclasses.replace(pair, candidates=leave_out(pair.candidates, left_out))
            for pair in pairs
        ]
        model = Model(shipped, *train_both(without, cfg))
        for kind in kinds:
            show(f"{row}; {kind}", measured[kind], left_out, model, known, ROUNDS)
            if not left_out:
                show(f"no surroundings; {kind}", measured[kind], left_out, model, known, 0)
    for row, left_out in NO_EVIDENCE.items():
        without = [
            dataclasses.replace(pair, evidence=WithoutColumns(pair.evidence, left_out))
            for pair in pairs
        ]
        model = Model(shipped, *train_both(without, cfg))
        for kind in kinds:
            less = [(*rest, WithoutColumns(e, left_out)) for *rest, e in measured[kind]]
            show(f"{row}; {kind}", less, [], model, known, ROUNDS)
    for row, setting in QUARTERS.items():
        quarter = dataclasses.replace(cfg, **{setting: max(1, getattr(cfg, setting) // 4)})
        model = Model(shipped, *train_both(pairs, quarter))
        for kind in kinds:
            show(f"{row}; {kind}", measured[kind], [], model, known, ROUNDS)


def measures(first: bench.Build, second: bench.Build, encoder: Encoder) -> tuple:
    """Return two builds, their candidates and evidence."""
    codes = first.code, second.code
    return first, second, find_candidates(*codes, encoder), Evidence(*codes)


class WithoutColumns(Evidence):
    """Evidence with some columns set to zero."""

    def __init__(self, evidence: Evidence, left_out: list[int]) -> None:
        vars(self).update(vars(evidence))
        self.left_out = left_out

    def columns(
        self, candidates: Candidates, similarity: np.ndarray, logit: np.ndarray
    ) -> np.ndarray:
        """As `matching.evidence.Evidence.columns`."""
        found = super().columns(candidates, similarity, logit)
        found[:, self.left_out] = 0
        return found


def leave_out(candidates: Candidates, left_out: list[int]) -> Candidates:
    """Set some measures to zero."""
    measures = candidates.measures.copy()
    measures[:, left_out] = 0
    return dataclasses.replace(candidates, measures=measures)


def show(
    row: str, pairs: list, left_out: list[int], model: Model, known: set[str], rounds: int
) -> None:
    """Measure one row, and print it."""
    ranks, unseen = [], []
    counts = np.zeros((2, 3))
    for first, second, found, around in pairs:
        candidates = leave_out(found, left_out)
        both = bench.names_in_both(first, second)
        unseen += [name not in known for name in both]
        ranks += bench.rank(bench.spread(candidates, model), first, second, both)
        anchored = np.zeros(len(candidates.a), bool)
        matches = match_candidates(candidates, around, model, anchored, rounds=rounds)
        for i, names in enumerate((set(), known)):
            counts[i] += bench.judge(matches, first, second, both, names)
    first_is_right, new = np.array(ranks) == 1, np.array(unseen)
    recall = first_is_right.mean(), first_is_right[new].mean()
    f1 = 2 * counts[:, 0] / np.maximum(counts[:, 1] + counts[:, 2], 1)
    print(f"{row:60}", *(f"{x:.3f}" for x in (*recall, *f1)), flush=True)


def blocks(
    path: str = "experiment_data/coreutils/binaries/",
    programs: bench.Names = ("sort", "cp"),
    kinds: bench.Names = tuple(bench.LEVELS_AND_VERSIONS),
    model_file: str = str(DEFAULT),
    work: str = "out-diff",
    workers: int = 2,
) -> None:
    """Print how much each part of the matching of blocks contributes.

    Parameters
    ----------
    path : str
        Builds, DIR/<build>/<program>.
    programs : str or list of str
        Programs to measure.
    kinds : str or list of str
        Kinds of pairs, see bench/accuracy.py.
    model_file : str
        Model written by matching/train.py.
    work : str
        Folder for stripped copies and analyses.
    workers : int
        Number of parallel processes.
    """
    programs, kinds = (names_of(x) for x in (programs, kinds))
    model = read_model(model_file)
    pairs = []
    for kind, builds in bench.read_pairs(Path(path), programs, kinds, Path(work), workers).items():
        for first, second in builds:
            matched = match_functions(first.code, second.code, model)
            lines = bench.source_lines(first, second)
            pairs.append((kind, first.code, second.code, matched, lines))
    print(f"{machine()}; {', '.join(programs)}; F1 over blocks")
    print(f"{'':30} {', '.join(kinds)}")
    for row, changes in BLOCK_ROWS.items():
        counts = {kind: np.zeros(3) for kind in kinds}
        with changed(changes):
            for kind, first, second, matched, lines in pairs:
                found = match_blocks(first, second, matched)
                counts[kind] += bench.judge_blocks(found, *lines)
        cells = [2 * right / max(said + true, 1) for right, said, true in counts.values()]
        print(f"{row:30} {' '.join(f'{cell:.3f}' for cell in cells)}", flush=True)


@contextmanager
def changed(constants: dict[str, float]) -> Iterator[None]:
    """Inside the block, give constants of matching/blocks.py other values."""
    before = {name: getattr(matching_blocks, name) for name in constants}
    try:
        vars(matching_blocks).update(constants)
        yield
    finally:
        vars(matching_blocks).update(before)


if __name__ == "__main__":
    command_line(main, blocks=blocks)
