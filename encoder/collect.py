"""Collect what the encoder learns from, out of gendata.py's pairs and the analysed binaries."""

import itertools
from pathlib import Path

import numpy as np

import utils
from binary.analysis import load_analysis
from binary.symbols import source_names
from encoder.corpus import (
    COLUMNS,
    FUNCTIONS,
    Build,
    Corpus,
    Walks,
    arrays_of,
    part_of,
    positions_of,
)
from experiment_data.recipes import package_of
from features.extract import extract_features
from features.positions import read_positions
from features.words import ranges
from files.arrays import Schema, Texts, read_arrays, write_arrays
from pairs.binaries import Binary
from pairs.folder import PairInfo, pair_folder, remedy
from pairs.walks import load_walks
from terminal import progress

VERSION = 2  # of the cached files: raise it if their content changes, so that they are made again
PART: Schema = FUNCTIONS | {"processor": Texts(1)}


def keep_part(analysis_file: Path) -> None:
    """Write the cache file for one analysed binary's part of the corpus; runs in a worker."""
    analysis = load_analysis(analysis_file)
    code = extract_features(analysis)
    positions = read_positions(code)
    size = np.bincount(positions.block, minlength=analysis.blocks)
    begin = np.zeros(analysis.blocks, np.int32)
    met, first = np.unique(positions.block, return_index=True)
    begin[met] = first
    part = {
        **arrays_of(positions),
        "blocks": code.sizes,
        "name": source_names(analysis),
        "begin": begin,
        "size": size.astype(np.int32),
        "processor": [analysis.processor],
    }
    with utils.atomic_file(part_file(analysis_file), "wb") as file:
        write_arrays(file, part, PART)


def part_file(analysis_file: Path) -> Path:
    """Return the cache file for an analysed binary's part."""
    return analysis_file.parent / "positions" / f"{analysis_file.stem}-{VERSION}.npz"


def load_part(file: Path) -> dict:
    """Read a cache file of `keep_part`: arrays and lists of strings, as PART describes them.

    Raises
    ------
    utils.UserError
        The file is missing or damaged.
    """
    return read_arrays(file, PART, "cache of words", "delete the file and run again")


def take_part(pairs: list[PairInfo], k: int, n: int) -> list[PairInfo]:
    """Return the pairs of a part (`part_of`) of the packages for training, and all others."""
    packages = [{package_of(build.build) for build in pair.binaries} for pair in pairs]
    is_ours = [pair.split == "train" for pair in pairs]
    learned = itertools.chain.from_iterable(itertools.compress(packages, is_ours))
    chosen = part_of(learned, k, n)
    return [
        pair
        for pair, of_pair, ours in zip(pairs, packages, is_ours, strict=True)
        if not ours or of_pair <= chosen
    ]


def join(
    binaries: list[Binary],
    pairs: list[PairInfo],
    data: str,
    most: int,
) -> Corpus:
    """Join the parts of binaries to a corpus, with walks of the pairs to train on.

    Parameters
    ----------
    binaries : list of Binary
        As `binaries_of` returns them; `keep_part` has cached their parts.
    pairs : list of PairInfo
    data : str
        Folder of the pairs.
    most : int
        Maximum number of walks of a pair.
    """
    parts = [load_part(part_file(b.analysis)) for b in progress.bar(binaries, desc="functions")]
    builds = []
    function = block = 0
    for binary, part in zip(binaries, parts, strict=True):
        last, last_block = function + len(part["name"]), block + len(part["begin"])
        about = binary.package, binary.program, binary.build, part["processor"][0]
        builds.append(Build(*about, binary.sha256, binary.split, function, last, block, last_block))
        function, block = last, last_block
    joined: dict = {
        name: np.concatenate([part[name] for part in parts])
        for name in ("blocks", *(f"{n} {of}" for n in COLUMNS for of in ("word", "count")))
    }
    for name in ("offsets", *(f"{name} offsets" for name in COLUMNS)):
        joined[name] = _joined([part[name] for part in parts])
    for name, of in (("line", "of_line offsets"), ("begin", "names offsets")):
        shift = np.cumsum([0, *(len(part[of]) - 1 for part in parts[:-1])])
        shifted = [part[name] + by for part, by in zip(parts, shift.tolist(), strict=True)]
        joined[name] = np.concatenate(shifted).astype(np.int32)
    first_block = {(build.program, build.sha256): build.first_block for build in builds}
    sizes = {(b.program, b.sha256): b.last_block - b.first_block for b in builds}
    walks = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for pair in progress.bar([p for p in pairs if p.split == "train"], desc="walks", unit="pair"):
        both = [(pair.program, build.sha256) for build in pair.binaries]
        found, length = _crossing(pair, data, [sizes[key] for key in both], most)
        in_second = found >= sizes[both[0]]
        shift = np.where(in_second, first_block[both[1]] - sizes[both[0]], first_block[both[0]])
        walks[0].append((found + shift).astype(np.int32))
        walks[1].append(length)
    return Corpus(
        builds,
        positions_of(joined),
        [name for part in parts for name in part["name"]],
        joined["blocks"],
        Walks(
            np.concatenate(walks[0]),
            np.append(0, np.cumsum(np.concatenate(walks[1]))),
            joined["begin"],
            np.concatenate([part["size"] for part in parts]),
        ),
    )


def _joined(offsets: list[np.ndarray]) -> np.ndarray:
    sizes = [np.diff(some) for some in offsets]
    return np.cumsum(np.concatenate([np.zeros(1, np.int64), *sizes]))


def _crossing(
    pair: PairInfo, data: str, blocks: list[int], most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return at most ``most`` walks of a pair that visit both binaries: blocks, and lengths."""
    folder = pair_folder(data, pair.pair)
    block, offsets = load_walks(folder / "walks.npz")
    if len(block) and not 0 <= block.min() <= block.max() < sum(blocks):
        raise utils.UserError(
            f"{folder}/walks.npz is damaged (a block is not in 0 to {sum(blocks) - 1}); "
            f"{remedy(folder)}"
        )
    length = np.diff(offsets)
    walk = np.repeat(np.arange(len(length)), length)
    in_second = np.bincount(walk[block >= blocks[0]], minlength=len(length))
    crossing = np.flatnonzero((in_second > 0) & (in_second < length))
    chosen = np.random.default_rng([pair.seed, pair.pair]).permutation(crossing)[:most]
    return block[ranges(offsets[chosen], length[chosen])], length[chosen]
