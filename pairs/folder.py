"""The folder data/<n> of a pair of binaries, and the schema of its pair.json.

- pair.json: which binaries, which analyses, which settings, and counts (:class:`PairInfo`)
- walks.npz: the walks as block ids, see :func:`pairs.walks.save_walks`
- dictionary.txt: the pair's tokens, one per line
- walks.txt: the walks as text, if `gendata.py text` was run for this pair

Blocks, edges and tokens are stored once per binary in gendata.py's outputDir, because each binary
is in many pairs.
"""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field

import utils

FORMAT_VERSION = 3
MOST = 2**32  # upper bound of all counts in a pair
Count = Annotated[int, Field(ge=0, lt=MOST)]
Two = Field(min_length=2, max_length=2)


@pydantic.dataclasses.dataclass(config=utils.STRICT)
class Build:
    """One of a pair's two binaries."""

    path: str
    build: str
    sha256: str


@pydantic.dataclasses.dataclass(config=utils.STRICT)
class WalkSettings:
    """How a pair is walked; see gendata.py."""

    walk: str
    num_walks: Annotated[int, Field(ge=1)]
    walk_length: Annotated[int, Field(ge=1)]
    sentences: Annotated[int, Field(ge=1)]


@pydantic.dataclasses.dataclass(config=utils.STRICT)
class Counts:
    """Counts of a pair.

    Attributes
    ----------
    blocks, edges, merged : int
        In the merged graph; ``merged`` counts the nodes that stand for a block of each binary.
    visits, walks, documents : int
        Number of blocks, sentences and documents in the walks.
    documents_in_both : int
        Number of documents with blocks of both binaries.
    tokens : int
        Number of tokens in the walks.
    document_lengths : list of int
        ``document_lengths[n]`` documents have n blocks.
    """

    blocks: Count
    edges: Count
    merged: Count
    visits: Count
    walks: Count
    documents: Count
    documents_in_both: Count
    tokens: Count
    document_lengths: list[Count]


@pydantic.dataclasses.dataclass(config=utils.STRICT)
class PairInfo:
    """The content of pair.json. Equal content, except for ``counts``, means equal walks.

    Attributes
    ----------
    pair : int
        The folder's number.
    program, split : str
        The program that both binaries are builds of, and the split that it belongs to.
    binaries : list of Build
        The first and the second binary.
    analysis : str
        Settings of the analyses, see :func:`binary.analysis.analysis_settings`.
    tokens : int
        Version of the tokens, see :mod:`binary.tokens`.
    analyses : list of str
        File names of the two analyses in outputDir.
    settings : WalkSettings
    seed : int
    counts : Counts or None
        None until the pair is walked.
    """

    format_version: Literal[3]
    pair: Count
    program: str
    split: Literal["train", "validation", "test"]
    binaries: Annotated[list[Build], Two]
    analysis: str
    tokens: int
    analyses: Annotated[list[str], Two]
    settings: WalkSettings
    seed: Annotated[int, Field(ge=0)]
    counts: Counts | None = None


def pair_folder(data: str | Path, number: int) -> Path:
    """Return the folder of a pair."""
    return Path(data) / str(number)


def find_pairs(data: str | Path) -> tuple[list[Path], list[Path]]:
    """Return the complete and the incomplete pair folders of ``data``, each in numeric order.

    Raises
    ------
    UserError
        There is no such folder.
    """
    utils.check_folder(data, "data", "run `python gendata.py` first")
    folders = [path for path in Path(data).iterdir() if re.fullmatch("[0-9]+", path.name)]
    folders.sort(key=lambda path: (int(path.name), path.name))
    complete = [path for path in folders if (path / "pair.json").exists()]
    return complete, [path for path in folders if not (path / "pair.json").exists()]


def read_info(folder: Path) -> PairInfo:
    """Read the pair.json of a finished pair.

    Raises
    ------
    UserError
        It is missing, damaged, or of another format version.
    """
    utils.check_folder(folder.parent, "data", "run `python gendata.py` first")
    if not folder.exists():
        raise utils.UserError(f"there is no pair {folder}; `python gendata.py` makes the pairs")
    try:
        info = utils.read_config(PairInfo, folder / "pair.json")
    except utils.UserError as error:
        raise utils.UserError(f"{error}; {remedy(folder)}") from error
    if info.counts is None:
        raise utils.UserError(f"{folder}/pair.json: key 'counts' is missing; {remedy(folder)}")
    return info


def remedy(folder: Path) -> str:
    """Say how to repair a damaged pair."""
    return f"delete {folder} and run `python gendata.py` again"


def is_made(data: str | Path, wanted: PairInfo) -> bool:
    """Whether the pair was already finished with exactly these binaries and settings."""
    try:
        made = read_info(pair_folder(data, wanted.pair))
    except utils.UserError:
        return False
    return dataclasses.replace(made, counts=wanted.counts) == wanted


def analysis_files(info: PairInfo, output_dir: str | Path) -> list[Path]:
    """Return the files of the two analyses that a pair refers to.

    Raises
    ------
    UserError
        One is not there.
    """
    files = [Path(output_dir) / Path(name).name for name in info.analyses]
    for file, build in zip(files, info.binaries, strict=True):
        if not file.is_file():
            raise utils.UserError(
                f"{file}, the analysis of {build.path} that pair {info.pair} refers to, is "
                "missing; give gendata.py's outputDir as --outputDir, or run `python gendata.py` "
                "again"
            )
    return files
