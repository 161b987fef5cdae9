"""Search many binaries for similar functions, or name the functions of a stripped binary.

    python search.py index DIR... BINARY...               # adds their functions to index/
    python search.py query BINARY --function 0x401230     # the most similar functions of the index
    python search.py scan BINARY                          # which functions of the index it contains

Each binary is added to the index only once. Names from symbols are shown, but never used to search.
No binary is executed.
"""

if __name__ == "__main__":
    from terminal.early import answer

    answer(__file__)  # --help and messages about wrong flags do not wait for the imports below

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt
from threadpoolctl import threadpool_limits

import utils
from binary.analysis import load_analysis
from binary.cache import analyse_files, reason_of, refuse_arch, report_skipped, take_slices
from binary.demangle import demangle
from binary.formats import BEGINNINGS
from binary.lookup import find_function
from binary.symbols import is_made_up
from encoder.encoder import Encoder, read_encoder
from encoder.index import MAKE, Binary, Index, add, index_file, nearest, read
from encoder.map import PICTURES, draw_map
from encoder.names import NAMES, assign_names
from features.extract import Features, extract_features, read_binaries
from jobs.processes import MEMORY_LIMIT, TIME_LIMIT, Limit, in_processes, limited_memory
from terminal.command_line import PARTLY, command_line
from terminal.escape import printable

index_dir = "index"  # folder of vectors, with a file for each binary
outputDir = "output/"  # cache of analysed binaries, shared with gendata.py
workers = os.cpu_count() or 1  # number of parallel processes

LEAST_BLOCKS = 3  # scan names no function with fewer blocks: it looks like too many others


def main() -> None:
    """Search many binaries for similar functions, or name the functions of a stripped binary."""


def index(
    *paths: str,
    index_dir: str = index_dir,
    plot: str | None = None,
    outputDir: str = outputDir,
    workers: PositiveInt = workers,
    time_limit: Limit = TIME_LIMIT,
    memory_limit: Limit = MEMORY_LIMIT,
    arch: str | None = None,
) -> int:
    """Add the functions of binaries to the index.

    The exit code is 3 if files were skipped.

    Parameters
    ----------
    paths : str
        Binaries, and folders to search for binaries.
    index_dir : str
        Folder of the index.
    plot : str
        Also draw the functions of the index in two dimensions, to this file (.png, .svg, .pdf).
    outputDir : str
        Folder where analysed binaries are cached.
    workers : int
        Number of parallel processes.
    time_limit : float
        Seconds of processor time for the analysis of one file.
    memory_limit : float
        GiB of memory for the analysis of a file, and for the search.
    arch : str
        Processor whose slice of a universal (macOS) file to read, such as aarch64 or x86_64.
    """
    if not paths:
        raise utils.UsageError("name binaries or folders: python search.py index DIR...")
    if plot is not None and not plot.endswith(PICTURES):
        raise utils.UsageError(f"--plot {plot}: use a name that ends in {', '.join(PICTURES)}")
    files = list(find_binaries(paths))
    if not files:
        raise utils.UserError(f"{', '.join(paths)}: no ELF, PE or Mach-O file found")
    utils.check_outputs({"plot": plot}, files, {"outputDir": outputDir, "index_dir": index_dir})
    refuse_arch(files, arch)
    encoder = the_encoder()
    new, skipped, taken = {}, {}, {}
    for file in files:
        try:
            (taken[file],) = take_slices((file,), outputDir, arch)
            sha256 = utils.sha256_of(taken[file])
        except utils.UserError as error:
            skipped[file] = str(error)
            continue
        if not index_file(index_dir, sha256).exists():
            new.setdefault(sha256, file)
    if new:
        # An index that cannot be used is refused now, not after hours of analysis.
        if next(Path(index_dir).glob("*.parquet"), None):
            with limited_memory(memory_limit, f"reading {index_dir}"):
                read(index_dir, encoder.identity, encoder.dimensions)
        limits = time_limit, memory_limit
        named = {taken[file]: file for file in new.values()}
        try:
            analyses, failed = analyse_files(list(named), outputDir, workers, limits)
        except utils.UserError as error:  # all of them failed
            others = [reason_of(file, why) for file, why in skipped.items()]
            raise utils.UserError("; ".join([*others, str(error)])) from error
        analyses = {named[part]: analysis for part, analysis in analyses.items()}
        skipped |= {named[part]: why for part, why in failed.items()}
        jobs = (
            (file, (file, sha256, analyses[file], index_dir))
            for sha256, file in new.items()
            if file in analyses
        )
        added = in_processes(add_binary, jobs, len(analyses), workers, "vectors", *limits)
        skipped |= {file: error for file, error in added if error}
    if len(skipped) == len(files):
        raise utils.UserError("; ".join(reason_of(file, why) for file, why in skipped.items()))
    report_skipped(skipped)
    with limited_memory(memory_limit, f"reading {index_dir}"):
        table = read(index_dir, encoder.identity, encoder.dimensions)
        if plot:
            draw_map(table, plot)
    print(
        f"{index_dir}: {len(table):,} {utils.plural(len(table), 'function')} of "
        f"{len(table.binaries):,} "
        f"{utils.plural(len(table.binaries), 'file')}, "
        f"{sum(file not in skipped for file in new.values()):,} new"
    )
    return PARTLY if skipped else 0


def query(
    binary: str,
    *,
    function: str,
    index_dir: str = index_dir,
    top: PositiveInt = 10,
    same_processor: bool = False,
    own: bool = False,
    outputDir: str = outputDir,
    time_limit: Limit = TIME_LIMIT,
    memory_limit: Limit = MEMORY_LIMIT,
    arch: str | None = None,
) -> None:
    """Print the functions of the index most similar to one: chance, address, name, file.

    The chance that the name is right assumes that the index contains half of the functions that are
    asked about.

    Parameters
    ----------
    binary : str
        The file that contains the function.
    function : str
        Its address, such as 0x401230, or its name.
    index_dir : str
        Folder of the index.
    top : int
        Number of functions to print.
    same_processor : bool
        Search only binaries for the same processor.
    own : bool
        Also search the functions of the same file.
    outputDir : str
        Folder where analysed binaries are cached.
    time_limit : float
        Seconds of processor time for the analysis of the file.
    memory_limit : float
        GiB of memory for the analysis of a file, and for the search.
    arch : str
        Processor whose slice of a universal (macOS) file to read, such as aarch64 or x86_64.
    """
    utils.check_folder(index_dir, "index_dir", MAKE)
    binary, code = read_one(binary, outputDir, (time_limit, memory_limit), arch)
    asked = find_function(code.analysis, binary, function)
    with limited_memory(memory_limit, f"searching {index_dir}"):
        encoder = read_encoder()
        table = read(index_dir, encoder.identity, encoder.dimensions)
        vector = encoder(code, functions=np.array([asked]))
        allowed = searched(table, binary, code, same_processor, own)
        found, _, chance = nearest(table, vector, top, encoder.calibration, allowed)
    if found.size:
        print("chance that the name is right, address in the file found, name, file found:")
    matches = found[0].tolist()
    scored = zip(matches, names_of(table, matches), chance[0].tolist(), strict=True)
    for match, name, score in scored:
        print(line(table, match, name, score, int(table.address[match])))


def scan(
    binary: str,
    *,
    index_dir: str = index_dir,
    least: Annotated[float, Field(ge=0, le=1)] = 0.5,
    same_processor: bool = False,
    own: bool = False,
    outputDir: str = outputDir,
    time_limit: Limit = TIME_LIMIT,
    memory_limit: Limit = MEMORY_LIMIT,
    arch: str | None = None,
) -> None:
    """Name the functions of a binary after the most similar functions of the index.

    Prints the chance that the name is right, the address in the binary, the name, and the file of
    the index's function. Gives a name to one function only, unless a file of the index has it more
    than once. Leaves out functions with fewer than three basic blocks, because they look like too
    many others.

    Parameters
    ----------
    binary : str
        The file to name functions of.
    index_dir : str
        Folder of the index.
    least : float
        Print only names with at least this chance to be right.
    same_processor : bool
        Search only binaries for the same processor.
    own : bool
        Also search the functions of the same file.
    outputDir : str
        Folder where analysed binaries are cached.
    time_limit : float
        Seconds of processor time for the analysis of the file.
    memory_limit : float
        GiB of memory for the analysis of a file, and for the search.
    arch : str
        Processor whose slice of a universal (macOS) file to read, such as aarch64 or x86_64.
    """
    utils.check_folder(index_dir, "index_dir", MAKE)
    binary, code = read_one(binary, outputDir, (time_limit, memory_limit), arch)
    with limited_memory(memory_limit, f"searching {index_dir}"):
        encoder = read_encoder()
        table = read(index_dir, encoder.identity, encoder.dimensions)
        allowed = searched(table, binary, code, same_processor, own)
        allowed &= table.blocks >= LEAST_BLOCKS
        how = encoder.calibration
        found, _, chance = nearest(table, encoder(code), NAMES, how, allowed, by_name=True)
        chance[np.asarray(code.sizes) < LEAST_BLOCKS] = -1
        named = assign_names(table, found, chance, allowed, least)
    if named:
        print(f"chance that the name is right, address in {printable(binary)}, name, file found:")
    names = names_of(table, [match for _, (match, _) in sorted(named.items())])
    for (f, (match, score)), name in zip(sorted(named.items()), names, strict=True):
        print(line(table, match, name, score, int(code.analysis.function_address[f])))
    nameless = sum(is_made_up(table.name_of(match)) for match, _ in named.values())
    small = int((np.asarray(code.sizes) < LEAST_BLOCKS).sum())
    print(
        f"{len(named):,} of {code.functions:,} functions found with a chance of {least:g} or more "
        f"(--least); {nameless:,} of them have no name in the file found (sub_...); {small:,} were "
        f"not searched, as they have fewer than {LEAST_BLOCKS} basic blocks"
    )


def read_one(
    binary: str, output_dir: str, limits: tuple[float, float], arch: str | None
) -> tuple[str, Features]:
    """Return the file that is read, which may be a slice of a universal file, and its features."""
    utils.check_outputs({}, (binary,), {"outputDir": output_dir})
    refuse_arch((binary,), arch)
    (file,) = take_slices((binary,), output_dir, arch)
    (code,) = read_binaries((file,), output_dir, 1, limits)
    return file, code


def find_binaries(paths: tuple[str, ...]) -> Iterator[str]:
    """Yield the given files, and the files in the given folders that start like a binary."""
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        for file in sorted(Path(path).rglob("*")):
            if file.is_file() and not file.is_symlink():
                try:
                    with open(file, "rb") as opened:
                        begins = opened.read(4).startswith(BEGINNINGS)
                except OSError:
                    begins = True  # whoever analyses it will report the error
                if begins:
                    yield str(file)


@functools.cache
def the_encoder() -> Encoder:
    """Return the encoder; it is read once, before the processes are forked that use it."""
    return read_encoder()


def add_binary(file: str, sha256: str, analysis: Path, index_dir: str) -> None:
    """Add one analysed binary to the index; runs in a worker."""
    encoder = the_encoder()
    code = extract_features(load_analysis(analysis))
    with threadpool_limits(1):  # the other cores have workers of their own
        vectors = encoder(code)
    add(
        index_dir,
        encoder.identity,
        Binary(file, sha256, code.analysis.processor),
        code.analysis.function_address[: code.functions],
        code.analysis.function_name[: code.functions],
        np.asarray(code.sizes, np.int32),
        vectors,
    )


def searched(
    table: Index, binary: str, code: Features, same_processor: bool, own: bool
) -> np.ndarray:
    """Return which of the N functions of the index may be found, bool (N,)."""
    sha256, processor = utils.sha256_of(binary), code.analysis.processor
    files = [
        (own or known.sha256 != sha256) and (not same_processor or known.processor == processor)
        for known in table.binaries
    ]
    allowed = np.array(files, bool)[table.binary]
    only = [] if own else [f"of {binary} itself (--own searches them, too)"]
    only += ["for other processors (--same_processor leaves them out)"] if same_processor else []
    if only and not allowed.any():
        raise utils.UserError(f"the index only has functions {' or '.join(only)}")
    return allowed


def names_of(table: Index, matches: list[int]) -> list[str]:
    """Return what functions of the index are called in their sources."""
    return [printable(name) for name in demangle([table.name_of(match) for match in matches])]


def line(table: Index, match: int, name: str, score: float, address: int) -> str:
    """Return the line to print for a function found in the index."""
    path = printable(table.binaries[table.binary[match]].path)
    return f"{score:6.3f}  0x{address:x}  {name}  {path}"


if __name__ == "__main__":
    command_line(main, index=index, query=query, scan=scan)
