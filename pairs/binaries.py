"""The binaries that gendata.py has made pairs of, and where their analyses are."""

from pathlib import Path
from typing import NamedTuple

from experiment_data.recipes import package_of
from pairs.folder import PairInfo, analysis_files, find_pairs, read_info


class Binary(NamedTuple):
    """A binary of some pairs; ``analysis`` is its file in gendata.py's outputDir."""

    program: str
    build: str
    sha256: str
    split: str
    analysis: Path

    @property
    def package(self) -> str:
        return package_of(self.build)


def read_pairs(data: str, *splits: str) -> list[PairInfo]:
    """Read the finished pairs in gendata.py's folder ``data``, all or only those of some splits.

        read_pairs("data", "train", "validation")

    Raises
    ------
    utils.UserError
        The folder is missing, or a pair.json is damaged.
    """
    pairs = [read_info(folder) for folder in find_pairs(data)[0]]
    return [pair for pair in pairs if not splits or pair.split in splits]


def binaries_of(pairs: list[PairInfo], output_dir: str) -> list[Binary]:
    """Return the binaries of pairs, those to train on first; equal builds of a program count once.

    Raises
    ------
    utils.UserError
        An analysis is missing.
    """
    found: dict[tuple[str, str], Binary] = {}
    for pair in pairs:
        files = analysis_files(pair, output_dir)
        for build, analysis in zip(pair.binaries, files, strict=True):
            new = Binary(pair.program, build.build, build.sha256, pair.split, analysis)
            old = found.setdefault((pair.program, build.sha256), new)
            found[pair.program, build.sha256] = min(old, new)
    return sorted(found.values(), key=lambda b: (b.split != "train", b.build, b.program))
