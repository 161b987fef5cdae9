"""Train the networks of diff.py on builds of programs with symbols.

    make encoder                                    # -> model/encoder.safetensors
    python -m matching.train                        # -> model/diff.safetensors

Functions in two builds of a program are the same if their symbols have the same name; symbols are
not used for anything else. The networks learn to find each function's partner among the most
similar functions of the other build, or that it has none (a contrastive loss, InfoNCE).

The encoder remembers the packages that it learned from. The networks must learn how far to trust it
on others, so a program is measured by an encoder that has not learned from its package:

    for i in 1 2; do
        python dataprocess.py functions --data data/packages --part $i/2 --to out-$i/functions.npz
        python classify.py functions --data_file out-$i/functions.npz --save_dir out-$i \\
            --to out-$i/encoder.safetensors
    done
    python -m matching.train --encoders out-1/encoder.safetensors,out-2/encoder.safetensors
"""

if __name__ == "__main__":
    from terminal.early import answer

    answer(__file__)  # --help and messages about wrong flags need not wait for the imports below

import dataclasses
import os
from pathlib import Path

import numpy as np

import utils
from binary.analysis import analysis_settings
from binary.cache import report_skipped
from encoder.encoder import Encoder, read_encoder
from encoder.file import packages_of
from experiment_data.recipes import VALIDATION
from jobs.processes import MACHINE, Limit, limited_memory
from matching.model import ENCODER, Model, Network, write_model
from matching.networks import MatchingConfig, plausible_part, train_neighbours, train_similarity
from matching.training_pairs import Pair, Program, find_builds, pairs_of
from terminal import progress
from terminal.arguments import names_of
from terminal.command_line import PARTLY, command_line

data = "data/packages"  # the pairs that gendata.py made
held_out = ["ed", "xargs"]  # programs that are measured and not trained on
train_cfg = "config/contrast.json"
outputDir = "output/"  # analysed binaries, shared with gendata.py
to = "model/diff.safetensors"
Names = str | list[str]


def main(
    data: Names = data,
    held_out: Names = held_out,
    encoders: Names | None = None,
    train_cfg: str = train_cfg,
    outputDir: str = outputDir,
    to: str = to,
    memory_limit: Limit = MACHINE,
) -> int:
    """Train the networks of diff.py and write them as safetensors.

    They are for the encoder.safetensors beside the file that is written. The exit code is 3 if
    programs were skipped.

    Parameters
    ----------
    data : str or list of str
        Folders that gendata.py wrote: DIR1,DIR2. Pairs for the test are not read; packages that
        experiment_data/recipes.py sets aside for validation are measured.
    held_out : str or list of str
        More programs that are measured and not trained on: --held_out ed,patch.
    encoders : str or list of str
        Encoders for programs of packages that the one beside the result has learned from. Each
        program is measured by the first encoder that has not learned from it, or left out.
    train_cfg : str
        Settings of the training.
    outputDir : str
        Folder where analysed binaries are cached.
    to : str
        The file to write.
    memory_limit : float
        GiB of memory.
    """
    folders = names_of(data)
    files: list[str | os.PathLike[str]] = [Path(to).with_name(ENCODER), *names_of(encoders or [])]
    utils.check_outputs({"to": to}, [train_cfg, *files], whole=[*folders, outputDir])
    cfg = utils.read_config(MatchingConfig, train_cfg)
    own, *more = ((read_encoder(file), packages_of(file)) for file in files)
    with limited_memory(memory_limit, f"training on {', '.join(folders)}"):
        programs, skipped = find_builds(folders, outputDir), {}
        held = names_held_out(programs, names_of(held_out))
        train, used, rest = [], [], []
        for program in progress.bar(programs, desc="pairs"):
            encoder = encoder_for(program, [own, *more])
            if program.name in held:
                encoder = encoder or own[0]
            if encoder is None:
                skipped[program.name] = "every encoder has learned from its package"
                continue
            pairs = pairs_of(program, encoder, cfg.pairs, cfg.seed)
            if program.name in held:
                rest += pairs
            else:
                train += pairs
                used.append(program)
        if not train:
            raise utils.UserError(
                f"{', '.join(folders)}: no program has two builds that may be trained on; give more"
                " builds, or with --encoders an encoder that has not learned from their packages"
            )
        similarity, neighbours = train_both(train, cfg)
        model = Model(own[0], similarity, neighbours)
        card = describe(used, train, cfg)
        write_model(model, to, card)
        print(f"trained on {card['pairs of builds']} pairs of builds of: {card['programs']}")
        for name, part in (("trained on", train), ("held out", rest)):
            if part:
                alone, around = measure(part, model)
                print(
                    f"{name:10}  partner found by itself {alone:.1%}, "
                    f"with its neighbours {around:.1%}"
                )
        report_skipped(skipped)
        return PARTLY if skipped else 0


def names_held_out(programs: list[Program], more: list[str]) -> set[str]:
    """Return the names of the programs of packages for validation, and ``more``."""
    return {*more, *(p.name for p in programs if p.packages & {*VALIDATION})}


def encoder_for(program: Program, encoders: list[tuple[Encoder, set[str]]]) -> Encoder | None:
    """Return the first encoder that has not learned from any package of a program.

    ``encoders`` come with the packages that they have learned from.
    """
    for encoder, packages in encoders:
        if not packages & program.packages:
            return encoder
    return None


def train_both(pairs: list[Pair], cfg: MatchingConfig) -> tuple[Network, Network]:
    """Train the similarity network, and the neighbour network that builds on it."""
    similarity = train_similarity(pairs, cfg)
    return similarity, train_neighbours(pairs, similarity, cfg)


def describe(programs: list[Program], train: list[Pair], cfg: MatchingConfig) -> dict[str, str]:
    """Return the model's card: its training programs and settings."""
    return {
        "what": "diff.py: a similarity network and a neighbour network, for the encoder beside it",
        "programs": " ".join(f"{p.name} ({len(p.builds)} builds)" for p in programs),
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
