"""Compare two binaries or packages: which functions and blocks match, and what changed.

    python diff.py OLD NEW
    python diff.py OLD NEW --html report.html --json diff.json --csv diff.csv
    python diff.py OLD.BinExport NEW.BinExport --bindiff diff.BinDiff
    python diff.py OLD.deb NEW.deb --html report/     # or folders, wheels, tar, zip, .a

Functions that both files export by the same name are matched by it. Other symbols, which `strip`
removes, are only shown. Neither binary is executed.
"""

if __name__ == "__main__":
    from terminal.early import answer

    answer(__file__)  # --help and messages about wrong flags need not wait for the imports below

import dataclasses
import os
import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

import utils
from binary.cache import refuse_arch, take_slices
from features.extract import Features, read_binaries
from jobs.processes import MEMORY_LIMIT, TIME_LIMIT, Limit, limited_memory
from matching.anchors import known_pairs, read_anchors
from matching.changes import compare
from matching.exports.bindiff import export_names, write_bindiff
from matching.exports.binexport import as_binexport
from matching.exports.markdown import as_markdown, verdict
from matching.exports.records import as_csv, as_json
from matching.exports.scripts import naming_script
from matching.model import DEFAULT, read_model
from matching.packages import exports
from matching.packages.compare import FAILED, FILE_STATUS, PackageDiff, compare_packages
from matching.packages.contents import UNPACK_LIMIT, is_package
from matching.packages.page import write_pages
from matching.page.make import make_page
from matching.pseudo import pseudo_code
from matching.result import (
    CHANGED,
    IDENTICAL,
    ONLY_NEW,
    ONLY_OLD,
    STATUS,
    BlockMatch,
    Diff,
    FunctionMatch,
    block_matches,
)
from terminal import progress
from terminal.command_line import FOUND, PARTLY, command_line
from terminal.escape import printable
from terminal.style import columns, cut, fit, relative, say

outputDir = "output/"  # analysed binaries, shared with gendata.py
workers = 2  # processes
MIN_SCORE = 0.5  # lowest score of a match in the scripts for other tools
KINDS = 24  # minimum number of characters for the kinds of changes on a narrow terminal


def main(
    old: str,
    new: str,
    model_file: str = str(DEFAULT),
    html: str | None = None,
    json: str | None = None,
    csv: str | None = None,
    anchors: str | None = None,
    ghidra: str | None = None,
    ida: str | None = None,
    markdown: str | None = None,
    bindiff: str | None = None,
    binexport: str | None = None,
    min_score: Annotated[float, Field(ge=0, le=1)] = MIN_SCORE,
    fail_on: Literal["changed", "unmatched"] | None = None,
    top: Annotated[int, Field(ge=0)] = 10,
    decompile: Annotated[int, Field(ge=0)] = 0,
    arch: str | None = None,
    outputDir: str = outputDir,
    workers: PositiveInt = workers,
    time_limit: Limit = TIME_LIMIT,
    memory_limit: Limit = MEMORY_LIMIT,
    unpack_limit: Limit = UNPACK_LIMIT,
) -> int:
    """Compare two binaries: which functions and blocks correspond, and what changed.

    Or two packages of them: folders, .deb, .whl, zip, tar, static libraries. Exit code 3 means that
    some files in them could not be compared.

    Parameters
    ----------
    old : str
        An executable that angr can read (ELF, PE, Mach-O), or a .BinExport file of one, which IDA,
        Ghidra and Binary Ninja write. Or a package: a folder or an archive.
    new : str
        Another build or version of it.
    model_file : str
        The model to compare with, written by matching/train.py. Its encoder.safetensors must lie
        beside it.
    html : str
        Write a page with both control-flow graphs of every function here. For packages: a folder
        for index.html and a page for each file.
    json : str
        Write all matches of functions and blocks here, as JSON. For packages: all files, and the
        functions that are not identical.
    csv : str
        Write all matches of functions here, as CSV. For packages: those that are not identical.
    anchors : str
        File of known pairs of functions, one per line: their addresses in old and new, such as
        0x401000 0x401230. Comments begin with #.
    ghidra : str
        Write a script for Ghidra here that gives the functions of new their names in old.
    ida : str
        Write a script for IDA here that does the same.
    markdown : str
        Write the verdict, a table and what changed most here, as Markdown.
    bindiff : str
        Write BinDiff's database here (.BinDiff), for its UI and its plugins.
    binexport : str
        Write both binaries to this folder as BinExport files. BinDiff's UI finds them beside the
        .BinDiff.
    min_score : float
        Matches below this score are left out of the scripts for Ghidra and IDA.
    fail_on : str
        End with exit code 4 if a function is changed or is only in one binary (changed), or only in
        the latter case (unmatched).
    top : int
        Number of changed functions to print.
    decompile : int
        Number of changed functions for which --html and --markdown show pseudo-code, by angr's
        decompiler.
    arch : str
        Processor whose slice of a universal (macOS) file to compare, such as aarch64 or x86_64.
        Default: that of the other file; of files in packages, all slices.
    outputDir : str
        Folder where analysed binaries are cached.
    workers : int
        Number of parallel processes.
    time_limit : float
        Seconds of processor time for the analysis of one file.
    memory_limit : float
        GiB of memory for the analysis of one file, and for the comparison.
    unpack_limit : float
        Maximum size of an unpacked package in GiB.
    """
    began = time.perf_counter()
    limits = time_limit, memory_limit
    if is_package(old) or is_package(new):
        refuse_one_file(old, new)
        of_one = {"anchors": anchors, "ghidra": ghidra, "ida": ida, "bindiff": bindiff}
        of_one |= {
            "binexport": binexport,
            "min_score": min_score != MIN_SCORE,
            "decompile": decompile,
        }
        utils.refuse_flags("is for two binaries, not for packages", **of_one)
        outputs = {"json": json, "csv": csv, "markdown": markdown}
        folders = {"outputDir": outputDir, "html": html}
        utils.check_outputs(outputs, (old, new, model_file), folders, whole=(old, new))
        if html:
            utils.check_outputs({"html": Path(html, "index.html")}, (old, new))
        with limited_memory(memory_limit, f"comparing {old} with {new}"):
            found = compare_packages(
                (old, new), model_file, bool(html), outputDir, workers, limits, unpack_limit, arch
            )
            _write_packages(found, html, outputs)
        written = [str(Path(html, "index.html"))] if html else []
        written += [path for path in outputs.values() if path]
        package_summary(found, top, written, time.perf_counter() - began)
        if fail_on and exports.fails_on(found, fail_on):
            return FOUND
        return PARTLY if found.count(FAILED) else 0
    if unpack_limit != UNPACK_LIMIT:
        raise utils.UsageError("--unpack_limit is for packages; leave it out")
    if not (ghidra or ida) and min_score != MIN_SCORE:
        raise utils.UsageError("--min_score is for --ghidra and --ida; leave it out")
    if decompile and not (html or markdown):
        raise utils.UsageError("--decompile is for --html and --markdown; leave it out, or add one")
    outputs = {"html": html, "json": json, "csv": csv, "ghidra": ghidra, "ida": ida}
    outputs |= {"markdown": markdown, "bindiff": bindiff}
    inputs = (old, new, model_file, anchors)
    utils.check_outputs(outputs, inputs, {"outputDir": outputDir, "binexport": binexport})
    exported = [Path(binexport, f"{n}.BinExport") for n in export_names((old, new)) if binexport]
    for file in exported:
        utils.check_outputs({"binexport": file}, inputs)
    refuse_arch((old, new), arch)
    model = read_model(model_file)
    files = take_slices((old, new), outputDir, arch)
    codes = read_binaries(files, outputDir, workers, limits)
    with limited_memory(memory_limit, f"comparing {old} with {new}"):
        given = read_anchors(anchors, codes) if anchors else None
        progress.notice("comparing ...")
        diff = compare(*codes, model, known_pairs(files, codes, given))
        progress.clear_notice()
    pseudo = pseudo_code(files, codes, diff, decompile, outputDir, workers, limits)
    for sides, both in pseudo.items():
        for path, code, f, reason in zip((old, new), codes, sides, both.reasons, strict=True):
            if reason:
                print(f"{path}: no pseudo-code of {code.analysis.function_name[f]}: {reason}")
    with limited_memory(memory_limit, f"comparing {old} with {new}"):
        if html:
            _write(html, make_page((old, new), codes, diff, pseudo=pseudo))
        if json:
            utils.write_json(json, as_json((old, new), codes, diff))
        if csv:
            _write(csv, as_csv(diff))
        if markdown:
            _write(markdown, as_markdown((old, new), diff, pseudo=pseudo))
        for tool, file in (("ghidra", ghidra), ("ida", ida)):
            if file:
                _write(file, naming_script(tool, new, diff, min_score))
        if bindiff or binexport:
            hashes = utils.sha256_of(old), utils.sha256_of(new)
        if bindiff:
            write_bindiff(bindiff, (old, new), hashes, codes, diff)
        if binexport:
            about = zip(exported, (old, new), hashes, codes, strict=True)
            with utils.one_writer(binexport):
                for name, path, sha256, code in about:
                    with utils.atomic_file(name, "wb") as file:
                        file.write(as_binexport(path, sha256, code))
    written = [*(path for path in outputs.values() if path), *map(str, exported)]
    summary((old, new), codes, diff, top, written, time.perf_counter() - began)
    statuses = {match.status for match in diff.functions}
    failing = {"changed": {CHANGED, ONLY_OLD, ONLY_NEW}, "unmatched": {ONLY_OLD, ONLY_NEW}}
    return FOUND if fail_on and statuses & failing[fail_on] else 0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare_binaries` found.

    Attributes
    ----------
    functions : list of FunctionMatch
        Each function of both binaries once; what an analyst should read comes first.
    blocks : list of BlockMatch
    verdict : str
        One sentence.
    """

    functions: list[FunctionMatch]
    blocks: list[BlockMatch]
    verdict: str


def compare_binaries(
    old: str,
    new: str,
    model_file: str = str(DEFAULT),
    anchors: str | None = None,
    outputDir: str = outputDir,
    workers: int = workers,
) -> Comparison:
    """Compare two binaries from Python; parameters are those of `main`.

    >>> found = compare_binaries("ls-8.1", "ls-8.30")  # doctest: +SKIP
    >>> [m.old.name for m in found.functions if m.status == "changed"][:2]  # doctest: +SKIP
    ['strftime_case_', 'main']

    Raises
    ------
    UserError
        A file cannot be read or compared.
    """
    files = take_slices((old, new), outputDir, None)
    codes = read_binaries(files, outputDir, workers)
    given = read_anchors(anchors, codes) if anchors else None
    diff = compare(*codes, read_model(model_file), known_pairs(files, codes, given))
    return Comparison(diff.functions, block_matches(codes, diff), verdict(diff))


def refuse_one_file(old: str, new: str) -> None:
    """Refuse a folder or an archive with a single file beside it."""
    for package, file in ((old, new), (new, old)):
        if os.path.exists(file) and not is_package(file):
            kind = "a folder" if os.path.isdir(package) else "an archive"
            inside = os.path.join(package, os.path.basename(file))
            remedy = "give two folders or archives, or two programs"
            if os.path.isfile(inside):
                remedy = f"compare {file} with {inside}, or give two folders"
            raise utils.UsageError(f"{package} is {kind}, but {file} is a single file; {remedy}")


def _write(path: str, text: str) -> None:
    with utils.atomic_file(path) as file:
        file.write(text)


def _write_packages(found: PackageDiff, html: str | None, outputs: dict[str, str | None]) -> None:
    """Write what is asked for of two packages."""
    if html:
        write_pages(found, Path(html))
    if json := outputs["json"]:
        utils.write_json(json, exports.as_json(found))
    if csv := outputs["csv"]:
        _write(csv, exports.as_csv(found))
    if markdown := outputs["markdown"]:
        _write(markdown, exports.as_markdown(found))


def package_summary(found: PackageDiff, top: int, written: list[str], seconds: float) -> None:
    """Print what was found in two packages, the most changed functions, and what was written."""
    width = columns()
    for which, path, left_out in zip(("old", "new"), found.paths, found.left_out, strict=True):
        links = ", ".join(f"{n:,} {utils.plural(n, kind)}" for kind, n in left_out.items())
        print(f"{which}  {fit(relative(path), width)}{f': left out {links}' if links else ''}")
    for status in FILE_STATUS:
        if count := found.count(status):
            print(f"{count:6,} {utils.plural(count, 'file')} {status}")
    for file in found.files:
        if file.status == FAILED:
            print(f"failed: {printable(file.name)}: {printable(file.reason)}")
    functions = found.functions()
    if functions and top:
        print("functions changed most likely by hand first (rank, score, what changed):")
    for file, match in functions[:top]:
        name = (match.new or match.old).name
        place = f"{fit(file.name.rpartition('/')[2], 24)}: {fit(name, 40)}"
        said = match.explanation or match.status
        print(cut(f"{match.rank:6.2f}  {match.score:.2f}  {place}: {said}", width))
    _report_end(written, seconds)
    unchanged = all(file.status == IDENTICAL for file in found.files)
    say(f"verdict: {exports.verdict(found)}", "green" if unchanged else "yellow")


def _report_end(written: list[str], seconds: float) -> None:
    if written:
        print(f"wrote {', '.join(written)}")
    print(f"{seconds:.1f} seconds")


def summary(
    paths: tuple[str, str],
    codes: tuple[Features, ...],
    diff: Diff,
    top: int,
    written: list[str],
    seconds: float,
) -> None:
    """Print what was found, the most changed functions, and which files were written."""
    width = columns()
    for which, path, code in zip(("old", "new"), paths, codes, strict=True):
        counts = ", ".join(
            f"{n:,} {utils.plural(n, noun)}"
            for n, noun in ((code.functions, "function"), (code.analysis.code_blocks, "block"))
        )
        room = width and width - len(f"{which}  : {counts}")
        print(f"{which}  {fit(relative(path), room)}: {counts}")
        sources = code.analysis.start_sources()
        said = ", ".join(f"{name} {n:,}" for name, n in sources.items())
        print(f"     function starts found in: {said}")
    for status in STATUS:
        n = sum(match.status == status for match in diff.functions)
        print(f"{n:6,} {utils.plural(n, 'function')} {status}")
    n = len(diff.blocks.a)
    print(f"{n:6,} {utils.plural(n, 'block')} matched, {int(diff.same.sum()):,} of them identical")
    changed = [match for match in diff.functions if match.status == CHANGED]
    if changed and top:
        print(
            "changed most likely by hand first (blocks without an identical partner, their share, "
            "score of the match, what changed):"
        )
    for match in changed[:top]:
        sides = [(f"0x{side.address:x}", side.symbol) for side in (match.old, match.new)]
        numbers = f"{match.differing:6,}  {max(match.change, 0.01):4.0%}  {match.score:.2f}"
        addresses = len(f"{numbers}  {sides[0][0]}  -> {sides[1][0]} : ")
        room = width and (width - addresses - KINDS) // 2
        places = (f"{address} {fit(name, room)}" for address, name in sides)
        print(cut(f"{numbers}  {' -> '.join(places)}: {', '.join(match.kinds)}", width))
    _report_end(written, seconds)
    identical = all(match.status == IDENTICAL for match in diff.functions)
    say(f"verdict: {verdict(diff)}", "green" if identical else "yellow")


if __name__ == "__main__":
    command_line(main)
