"""Train the model of diff.py on builds of programs with symbols.

    python experiment_data/build_packages.py
    python -m matching.train                        # -> model/diff.safetensors

Functions in two builds of a program are the same if their symbols have the same name; symbols are
not used for anything else. All losses are contrastive (symmetric InfoNCE). An encoder learns to
place functions of one name near each other, also across programs, which share libraries. Networks
learn to find each function's partner among the most similar functions of the other build, or that
it has none.

The encoder remembers its training programs. The networks must learn how far to trust it on other
programs. So the programs are divided into parts, and the pairs of each part are measured by an
encoder trained on the other parts. The encoder that is saved is trained on all programs.
"""

if __name__ == "__main__":
    from terminal.early import answer

    answer(__file__)  # --help and messages about wrong flags need not wait for the imports below

import dataclasses
import os

import numpy as np
from pydantic import PositiveInt

import utils
from binary.analysis import analysis_settings
from encoder.table import WordVectors
from encoder.train_table import train_encoder
from features.extract import Features, extract_features
from jobs.processes import MACHINE, TIME_LIMIT, Limit, limited_memory
from matching.model import Model, write_model
from matching.networks import MatchingConfig, plausible_part, train_neighbours, train_similarity
from matching.training_pairs import Pair, find_builds, pairs_of
from terminal import progress
from terminal.arguments import names_of
from terminal.command_line import PARTLY, command_line

path = "experiment_data/packages/binaries/"  # builds: path/<build>/<program>
held_out = ["ed", "xargs"]  # programs that are measured and not trained on
train_cfg = "config/contrast.json"
outputDir = "output/"  # analysed binaries, shared with gendata.py
to = "model/diff.safetensors"
workers = os.cpu_count() or 1  # processes
PARTS = 3  # number of parts into which the programs are divided
Names = str | list[str]


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
    """Train the model of diff.py and write it as safetensors.

    The exit code is 3 if binaries were skipped.

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
    paths = names_of(path)
    utils.check_outputs({"to": to}, [train_cfg, *paths], {"outputDir": outputDir})
    cfg = utils.read_config(MatchingConfig, train_cfg)
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
                f"{', '.join(paths)}: no program has two builds, apart from those held out"
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
            for pair in pairs_of(program, c, model.encoder, cfg.pairs, cfg.seed)
        ]
        for name, part in (("trained on", train), ("held out", rest)):
            if part:
                alone, around = measure(part, model)
                print(
                    f"{name:10}  partner found by itself {alone:.1%}, "
                    f"with its neighbours {around:.1%}"
                )
        for file, reason in skipped.items():
            print(f"skipped {file}: {reason}")
        return PARTLY if skipped else 0


def cross_fitted(programs: dict[str, list[Features]], cfg: MatchingConfig) -> list[Pair]:
    """Return the pairs of all programs, measured by encoders not trained on the program."""
    names = sorted(programs)
    pairs = []
    for part in range(min(PARTS, len(names))):
        inside = names[part::PARTS]
        # If there is only one program, use its own encoder.
        rest = {p: codes for p, codes in programs.items() if p not in inside} or programs
        fitted = train_encoder(rest, cfg, f"encoder without part {part + 1} of {PARTS}")
        for program in progress.bar(inside, desc="pairs"):
            pairs += pairs_of(program, programs[program], fitted, cfg.pairs, cfg.seed)
    return pairs


def train_model(pairs: list[Pair], fitted: WordVectors, cfg: MatchingConfig) -> Model:
    """Train the networks; the model also contains the encoder ``fitted``."""
    similarity = train_similarity(pairs, cfg)
    return Model(fitted, similarity, train_neighbours(pairs, similarity, cfg))


def describe(
    programs: dict[str, list[Features]], train: list[Pair], cfg: MatchingConfig
) -> dict[str, str]:
    """Return the model's card: its training programs and settings."""
    return {
        "what": "diff.py: an encoder of functions; a similarity network and a neighbour network",
        "programs": " ".join(f"{name} ({len(programs[name])} builds)" for name in sorted(programs)),
        "pairs of builds": str(len(train)),
        "settings": str(dataclasses.asdict(cfg)),
        "analysis": analysis_settings(),
    }


def measure(pairs: list[Pair], model: Model) -> tuple[float, float]:
    """Return the share of functions with a partner that rank it first; small ones do not count.

    The first share is that of the similarity network alone, the second that of both networks.
    """
    right: list[list[np.ndarray]] = [[], []]
    for pair in pairs:
        asked = np.flatnonzero((pair.partner_a >= 0) & (pair.weight_a == 1))
        pair = plausible_part(pair, model.similarity)
        alone = model.similarity(pair.candidates.measures)
        logit = pair.evidence.rounds(pair.candidates, alone, model.neighbours)
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
