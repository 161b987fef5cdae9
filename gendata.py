"""Disassemble each binary, merge the control-flow graphs of each pair, walk them -> data/0, ...

    python gendata.py            all pairs of the builds under `path`
    python gendata.py show 0     the blocks of data/0, readable

Every folder of `path` that holds `biname` is one binary. Each is analysed once and cached in
`outputDir`; each pair (i, j), i < j, becomes one folder of `data`, written whole or not at all.
"""

import itertools
import json
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
from pebble import ProcessExpired, ProcessPool
from pydantic import Field
from tqdm import tqdm

import deepwalk
import preprocessing
import utils

biname = "chroot"  # the program to look for; several: ["chroot", "ls"]
path = "experiment_data/coreutils/binaries/"  # its builds: path/<build>/<biname>
outputDir = "output/"  # analysed binaries, one file each
data = "data"  # pairs: data/0, data/1, ...
num_walks = 2  # visits that each basic block gets at least
walk_length = 16  # basic blocks per sentence
sentences = 4  # sentences per document at most
seed = 0
workers = os.cpu_count() or 1  # processes
time_limit = 600  # seconds that one binary, or one pair, may take
memory_limit = min(8.0, psutil.virtual_memory().total / 2**30)  # GiB that it may take

FORMAT_VERSION = 1
BUILD = ("path", "build", "sha256")  # what pair.json says of a binary
COUNTS = ("blocks", "edges", "merged", "walks", "documents", "documents_in_both", "tokens")
MOST = 2**32  # of anything in a pair
ENOUGH_PAIRS = 100
SKIPPED = 3  # exit code: done, but some binaries were skipped

Count = Annotated[int, Field(ge=1)]
Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def main(
    biname: str | list[str] = biname,
    path: str = path,
    outputDir: str = outputDir,
    data: str = data,
    num_walks: Count = num_walks,
    walk_length: Count = walk_length,
    sentences: Count = sentences,
    seed: Annotated[int, Field(ge=0)] = seed,
    workers: Count = workers,
    time_limit: Limit = time_limit,
    memory_limit: Limit = memory_limit,
) -> int:
    """Turn all pairs of builds of a program into walks over their merged control-flow graphs.

    Ends with exit code 3 when binaries were skipped, with 1 when nothing could be done.

    Parameters
    ----------
    biname : str or list of str
        File name of the program, or of several: --biname chroot,ls. Only builds of the same program
        are paired.
    path : str
        Folder whose sub-folders each hold one build of the program.
    outputDir : str
        Where analysed binaries are cached.
    data : str
        Where the pairs go.
    num_walks : int
        Every basic block that holds code is visited at least so often.
    walk_length : int
        Basic blocks per sentence.
    sentences : int
        Sentences per document at most.
    seed : int
        Of the walks; equal seeds give equal bytes, whatever the number of workers.
    workers : int
        Processes.
    time_limit : float
        Seconds that one binary, or one pair, may take; what takes longer is skipped.
    memory_limit : float
        GiB of memory that it may take.
    """
    began = time.perf_counter()
    names = [biname] if isinstance(biname, str) else biname
    programs = {name: find_binaries(path, name) for name in names}
    binaries = list(itertools.chain.from_iterable(programs.values()))
    utils.remove_leftovers(outputDir, data)
    refused = {file: why for name in names for file, why in find_refused(path, name).items()}
    skipped = refused | analyse_all(binaries, outputDir, workers, time_limit, memory_limit)
    settings = {"num_walks": num_walks, "walk_length": walk_length, "sentences": sentences}
    pairs = [
        pair_description(number, program, first, second, settings, seed)
        for number, (program, first, second) in enumerate(
            (program, *pair)
            for program, builds in programs.items()
            for pair in itertools.combinations(builds, 2)
        )
        if first["path"] not in skipped and second["path"] not in skipped
    ]
    if not pairs:
        reasons = "; ".join(skipped.values())
        raise utils.UserError(f"fewer than two binaries could be analysed: {reasons}")
    stale = remove_stale(data, pairs)
    kept = [pair for pair in pairs if is_written(data, pair)]
    missing = [pair for pair in pairs if not is_written(data, pair)]
    jobs = ((pair, (pair, outputDir, data)) for pair in missing)
    failed = {}
    limits = (time_limit, memory_limit)
    for pair, error in in_processes(write_pair, jobs, len(missing), workers, "pairs", *limits):
        if error is not None:
            pairs.remove(pair)
            failed[pair["pair"]] = error
    if not pairs:
        raise utils.UserError(f"no pair could be made: {'; '.join(set(failed.values()))}")

    n_binaries = len(binaries) + len(refused)
    report(data, pairs, len(kept), stale, n_binaries, skipped, time.perf_counter() - began)
    for file in without_imports(binaries, outputDir, skipped):
        print(f"note: {utils.printable(file)} imports nothing; only strings join it with others")
    for number, reason in failed.items():
        print(f"skipped pair {number}: {utils.printable(reason)}", file=sys.stderr)
    return SKIPPED if skipped or failed else 0


def find_binaries(path: str, biname: str) -> list[dict[str, str]]:
    """Return path, build (its folder's name) and sha256 of each ``path/<build>/<biname>``, sorted.

    Raises
    ------
    UserError
        There are fewer than two.
    """
    if biname != Path(biname).name or biname in ("", ".", ".."):
        raise utils.UserError(f"--biname {biname!r} must be a file name, no path")
    files = [file for file in _builds(path, biname) if _why_refused(file) is None]
    if not files:
        raise utils.UserError(
            f"no {biname} under {path}*/; to build the sample binaries run\n"
            "    python experiment_data/build_coreutils.py\n"
            "or name a folder of your own with --path, laid out as <path>/<build>/<biname>"
        )
    if len(files) == 1:
        raise utils.UserError(f"only one {biname} under {path} ({files[0]}); a pair needs two")
    return [{"path": str(f), "build": f.parent.name, "sha256": utils.sha256_of(f)} for f in files]


def find_refused(path: str, biname: str) -> dict[str, str]:
    """Return path -> reason for each ``path/<build>/<biname>`` that is no file one can read."""
    reasons = {str(file): _why_refused(file) for file in _builds(path, biname)}
    return {file: reason for file, reason in reasons.items() if reason is not None}


def _builds(path: str, biname: str) -> list[Path]:
    folders = sorted(Path(path).iterdir()) if os.path.isdir(path) else []
    return [folder / biname for folder in folders if os.path.lexists(folder / biname)]


def _why_refused(file: Path) -> str | None:
    try:
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):  # opening a FIFO would wait for ever
            return f"it is a {'directory' if stat.S_ISDIR(mode) else 'special file'}"
        with file.open("rb") as content:
            content.read(1)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return None


def analyse_all(
    binaries: list[dict[str, str]],
    output_dir: str,
    workers: int,
    time_limit: float = time_limit,
    memory_limit: float = memory_limit,
) -> dict[str, str]:
    """Analyse what is not cached yet; return path -> reason for the binaries that failed."""
    by_content = {binary["sha256"]: binary for binary in binaries}
    missing = {
        sha256: binary["path"]
        for sha256, binary in by_content.items()
        if not preprocessing.cache_file(output_dir, sha256).exists()
    }
    failed = {}
    jobs = (
        (sha, (file, preprocessing.cache_file(output_dir, sha))) for sha, file in missing.items()
    )
    limits = (time_limit, memory_limit)
    total = len(missing)
    for sha256, error in in_processes(analyse_one, jobs, total, workers, "binaries", *limits):
        if error is not None:
            failed[sha256] = error
    utils.remove_leftovers(output_dir)  # of workers that were stopped
    return {b["path"]: failed[b["sha256"]] for b in binaries if b["sha256"] in failed}


def without_imports(binaries: list[dict[str, str]], output_dir: str, skipped: dict) -> list[str]:
    """Return the paths of the binaries that import nothing, as static ones do."""
    return [
        binary["path"]
        for binary in binaries
        if binary["path"] not in skipped
        and not preprocessing.count_imports(preprocessing.cache_file(output_dir, binary["sha256"]))
    ]


def analyse_one(file: str, cache_file: Path) -> None:
    """Analyse one binary into its cache file; runs in a worker."""
    try:
        with utils.temporary_folder(cache_file) as scratch:
            analysis = preprocessing.analyse(file, scratch)
    except utils.UserError:
        raise
    except Exception as error:  # a hostile file may fail anywhere; it costs itself only
        raise utils.UserError(f"{file}: {type(error).__name__} in the analysis: {error}") from error
    preprocessing.save(analysis, cache_file)


def in_processes(
    function: Callable[..., None],
    jobs: Iterator[tuple[Any, tuple]],
    total: int,
    workers: int,
    what: str,
    time_limit: float = time_limit,
    memory_limit: float = memory_limit,
) -> Iterator[tuple[Any, str | None]]:
    """Run ``function(*arguments)`` for each (key, arguments); yield key and error text or None.

    A worker that fails, dies, takes longer than ``time_limit`` seconds or holds more than
    ``memory_limit`` GiB costs its own job only.

    Raises
    ------
    DiskError
        Nothing can be written any more, which is no job's fault.
    """
    if total == 0:
        return
    # Forked, so that workers need not import angr again, which takes seconds.
    kind = {"context": get_context("fork"), "initializer": _end_with, "initargs": (os.getpid(),)}
    with (
        ProcessPool(min(workers, total), **kind) as pool,
        _memory_watched(memory_limit) as too_large,
        tqdm(total=total, desc=what, unit=" " + what, disable=None) as bar,
    ):
        try:
            futures = [(k, pool.schedule(function, a, timeout=time_limit)) for k, a in jobs]
            for key, future in futures:
                error = None
                try:
                    future.result()
                except utils.DiskError:
                    raise
                except utils.UserError as problem:
                    error = str(problem)
                except TimeoutError:
                    error = f"took longer than {time_limit:g} seconds (--time_limit)"
                except ProcessExpired as problem:
                    if problem.pid in too_large:
                        error = f"took more than {memory_limit:g} GiB of memory (--memory_limit)"
                    else:
                        error = f"the worker process died ({_how_ended(problem.exitcode)})"
                bar.update()
                yield key, error
        except BaseException:
            pool.stop()
            raise


def _end_with(parent: int) -> None:
    """Let this worker end when its parent was killed, for nobody else would limit its time."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _how_ended(exitcode: int) -> str:
    """Return "exit code 1", or the signal's name; SIGKILL is how the system frees memory."""
    with suppress(ValueError):
        return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"


@contextmanager
def _memory_watched(limit: float) -> Iterator[set[int]]:
    """Kill child processes that hold more than ``limit`` GiB; yield the set of their numbers.

    A limit of the kernel's (RLIMIT_AS) would make allocations fail, and a library that catches that
    would give half a result.
    """
    killed: set[int] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            for child in active_children():
                with suppress(psutil.Error):
                    if psutil.Process(child.pid).memory_info().rss > limit * 2**30:
                        killed.add(child.pid)
                        child.kill()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield killed
    finally:
        ended.set()
        watcher.join()


def pair_description(
    number: int, program: str, first: dict, second: dict, settings: dict, seed: int
) -> dict[str, Any]:
    """Return what pair.json says of a pair before it is walked; equal means: nothing to redo."""
    return {
        "format_version": FORMAT_VERSION,
        "pair": number,
        "program": utils.printable(program),
        "binaries": [
            {key: utils.printable(value) for key, value in binary.items()}
            for binary in (first, second)
        ],
        "analysis": preprocessing.analysis_settings(),
        "settings": settings,
        "seed": seed,
    }


def remove_stale(data: str, pairs: list[dict[str, Any]]) -> int:
    """Remove pair folders that are not just what this run makes; return how many.

    That is done before any is made, so that whenever a run is stopped, no corpus can mix pairs of
    two settings.
    """
    wanted = {str(pair["pair"]): pair for pair in pairs}
    stale = [
        file.parent
        for file in Path(data).glob("*/pair.json")
        if (name := file.parent.name).isdecimal()
        and not (name in wanted and is_written(data, wanted[name]))
    ]
    for folder in stale:
        utils.remove_folder(folder)
    return len(stale)


def read_pair(data: str, number: int) -> dict[str, Any] | None:
    """Return data/<number>/pair.json, or None where it is missing or not what write_pair wrote."""
    try:
        pair = json.loads((Path(data) / str(number) / "pair.json").read_text())
        counts, builds = pair["counts"], pair["binaries"]
        texts = [pair["program"], *(build[key] for build in builds for key in BUILD)]
        numbers = [*(counts[key] for key in COUNTS), *counts["document_lengths"]]
        sane = all(type(number) is int and 0 <= number < MOST for number in numbers)
        return pair if sane and all(type(text) is str for text in texts) else None
    except (OSError, ValueError, TypeError, LookupError):
        return None


def is_written(data: str, pair: dict[str, Any]) -> bool:
    """Whether data/<n> holds just this pair, made with these settings."""
    written = read_pair(data, pair["pair"])
    return written is not None and pair.items() <= written.items()


@lru_cache(maxsize=64)
def _analysis(output_dir: str, sha256: str) -> preprocessing.Analysis:
    return preprocessing.load(preprocessing.cache_file(output_dir, sha256))


def write_pair(pair: dict[str, Any], output_dir: str, data: str) -> None:
    """Merge, walk and write one pair; runs in a worker."""
    first, second = (_analysis(output_dir, binary["sha256"]) for binary in pair["binaries"])
    merged = preprocessing.merge(first, second)
    graph = deepwalk.walk_graph(
        merged.edges, merged.kind, merged.merged, merged.function, merged.returns
    )
    settings = pair["settings"]
    # Seeded by content, so that a pair's walks stay when other binaries join and numbers move.
    contents = [int(binary["sha256"][:16], 16) for binary in pair["binaries"]]
    blocks, document = deepwalk.control_flow_walks(
        graph,
        merged.has_code,
        settings["num_walks"],
        settings["walk_length"] * settings["sentences"],
        [pair["seed"], *contents],
    )
    sentence, document_in_sentences = cut(document, settings["walk_length"])
    lengths = np.diff(document)
    in_second = np.add.reduceat(merged.binary[blocks], document[:-1], dtype=np.int64)
    counts = {
        "blocks": len(merged.address),
        "edges": len(merged.edges),
        "merged": len(merged.merged),
        "walks": len(sentence) - 1,
        "documents": len(lengths),
        "documents_in_both": int(np.count_nonzero((in_second > 0) & (in_second < lengths))),
        "tokens": int(np.diff(merged.offsets)[blocks].sum()),
        "document_lengths": np.bincount(lengths).tolist(),
    }
    with utils.atomic_folder(Path(data) / str(pair["pair"])) as folder:
        (folder / "dictionary.txt").write_text("".join(f"{t}\n" for t in merged.dictionary))
        np.savez(
            folder / "blocks.npz",
            tokens=merged.tokens,
            offsets=merged.offsets,
            address=merged.address,
            function=merged.function,
            binary=merged.binary,
        )
        np.savez(folder / "graph.npz", edges=merged.edges, kind=merged.kind, merged=merged.merged)
        np.savez(
            folder / "walks.npz",
            blocks=blocks,
            sentence=sentence,
            document=document_in_sentences,
        )
        (folder / "pair.json").write_text(json.dumps({**pair, "counts": counts}, indent=1) + "\n")


def cut(document: np.ndarray, walk_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut documents into sentences of ``walk_length`` blocks; the last one may be shorter.

    Parameters
    ----------
    document : int64 (documents + 1,)
        Offsets of the documents in blocks.

    Returns
    -------
    sentence : int64 (sentences + 1,), in blocks
    document : int64 (documents + 1,), in sentences
    """
    per_document = -(-np.diff(document) // walk_length)
    in_sentences = np.concatenate([[0], np.cumsum(per_document)])
    within = np.arange(in_sentences[-1]) - np.repeat(in_sentences[:-1], per_document)
    starts = np.repeat(document[:-1], per_document) + within * walk_length
    return np.append(starts, document[-1]), in_sentences


def report(data, pairs, kept, stale, binaries, skipped, seconds) -> None:
    """Print what was made, and what was skipped and why."""
    total: dict[str, int] = {}
    lengths = np.zeros(1, np.int64)
    for pair in pairs:
        counts = read_pair(data, pair["pair"])["counts"]
        here = np.array(counts.pop("document_lengths"), np.int64)
        lengths = np.pad(lengths, (0, max(0, len(here) - len(lengths))))
        lengths[: len(here)] += here
        for key, value in counts.items():
            total[key] = total.get(key, 0) + value
    sizes = np.repeat(np.arange(len(lengths)), lengths)
    quartiles = "/".join(f"{q:.0f}" for q in np.percentile(sizes, [25, 50, 75]))
    by_block = np.median(np.repeat(sizes, sizes))
    print(f"binaries       {binaries}, {len(skipped)} skipped")
    print(f"pairs          {len(pairs)} in {data}/, {kept} of them already there")
    print(f"blocks         {total['blocks']:,} (each pair counts its own)")
    print(f"edges          {total['edges']:,}")
    print(f"merged blocks  {total['merged']:,}")
    print(f"walks          {total['walks']:,} in {total['documents']:,} documents")
    print(f"blocks a document: quartiles {quartiles}; around the median block {by_block:.0f}")
    print(f"documents with blocks of both binaries: {total['documents_in_both'] / len(sizes):.1%}")
    print(f"tokens         {total['tokens']:,}")
    print(f"seconds        {seconds:.1f}")
    if stale:
        print(f"removed {stale} pair folders of an earlier run that this one does not make")
    for file, reason in skipped.items():
        print(f"skipped {utils.printable(file)}: {utils.printable(reason)}", file=sys.stderr)
    if len(pairs) < ENOUGH_PAIRS:
        print(
            f"{len(pairs)} pairs make a small corpus; {ENOUGH_PAIRS} or more are better, "
            "such as four versions at four levels (120 pairs):\n"
            '    python experiment_data/build_coreutils.py --versions "8.32 9.1 9.7 9.10"'
        )


def show(pair: int, outputDir: str = outputDir, data: str = data) -> None:
    """Print the blocks of one pair: address, function, edges, instructions, tokens, partner.

    Parameters
    ----------
    pair : int
        The number of the folder in data.
    outputDir : str
        Where the analysed binaries are cached; the instructions' text comes from there.
    data : str
        Where the pairs are.
    """
    description = read_pair(data, pair)
    if description is None:
        raise utils.UserError(f"no pair {data}/{pair}; `python gendata.py` makes it")
    folder = Path(data) / str(pair)
    words = (folder / "dictionary.txt").read_text().splitlines()
    with np.load(folder / "blocks.npz") as blocks, np.load(folder / "graph.npz") as graph:
        tokens, offsets, binary = blocks["tokens"], blocks["offsets"], blocks["binary"]
        address, function = blocks["address"], blocks["function"]
        edges, kind, merged = graph["edges"], graph["kind"], graph["merged"]
    text, names = [], []
    for build in description["binaries"]:
        file = preprocessing.cache_file(outputDir, build["sha256"])
        if not file.exists():
            raise utils.UserError(
                f"{file}, the analysis of {build['path']}, is gone; run gendata.py"
            )
        analysis = preprocessing.load(file)
        text += analysis.instructions
        names += analysis.function_name
    partner = dict(merged.tolist()) | {b: a for a, b in merged.tolist()}
    out: dict[int, list[str]] = {}
    for (source, target), how in zip(edges.tolist(), kind.tolist(), strict=True):
        out.setdefault(source, []).append(f"{('', 'call ', 'over to ')[how]}{target}")

    builds = [build["build"] for build in description["binaries"]]
    counts = ", ".join(f"{n:,} {k}" for k, n in description["counts"].items() if isinstance(n, int))
    print(f"pair {pair}: {description['program']}, [0] {builds[0]}, [1] {builds[1]}\n{counts}")
    for block in range(len(binary)):
        where = f"0x{address[block]:x}" if text[block] else "import"
        line = f"\nblock {block} [{binary[block]}] {where} in {names[function[block]]}"
        if block in out:
            line += f" -> {', '.join(out[block])}"
        if block in partner:
            line += f"  = block {partner[block]} [{1 - binary[block]}]"
        print(line)
        for instruction in text[block].decode().splitlines():
            print(f"    {instruction}")
        print("  tokens:", *(words[t] for t in tokens[offsets[block] : offsets[block + 1]]))


if __name__ == "__main__":
    utils.command_line(main, show=show)
