"""Disassemble each binary, merge the control-flow graphs of each pair, walk them -> data/0, ...

    python gendata.py                all pairs of the builds under `path`
    python gendata.py --biname '*'   the same for all programs there
    python gendata.py show 0         print the blocks of data/0
    python gendata.py text 0         write the walks of data/0 as text to data/0/walks.txt

Each folder in `path` that contains the program `biname` is one build. Each build is analysed once
and cached in `outputDir`. Each pair of builds (i, j), i < j, becomes one folder in `data`; an
interrupted run leaves no half-written folder.

A pair's folder holds pair.json (which binaries, which analyses, counts), dictionary.txt (its
tokens) and walks.npz (block ids). Blocks and edges are stored in `outputDir`, one file per binary,
because pairs share them: a program with 16 builds has 120 pairs, and each build is in 15 of them.
"""

if __name__ == "__main__":
    from terminal.early import answer

    answer(__file__)  # --help and messages about wrong flags need not wait for the imports below

import dataclasses
import hashlib
import itertools
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

import utils
from binary.analysis import Analysis, analysis_settings, cache_file, count_imports, load_analysis
from binary.builds import find_programs, find_refused
from binary.cache import analyse_all, refuse_arch, report_skipped, take_slices
from binary.tokens import VERSION as TOKENS
from binary.tokens import Tokens, tokenise
from experiment_data import recipes
from experiment_data.recipes import package_of
from jobs.processes import MEMORY_LIMIT, TIME_LIMIT, Limit
from jobs.run import run_all
from pairs import walks
from pairs.folder import (
    FORMAT_VERSION,
    Build,
    Counts,
    PairInfo,
    WalkSettings,
    analysis_files,
    is_made,
    pair_folder,
    read_info,
)
from pairs.merge import merge
from pairs.text import write_text
from terminal.arguments import names_of
from terminal.command_line import PARTLY, command_line
from terminal.escape import printable

biname = "chroot"  # the program to look for; several: ["chroot", "ls"]; all: "*"
path = "experiment_data/coreutils/binaries/"  # its builds: path/<build>/<biname>
outputDir = "output/"  # cache of analysed binaries, one file each
data = "data"  # pairs: data/0, data/1, ...
pairs = None  # maximum number of pairs per program; None: all
validation = 0.1  # share of the programs held out to measure a training
test = 0.1  # share of the programs held out for a final test
walk = "control_flow"  # how to walk, a key of pairs.walks.WALKS; plain DeepWalk: "deepwalk"
num_walks = 2  # minimum number of visits to each basic block
walk_length = 16  # basic blocks per sentence
sentences = 4  # maximum number of sentences per document
seed = 0
workers = os.cpu_count() or 1  # processes
time_limit = TIME_LIMIT  # seconds per binary or pair
memory_limit = MEMORY_LIMIT  # GiB per binary or pair
ENOUGH_PAIRS = 100
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


def main(
    biname: str | list[str] = biname,
    path: str = path,
    outputDir: str = outputDir,
    data: str = data,
    pairs: Count | None = pairs,
    validation: Share = validation,
    test: Share = test,
    walk: str = walk,
    num_walks: Count = num_walks,
    walk_length: Count = walk_length,
    sentences: Count = sentences,
    text: bool = False,
    seed: Annotated[int, Field(ge=0)] = seed,
    workers: Count = workers,
    time_limit: Limit = time_limit,
    memory_limit: Limit = memory_limit,
    cluster: str | None = None,
    arch: str | None = None,
) -> int:
    """Turn all pairs of builds of a program into walks over their merged control-flow graphs.

    The exit code is 3 when binaries were skipped, and 1 when nothing could be done.

    Parameters
    ----------
    biname : str or list of str
        File name of the program, of several (--biname chroot,ls), or a pattern (--biname '*').
        Only builds of the same program are paired.
    path : str
        Folder with one sub-folder for each build of the program.
    outputDir : str
        Folder where analysed binaries are cached.
    data : str
        Folder that the pairs are written to.
    pairs : int
        Maximum number of pairs per program, chosen at random so that all builds are used. Without
        it, all pairs.
    validation : float
        Share of the programs held out to measure a training. Where there are programs of packages
        that experiment_data/recipes.py sets aside, exactly these are held out.
    test : float
        Share of the programs held out for a final test; no training reads them. As above.
    walk : str
        How to walk: control_flow (paths that an execution could take) or deepwalk.
    num_walks : int
        Minimum number of visits to each basic block that holds code; for deepwalk: number of walks
        that start at each block.
    walk_length : int
        Basic blocks per sentence.
    sentences : int
        Maximum number of sentences per document.
    text : bool
        Also write each pair's walks as text, to data/<n>/walks.txt.
    seed : int
        Random seed. Equal seeds give equal bytes, whatever the number of workers.
    workers : int
        Number of parallel processes.
    time_limit : float
        Seconds of processor time per binary or pair; those that need more are skipped.
    memory_limit : float
        GiB of memory per binary or pair; those that need more are skipped.
    cluster : str
        Address of a Dask scheduler; its workers replace the processes on this machine.
    arch : str
        Processor whose slice of a universal (macOS) file to read, such as aarch64 or x86_64.
    """
    began = time.perf_counter()
    if validation + test >= 1:
        raise utils.UsageError(
            f"--validation {validation} and --test {test} leave no program to train on"
        )
    if walk not in walks.WALKS:
        raise utils.UsageError(f"--walk {walk!r}: choose from {', '.join(walks.WALKS)}")
    if cluster is not None and workers != (os.cpu_count() or 1):
        raise utils.UsageError("--workers is for this machine's processes, not for a --cluster")
    utils.check_outputs({}, (), {"outputDir": outputDir, "data": data})
    programs = find_programs(path, names_of(biname))
    binaries = list(itertools.chain.from_iterable(programs.values()))
    refuse_arch((binary["path"] for binary in binaries), arch)
    with utils.one_writer(data):
        utils.remove_leftovers(outputDir, data)
        refused = {file: why for name in programs for file, why in find_refused(path, name).items()}
        if arch is not None:
            refused |= replace_by_slices(programs, outputDir, arch)
            binaries = list(itertools.chain.from_iterable(programs.values()))
        limits = (time_limit, memory_limit)
        skipped = refused | analyse_all(binaries, outputDir, workers, limits, cluster)
        analysed = {
            program: [build for build in builds if build["path"] not in skipped]
            for program, builds in programs.items()
        }
        settings = WalkSettings(walk, num_walks, walk_length, sentences)

        def descriptions() -> Iterator[PairInfo]:
            # Generated again each time, so that memory does not grow with the number of pairs.
            return describe_pairs(analysed, pairs, (validation, test), settings, seed)

        total = sum(1 for _ in descriptions())
        if not total:
            reasons = "; ".join(dict.fromkeys(skipped.values()))  # equal files share one
            raise utils.UserError(f"fewer than two binaries could be analysed: {reasons}")
        stale = remove_stale(data, descriptions(), total)
        # All remaining folders belong to this run.
        missing = sum(not is_there(data, pair) for pair in descriptions())
        jobs = ((p.pair, (p, outputDir, data)) for p in descriptions() if not is_there(data, p))
        where = (workers, limits, cluster, analysis_settings)
        failed = failures(run_all(write_pair, jobs, missing, "pairs", *where))
        if len(failed) == total:
            raise utils.UserError(
                f"no pair could be made: {'; '.join(dict.fromkeys(failed.values()))}"
            )
        if text:
            made = [pair.pair for pair in descriptions() if pair.pair not in failed]
            jobs = ((n, (pair_folder(data, n), outputDir)) for n in made)
            failed |= failures(run_all(write_text, jobs, len(made), "texts", *where))

        made = (pair.pair for pair in descriptions() if pair.pair not in failed)
        n_binaries, seconds = len(binaries) + len(refused), time.perf_counter() - began
        report(data, made, total - missing, stale, n_binaries, skipped, seconds)
        named = [p for p, builds in programs.items() if set_aside_for(builds)]
        if named and len(named) < len(programs):
            print(
                f"note: experiment_data/recipes.py sets {len(named)} of the programs aside by the "
                "names of their packages; all others are for training"
            )
        for file in without_imports(binaries, outputDir, skipped):
            name = printable(file)
            print(f"note: {name} imports nothing, so only strings link it to other builds")
        for number, reason in sorted(failed.items()):
            print(f"skipped pair {number}: {printable(reason)}", file=sys.stderr)
        return PARTLY if skipped or failed else 0


def replace_by_slices(
    programs: dict[str, list[dict[str, str]]], output_dir: str, arch: str
) -> dict[str, str]:
    """Replace universal files by their slices; leave out those that have none, and say why."""
    refused = {}
    for program, builds in programs.items():
        taken = []
        for build in builds:
            try:
                (file,) = take_slices((build["path"],), output_dir, arch)
            except utils.UserError as error:
                refused[build["path"]] = str(error)
            else:
                taken.append({**build, "path": file, "sha256": utils.sha256_of(file)})
        programs[program] = taken
    return refused


def failures(results: Iterator[tuple[int, str | None]]) -> dict[int, str]:
    """Run jobs to their end; return the number and error of each that failed."""
    return {number: error for number, error in results if error is not None}


def without_imports(binaries: list[dict[str, str]], output_dir: str, skipped: dict) -> list[str]:
    """Return the paths of binaries without imports, such as statically linked ones."""
    return [
        binary["path"]
        for binary in binaries
        if binary["path"] not in skipped
        and not count_imports(cache_file(output_dir, binary["sha256"]))
    ]


def describe_pairs(
    programs: dict[str, list[dict[str, str]]],
    limit: int | None,
    shares: tuple[float, float],
    settings: WalkSettings,
    seed: int,
) -> Iterator[PairInfo]:
    """Yield the pair.json of each pair, without counts. One that is already there is not redone."""
    known = {program: set_aside_for(builds) for program, builds in programs.items()}
    split = split_programs(known, *shares, seed)
    numbers = itertools.count()
    for program, builds in programs.items():
        for first, second in choose_pairs(len(builds), limit, [seed, *os.fsencode(program)]):
            binaries = [builds[first], builds[second]]
            yield PairInfo(
                format_version=FORMAT_VERSION,
                pair=next(numbers),
                program=printable(program),
                split=split[program],
                binaries=[
                    Build(**{key: printable(value) for key, value in binary.items()})
                    for binary in binaries
                ],
                analysis=analysis_settings(),
                tokens=TOKENS,
                analyses=[cache_file(".", binary["sha256"]).name for binary in binaries],
                settings=settings,
                seed=seed,
            )


def choose_pairs(builds: int, limit: int | None, seed: list[int]) -> Iterator[tuple[int, int]]:
    """Yield pairs (i, j), i < j < builds, sorted: all of them, or ``limit`` chosen at random.

    The first ``builds / 2`` of them cover every build. Up to ``builds``, they complete a ring
    through all builds. All further pairs are drawn uniformly.
    """
    total = math.comb(builds, 2)
    if limit is None or limit >= total:
        yield from itertools.combinations(range(builds), 2)
        return
    rng = np.random.default_rng(seed)
    around = rng.permutation(builds).tolist()
    ring = list(zip(around, around[1:] + around[:1], strict=True))
    candidates = ring[::2] + ring[1::2]
    for code in rng.choice(total, limit, replace=False).tolist():
        high = (1 + math.isqrt(1 + 8 * code)) // 2  # pairs in the order (0,1) (0,2) (1,2) (0,3)
        candidates.append((high, code - math.comb(high, 2)))
    chosen: set[tuple[int, int]] = set()
    for pair in candidates:
        if len(chosen) < limit:
            chosen.add((min(pair), max(pair)))
    yield from sorted(chosen)


def set_aside_for(builds: list[dict[str, str]]) -> str | None:
    """Return the split that experiment_data/recipes.py sets a program's package aside for."""
    packages = {package_of(build["build"]) for build in builds}
    if packages & {*recipes.TEST}:
        return "test"
    return "validation" if packages & {*recipes.VALIDATION} else None


def split_programs(
    programs: dict[str, str | None], validation: float, test: float, seed: int
) -> dict[str, str]:
    """Return program -> "train", "validation" or "test".

    ``programs`` has the split of each program that is set aside by name, else None. If some are,
    all others are for training. If none or all are, a hash of the program's name and the seed
    decides, so that a program stays in its split when others are added. With few programs a split
    may then be empty, and one program is moved there: two programs are split into one each for
    training and validation, three into one each for all.
    """
    if any(programs.values()) and not all(programs.values()):
        return {program: known or "train" for program, known in programs.items()}
    hashes = {p: hashlib.sha256(os.fsencode(f"{seed} {p}")).digest() for p in programs}
    place = {p: int.from_bytes(digest[:8]) / 2**64 for p, digest in hashes.items()}
    split = {
        p: "test" if place[p] < test else "validation" if place[p] < test + validation else "train"
        for p in sorted(place, key=place.__getitem__)
    }
    wanted = [("train", 1.0), ("validation", validation), ("test", test)]
    for name, share in wanted[: len(split)]:
        if share and name not in split.values():
            (fullest, _), *_ = Counter(split.values()).most_common()
            movable = [p for p in split if split[p] == fullest]
            split[movable[-1 if name == "train" else 0]] = name
    return split


def remove_stale(data: str, pairs: Iterator[PairInfo], total: int) -> int:
    """Remove pair folders that this run would not make as they are; return how many.

    This happens before new pairs are made, so that a corpus never mixes pairs of two settings, even
    if the run is interrupted.
    """
    there = [file.parent for file in Path(data).glob("*/pair.json") if file.parent.name.isdecimal()]
    stale = [f for f in there if str(int(f.name)) != f.name or int(f.name) >= total]
    stale += [
        pair_folder(data, pair.pair)
        for pair in pairs
        if is_there(data, pair) and not is_made(data, pair)
    ]
    for folder in stale:
        utils.remove_folder(folder)
    return len(stale)


def is_there(data: str, pair: PairInfo) -> bool:
    """Whether the pair's folder was finished, by this run or another."""
    return (pair_folder(data, pair.pair) / "pair.json").exists()


@lru_cache(maxsize=64)
def _read(file: Path) -> tuple[Analysis, Tokens]:
    analysis = load_analysis(file, for_display=False)
    return analysis, tokenise(analysis)


def write_pair(pair: PairInfo, output_dir: str, data: str) -> None:
    """Merge, walk and write one pair; runs in a worker."""
    analyses, tokens = zip(*map(_read, analysis_files(pair, output_dir)), strict=True)
    merged = merge(*analyses)
    sizes = np.concatenate([np.diff(of_binary.offsets) for of_binary in tokens])
    dictionary = sorted(set().union(*(of_binary.dictionary for of_binary in tokens)))
    settings = pair.settings
    # Seeded by content: a pair's walks stay the same when its number changes.
    contents = [int(binary.sha256[:16], 16) for binary in pair.binaries]
    most = settings.walk_length * settings.sentences
    walk = walks.WALKS[settings.walk]
    blocks, document = walk(merged, settings.num_walks, most, [pair.seed, *contents])
    lengths = np.diff(document)
    in_second = np.add.reduceat(merged.binary[blocks], document[:-1], dtype=np.int64)
    counts = Counts(
        blocks=len(merged.address),
        edges=len(merged.edges),
        merged=len(merged.merged),
        visits=len(blocks),
        walks=int((-(-lengths // settings.walk_length)).sum()),
        documents=len(lengths),
        documents_in_both=int(np.count_nonzero((in_second > 0) & (in_second < lengths))),
        tokens=int(sizes[blocks].sum()),
        document_lengths=np.bincount(lengths).tolist(),
    )
    done = dataclasses.asdict(dataclasses.replace(pair, counts=counts))
    try:
        with utils.atomic_folder(pair_folder(data, pair.pair)) as folder:
            walks.save_walks(folder / "walks.npz", blocks, document)
            lines = "".join(f"{token}\n" for token in dictionary)
            (folder / "dictionary.txt").write_text(lines, encoding="utf-8", newline="\n")
            (folder / "pair.json").write_text(json.dumps(done) + "\n")
    except OSError:
        # On a cluster, a worker that seemed dead may have written the same pair meanwhile.
        if not is_made(data, pair):
            raise


def report(data, pairs, kept, stale, binaries, skipped, seconds) -> None:
    """Print what was made, and what was skipped and why."""
    total: Counter[str] = Counter()
    splits: dict[str, set[str]] = {}
    lengths = np.zeros(1, np.int64)
    for number in pairs:
        info = read_info(pair_folder(data, number))
        splits.setdefault(info.split, set()).add(info.program)
        counts = dataclasses.asdict(info.counts)
        of_pair = np.array(counts.pop("document_lengths"), np.int64)
        lengths = np.pad(lengths, (0, max(0, len(of_pair) - len(lengths))))
        lengths[: len(of_pair)] += of_pair
        total.update(counts, pairs=1)
    by_document, by_block = np.cumsum(lengths), np.cumsum(lengths * np.arange(len(lengths)))
    quartiles = "/".join(
        str(np.searchsorted(by_document, q * by_document[-1])) for q in (0.25, 0.5, 0.75)
    )
    middle = np.searchsorted(by_block, 0.5 * by_block[-1])
    both = total["documents_in_both"] / total["documents"]
    print(f"binaries       {binaries}, {len(skipped)} skipped")
    print(f"programs       {sum(map(len, splits.values()))}: " + in_words(splits))
    print(f"pairs          {total['pairs']} in {data}/, {kept} of them already there")
    print(f"blocks         {total['blocks']:,} (each pair counts its own)")
    print(f"edges          {total['edges']:,}")
    print(f"merged blocks  {total['merged']:,}")
    print(f"walks          {total['walks']:,} in {total['documents']:,} documents")
    print(f"blocks a document: quartiles {quartiles}; around the median block {middle}")
    print(f"documents with blocks of both binaries: {both:.1%}")
    print(f"tokens         {total['tokens']:,}")
    print(f"seconds        {seconds:.1f}")
    if stale:
        print(f"removed {stale} pair folders of an earlier run that this one does not make")
    report_skipped(skipped)
    if total["pairs"] < ENOUGH_PAIRS:
        print(
            f"{total['pairs']} pairs make a small corpus; better use {ENOUGH_PAIRS} or more, "
            "such as four versions at four optimisation levels (120 pairs):"
        )
        print('    python experiment_data/build_coreutils.py --versions "8.32 9.1 9.7 9.10"')


def in_words(splits: dict[str, set[str]]) -> str:
    """Say how many programs each split has; if there are few, name them."""
    parts = []
    for name in ("train", "validation", "test"):
        programs = sorted(splits.get(name, ()))
        named = f" ({', '.join(programs)})" if 0 < len(programs) <= 5 else ""
        parts.append(f"{len(programs)} {name}{named}")
    return ", ".join(parts)


def show(pair: Annotated[int, Field(ge=0)], outputDir: str = outputDir, data: str = data) -> None:
    """Print the blocks of one pair: address, function, edges, instructions, tokens, partner.

    Parameters
    ----------
    pair : int
        The number of the pair's folder in data.
    outputDir : str
        Folder of the analysed binaries.
    data : str
        Folder of the pairs.
    """
    info = read_info(pair_folder(data, pair))
    analyses = [load_analysis(file) for file in analysis_files(info, outputDir)]
    merged = merge(*analyses)
    words = [words for analysis in analyses for words in tokenise(analysis).words()]
    text = [lines for analysis in analyses for lines in analysis.instructions]
    names = [name for analysis in analyses for name in analysis.function_name]
    partner = dict(merged.merged.tolist()) | {b: a for a, b in merged.merged.tolist()}
    out: dict[int, list[str]] = {}
    for (source, target), how in zip(merged.edges.tolist(), merged.kind.tolist(), strict=True):
        out.setdefault(source, []).append(f"{('', 'call ', 'over to ')[how]}{target}")

    builds = [build.build for build in info.binaries]
    counts = dataclasses.asdict(info.counts).items()
    print(f"pair {pair}: {info.program}, [0] {builds[0]}, [1] {builds[1]}")
    print(", ".join(f"{n:,} {key}" for key, n in counts if isinstance(n, int)))
    for block, binary in enumerate(merged.binary.tolist()):
        where = f"0x{merged.address[block]:x}" if text[block] else "import"
        line = f"block {block} [{binary}] {where} in {names[merged.function[block]]}"
        if block in out:
            line += f" -> {', '.join(out[block])}"
        if block in partner:
            line += f"  = block {partner[block]} [{1 - binary}]"
        print()  # by itself: a "\n" in the text below would be escaped
        print(line)
        for instruction in text[block].decode().splitlines():
            print(f"    {instruction}")
        print("  tokens:", *words[block])


def text(pair: Annotated[int, Field(ge=0)], outputDir: str = outputDir, data: str = data) -> None:
    """Write the walks of one pair, as they stand in the corpus, to data/<pair>/walks.txt.

    Parameters
    ----------
    pair : int
        The number of the pair's folder in data.
    outputDir : str
        Folder of the analysed binaries.
    data : str
        Folder of the pairs.
    """
    folder = pair_folder(data, pair)
    write_text(folder, outputDir)
    print(f"{folder / 'walks.txt'} is ready")


if __name__ == "__main__":
    command_line(main, show=show, text=text)
