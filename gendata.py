"""Disassemble each binary, merge the control-flow graphs of each pair, walk them -> data/0, ...

    python gendata.py                all pairs of the builds under `path`
    python gendata.py --biname '*'   of all programs there
    python gendata.py show 0         the blocks of data/0, readable

Every folder of `path` that holds `biname` is one binary. Each is analysed once and cached in
`outputDir`; each pair (i, j), i < j, becomes one folder of `data`, written whole or not at all.

A pair's folder holds what is the pair's own: pair.json (which binaries, which analyses, counts) and
walks.npz (block ids). Blocks, edges and tokens stand once per binary in `outputDir`, from which
:func:`pairs.merge.merge` gives the pair's graph again in milliseconds.
"""

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
from typing import Annotated, Any

import numpy as np
from pydantic import Field

import utils
from binary.analysis import Analysis, analysis_settings, cache_file, count_imports, load_analysis
from binary.builds import find_programs, find_refused
from binary.cache import SKIPPED, analyse_all
from jobs.processes import MEMORY_LIMIT, TIME_LIMIT
from jobs.run import run_all
from pairs.merge import merge

biname = "chroot"  # the program to look for; several: ["chroot", "ls"]; all: "*"
path = "experiment_data/coreutils/binaries/"  # its builds: path/<build>/<biname>
outputDir = "output/"  # analysed binaries, one file each
data = "data"  # pairs: data/0, data/1, ...
pairs = None  # pairs of each program at most; None: all
validation = 0.1  # share of the programs that a training is measured on, not trained on
test = 0.1  # share of the programs that no training reads
num_walks = 2  # visits that each basic block gets at least
walk_length = 16  # basic blocks per sentence
sentences = 4  # sentences per document at most
seed = 0
workers = os.cpu_count() or 1  # processes
time_limit = TIME_LIMIT  # seconds that one binary, or one pair, may take
memory_limit = MEMORY_LIMIT  # GiB that it may take
FORMAT_VERSION = 2  # of a pair's folder
BUILD = ("path", "build", "sha256")  # what pair.json says of a binary
COUNTS = ("blocks", "edges", "merged", "walks", "documents", "documents_in_both", "tokens")
MOST = 2**32  # of anything in a pair
ENOUGH_PAIRS = 100
Count = Annotated[int, Field(ge=1)]
Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


def main(
    biname: str | list[str] = biname,
    path: str = path,
    outputDir: str = outputDir,
    data: str = data,
    pairs: Count | None = pairs,
    validation: Share = validation,
    test: Share = test,
    num_walks: Count = num_walks,
    walk_length: Count = walk_length,
    sentences: Count = sentences,
    seed: Annotated[int, Field(ge=0)] = seed,
    workers: Count = workers,
    time_limit: Limit = time_limit,
    memory_limit: Limit = memory_limit,
    cluster: str | None = None,
) -> int:
    """Turn all pairs of builds of a program into walks over their merged control-flow graphs.

    Ends with exit code 3 when binaries were skipped, with 1 when nothing could be done.

    Parameters
    ----------
    biname : str or list of str
        File name of the program, or of several: --biname chroot,ls, or a pattern: --biname '*'.
        Only builds of the same program are paired.
    path : str
        Folder whose sub-folders each hold one build of the program.
    outputDir : str
        Where analysed binaries are cached.
    data : str
        Where the pairs go.
    pairs : int
        Pairs of each program at most, chosen at random such that all builds are used; else all.
    validation, test : float
        Shares of the programs that are held out: for validation, and for a last test.
    num_walks : int
        Every basic block that holds code is visited at least so often.
    walk_length : int
        Basic blocks per sentence.
    sentences : int
        Sentences per document at most.
    seed : int
        Of all that is random; equal seeds give equal bytes, whatever the number of workers.
    workers : int
        Processes.
    time_limit : float
        Seconds that one binary, or one pair, may take; what takes longer is skipped.
    memory_limit : float
        GiB of memory that it may take.
    cluster : str
        Address of a Dask scheduler, whose workers then do what else the processes here do.
    """
    began = time.perf_counter()
    if validation + test >= 1:
        raise utils.UserError(
            f"--validation {validation} and --test {test} leave no program to train on"
        )
    programs = find_programs(path, [biname] if isinstance(biname, str) else biname)
    binaries = list(itertools.chain.from_iterable(programs.values()))
    utils.remove_leftovers(outputDir, data)
    refused = {file: why for name in programs for file, why in find_refused(path, name).items()}
    limits = (time_limit, memory_limit)
    skipped = refused | analyse_all(binaries, outputDir, workers, limits, cluster)
    analysed = {
        program: [build for build in builds if build["path"] not in skipped]
        for program, builds in programs.items()
    }
    settings = {"num_walks": num_walks, "walk_length": walk_length, "sentences": sentences}

    def descriptions() -> Iterator[dict[str, Any]]:
        # Made anew whenever they are read: memory does not grow with the number of pairs.
        return describe_pairs(analysed, pairs, (validation, test), settings, seed)

    total = sum(1 for _ in descriptions())
    if not total:
        reasons = "; ".join(skipped.values())
        raise utils.UserError(f"fewer than two binaries could be analysed: {reasons}")
    stale = remove_stale(data, descriptions(), total)
    # What is left there is just what this run makes.
    missing = sum(not pair_file(data, pair["pair"]).exists() for pair in descriptions())
    jobs = (
        (pair["pair"], (pair, outputDir, data))
        for pair in descriptions()
        if not pair_file(data, pair["pair"]).exists()
    )
    failed = {}
    if missing and cluster is None:
        from pairs import walks  # noqa: F401 - once, as angr; numba is not needed to import this file
    for number, error in run_all(write_pair, jobs, missing, workers, "pairs", limits, cluster):
        if error is not None:
            failed[number] = error
    if len(failed) == total:
        raise utils.UserError(f"no pair could be made: {'; '.join(set(failed.values()))}")

    made = (pair for pair in descriptions() if pair["pair"] not in failed)
    n_binaries, seconds = len(binaries) + len(refused), time.perf_counter() - began
    report(data, made, total - missing, stale, n_binaries, skipped, seconds)
    for file in without_imports(binaries, outputDir, skipped):
        print(f"note: {utils.printable(file)} imports nothing; only strings join it with others")
    for number, reason in failed.items():
        print(f"skipped pair {number}: {utils.printable(reason)}", file=sys.stderr)
    return SKIPPED if skipped or failed else 0


def without_imports(binaries: list[dict[str, str]], output_dir: str, skipped: dict) -> list[str]:
    """Return the paths of the binaries that import nothing, as static ones do."""
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
    settings: dict[str, int],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Yield what pair.json says of each pair before it is walked; equal means: nothing to redo."""
    split = split_programs(list(programs), *shares, seed)
    numbers = itertools.count()
    for program, builds in programs.items():
        for first, second in choose_pairs(len(builds), limit, [seed, *os.fsencode(program)]):
            binaries = [builds[first], builds[second]]
            yield {
                "format_version": FORMAT_VERSION,
                "pair": next(numbers),
                "program": utils.printable(program),
                "split": split[program],
                "binaries": [
                    {key: utils.printable(value) for key, value in binary.items()}
                    for binary in binaries
                ],
                "analysis": analysis_settings(),
                "analyses": [cache_file(".", binary["sha256"]).name for binary in binaries],
                "settings": settings,
                "seed": seed,
            }


def choose_pairs(builds: int, limit: int | None, seed: list[int]) -> Iterator[tuple[int, int]]:
    """Yield pairs (i, j), i < j < builds, sorted: all of them, or ``limit`` chosen at random.

    The first ``builds / 2`` chosen ones join every build with another, those up to ``builds`` are
    the rest of a ring through all builds, and all further ones are drawn uniformly.
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


def split_programs(
    programs: list[str], validation: float, test: float, seed: int
) -> dict[str, str]:
    """Return program -> train, validation or test.

    A hash of the program's name and the seed decides, so that a program stays where it is when
    others join it. Only where few programs leave a split empty, one is moved there: of two programs
    one is for validation, of three one is for the test.
    """
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


def remove_stale(data: str, pairs: Iterator[dict[str, Any]], total: int) -> int:
    """Remove pair folders that are not just what this run makes; return how many.

    That is done before any is made, so that whenever a run is stopped, no corpus can mix pairs of
    two settings.
    """
    here = [file.parent for file in Path(data).glob("*/pair.json") if file.parent.name.isdecimal()]
    stale = [f for f in here if str(int(f.name)) != f.name or int(f.name) >= total]
    stale += [
        pair_file(data, pair["pair"]).parent
        for pair in pairs
        if pair_file(data, pair["pair"]).exists() and not is_written(data, pair)
    ]
    for folder in stale:
        utils.remove_folder(folder)
    return len(stale)


def pair_file(data: str, number: int) -> Path:
    """Return where a pair is described: data/<number>/pair.json."""
    return Path(data) / str(number) / "pair.json"


def read_pair(data: str, number: int) -> dict[str, Any] | None:
    """Return data/<number>/pair.json, or None where it is missing or not what write_pair wrote."""
    try:
        pair = json.loads(pair_file(data, number).read_text())
        counts, builds, files = pair["counts"], pair["binaries"], pair["analyses"]
        texts = [pair["program"], *files, *(build[key] for build in builds for key in BUILD)]
        numbers = [*(counts[key] for key in COUNTS), *counts["document_lengths"]]
        sane = len(builds) == len(files) == 2 and type(counts["document_lengths"]) is list
        sane &= all(type(number) is int and 0 <= number < MOST for number in numbers)
        return pair if sane and all(type(text) is str for text in texts) else None
    except (OSError, ValueError, TypeError, LookupError):
        return None


def is_written(data: str, pair: dict[str, Any]) -> bool:
    """Whether data/<n> holds just this pair, made with these settings."""
    written = read_pair(data, pair["pair"])
    return written is not None and pair.items() <= written.items()


@lru_cache(maxsize=64)
def _analysis(output_dir: str, file: str) -> Analysis:
    return load_analysis(Path(output_dir) / file, for_display=False)


def write_pair(pair: dict[str, Any], output_dir: str, data: str) -> None:
    """Merge, walk and write one pair; runs in a worker."""
    from pairs import walks

    first, second = (_analysis(output_dir, file) for file in pair["analyses"])
    merged = merge(first, second)
    graph = walks.walk_graph(
        merged.edges, merged.kind, merged.merged, merged.function, merged.returns
    )
    settings = pair["settings"]
    # Seeded by content, so that a pair's walks stay when other binaries join and numbers move.
    contents = [int(binary["sha256"][:16], 16) for binary in pair["binaries"]]
    blocks, document = walks.control_flow_walks(
        graph,
        merged.has_code,
        settings["num_walks"],
        settings["walk_length"] * settings["sentences"],
        [pair["seed"], *contents],
    )
    lengths = np.diff(document)
    in_second = np.add.reduceat(merged.binary[blocks], document[:-1], dtype=np.int64)
    counts = {
        "blocks": len(merged.address),
        "edges": len(merged.edges),
        "merged": len(merged.merged),
        "visits": len(blocks),
        "walks": int((-(-lengths // settings["walk_length"])).sum()),
        "documents": len(lengths),
        "documents_in_both": int(np.count_nonzero((in_second > 0) & (in_second < lengths))),
        "tokens": int(np.diff(merged.offsets)[blocks].sum()),
        "document_lengths": np.bincount(lengths).tolist(),
    }
    try:
        with utils.atomic_folder(Path(data) / str(pair["pair"])) as folder:
            walks.save_walks(folder / "walks.npz", blocks, document)
            (folder / "pair.json").write_text(json.dumps({**pair, "counts": counts}) + "\n")
    except OSError:
        # On a cluster, a worker that was thought dead may have written the same pair just now.
        if not is_written(data, pair):
            raise


def report(data, pairs, kept, stale, binaries, skipped, seconds) -> None:
    """Print what was made, and what was skipped and why."""
    total: Counter[str] = Counter()
    splits: dict[str, set[str]] = {}
    lengths = np.zeros(1, np.int64)
    for pair in pairs:
        splits.setdefault(pair["split"], set()).add(pair["program"])
        counts = read_pair(data, pair["pair"])["counts"]
        here = np.array(counts.pop("document_lengths"), np.int64)
        lengths = np.pad(lengths, (0, max(0, len(here) - len(lengths))))
        lengths[: len(here)] += here
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
    for file, reason in skipped.items():
        print(f"skipped {utils.printable(file)}: {utils.printable(reason)}", file=sys.stderr)
    if total["pairs"] < ENOUGH_PAIRS:
        print(
            f"{total['pairs']} pairs make a small corpus; {ENOUGH_PAIRS} or more are better, "
            "such as four versions at four levels (120 pairs):\n"
            '    python experiment_data/build_coreutils.py --versions "8.32 9.1 9.7 9.10"'
        )


def in_words(splits: dict[str, set[str]]) -> str:
    """Say how many programs each split has, and which, where they are few."""
    parts = []
    for name in ("train", "validation", "test"):
        programs = sorted(splits.get(name, ()))
        named = f" ({', '.join(programs)})" if 0 < len(programs) <= 5 else ""
        parts.append(f"{len(programs)} {name}{named}")
    return ", ".join(parts)


def show(pair: int, outputDir: str = outputDir, data: str = data) -> None:
    """Print the blocks of one pair: address, function, edges, instructions, tokens, partner.

    Parameters
    ----------
    pair : int
        The number of the folder in data.
    outputDir : str
        Where the analysed binaries are cached.
    data : str
        Where the pairs are.
    """
    description = read_pair(data, pair)
    if description is None:
        raise utils.UserError(f"no pair {data}/{pair}; `python gendata.py` makes it")
    analyses = []
    for build, name in zip(description["binaries"], description["analyses"], strict=True):
        file = Path(outputDir) / Path(name).name  # nothing outside of that folder
        if not file.is_file():
            raise utils.UserError(
                f"{file}, the analysis of {build['path']}, is gone; run gendata.py"
            )
        analyses.append(load_analysis(file))
    merged = merge(*analyses)
    words, tokens, offsets = merged.dictionary, merged.tokens, merged.offsets
    text = [lines for analysis in analyses for lines in analysis.instructions]
    names = [name for analysis in analyses for name in analysis.function_name]
    partner = dict(merged.merged.tolist()) | {b: a for a, b in merged.merged.tolist()}
    out: dict[int, list[str]] = {}
    for (source, target), how in zip(merged.edges.tolist(), merged.kind.tolist(), strict=True):
        out.setdefault(source, []).append(f"{('', 'call ', 'over to ')[how]}{target}")

    builds = [build["build"] for build in description["binaries"]]
    counts = ", ".join(f"{n:,} {k}" for k, n in description["counts"].items() if isinstance(n, int))
    print(f"pair {pair}: {description['program']}, [0] {builds[0]}, [1] {builds[1]}\n{counts}")
    for block, binary in enumerate(merged.binary.tolist()):
        where = f"0x{merged.address[block]:x}" if text[block] else "import"
        line = f"\nblock {block} [{binary}] {where} in {names[merged.function[block]]}"
        if block in out:
            line += f" -> {', '.join(out[block])}"
        if block in partner:
            line += f"  = block {partner[block]} [{1 - binary}]"
        print(line)
        for instruction in text[block].decode().splitlines():
            print(f"    {instruction}")
        print("  tokens:", *(words[t] for t in tokens[offsets[block] : offsets[block + 1]]))


if __name__ == "__main__":
    utils.command_line(main, show=show)
