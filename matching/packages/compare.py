"""Compare two packages: their files, and all functions of the programs among them."""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import utils
from binary.analysis import cache_file, load_analysis
from binary.cache import analyse_all
from binary.formats import ALIASES
from features.extract import extract_features
from jobs.processes import in_processes
from matching.anchors import known_pairs
from matching.changes import compare
from matching.exports.records import as_record, from_record
from matching.model import read_model
from matching.packages.contents import Contents, Member, load_contents, read_contents
from matching.packages.pairs import FilePair, pair_files
from matching.page.make import make_page
from matching.result import (
    CHANGED,
    IDENTICAL,
    ONLY_NEW,
    ONLY_OLD,
    ORDER,
    RECOMPILED,
    STATUS,
    FunctionMatch,
)
from terminal import progress

# A file's status, in the order of the list.
FAILED, SAME_CODE, NO_PROGRAM = "failed", "same code", "changed (no program)"
FILE_STATUS = (
    *(FAILED, CHANGED, ONLY_OLD, ONLY_NEW, RECOMPILED),
    *(SAME_CODE, NO_PROGRAM, IDENTICAL),
)
ROOT = Path(__file__).resolve().parent.parent.parent


@dataclasses.dataclass
class FileDiff:
    """The result for one file of two packages.

    Attributes
    ----------
    pair : FilePair
    status : str
        One of FILE_STATUS.
    reason : str
        Why it failed, or "".
    counts : dict of str to int
        Status -> number of functions.
    functions : list of FunctionMatch
        The functions that are not identical, in the order of the list.
    page : str
        Name of the page of this comparison, or "".
    """

    pair: FilePair
    status: str
    reason: str = ""
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    functions: list[FunctionMatch] = dataclasses.field(default_factory=list)
    page: str = ""

    @property
    def name(self) -> str:
        """Its name in NEW; in OLD if it exists only there."""
        return self.pair.members[-1].name

    @property
    def is_program(self) -> bool:
        """Whether it is machine code in at least one of the packages."""
        return any(member.path for member in self.pair.members)


@dataclasses.dataclass
class PackageDiff:
    """What changed between two packages.

    Attributes
    ----------
    paths : (str, str)
    files : list of FileDiff
        In the order of FILE_STATUS; changed files are sorted by the highest rank among their
        functions.
    left_out : (dict, dict)
        For each package, see `matching.packages.contents.Contents`.
    """

    paths: tuple[str, str]
    files: list[FileDiff]
    left_out: tuple[dict[str, int], dict[str, int]]

    def functions(self) -> list[tuple[FileDiff, FunctionMatch]]:
        """Return the functions of all files that are not identical, by falling rank."""
        order = {status: at for at, status in enumerate(ORDER)}
        found = [(file, match) for file in self.files for match in file.functions]
        return sorted(found, key=lambda item: (order[item[1].status], -item[1].rank))

    def count(self, status: str) -> int:
        """Return the number of files with a status."""
        return sum(file.status == status for file in self.files)


def compare_packages(
    paths: tuple[str, str],
    model_file: str,
    pages: bool,
    output_dir: str,
    workers: int,
    limits: tuple[float, float],
    unpack_limit: float,
    arch: str | None = None,
) -> PackageDiff:
    """Compare two packages. If a file fails, the others go on.

    Results for each file are cached in ``output_dir``, so that an interrupted run can be continued.

    Raises
    ------
    UserError
        A package cannot be read.
    UsageError
        ``arch`` is given, and no universal file of the packages has such a slice.
    """
    with utils.temporary_folder(Path(output_dir) / "unpacked") as folder:
        contents = _list(paths, folder, workers, limits, unpack_limit)
        if arch is not None:
            _keep_slices(contents, arch)
        # Files that could not be read are listed, too.
        lost = [
            {n: Member(n, 0, f"{side} {n}", "") for n in contents[side].failed} for side in (0, 1)
        ]
        pairs = pair_files(
            *(c.members + list(m.values()) for c, m in zip(contents, lost, strict=True))
        )
        files = [FileDiff(pair, _status_by_content(pair)) for pair in pairs]
        for file in files:
            for side, member in enumerate(file.pair[:2]):
                if member is not None and member.name in lost[side]:
                    file.status, file.reason = FAILED, contents[side].failed[member.name]
            closed = [member.closed for member in file.pair.members if member.closed]
            if closed and file.status == NO_PROGRAM:
                file.status, file.reason = FAILED, f"changed, but not compared: {closed[0]}"
        asked = [file for file in files if not file.status]
        _compare_programs(asked, paths, model_file, pages, output_dir, workers, limits)
    return PackageDiff(
        paths, sorted(files, key=_place), (contents[0].left_out, contents[1].left_out)
    )


def _place(file: FileDiff) -> tuple:
    first = file.functions[0] if file.functions else None
    return (
        FILE_STATUS.index(file.status),
        not file.is_program,
        -(first.rank if first else 0),
        file.name,
    )


def _list(
    paths: tuple[str, str],
    folder: Path,
    workers: int,
    limits: tuple[float, float],
    unpack_limit: float,
) -> tuple[Contents, Contents]:
    """List the contents of both packages and unpack their programs, each in a worker."""
    jobs = []
    for side, path in enumerate(paths):
        (folder / str(side)).mkdir()
        place = str(folder / str(side)), str(folder / f"{side}.json")
        jobs.append((side, (path, *place, unpack_limit)))
    progress.notice("reading the packages ...")
    for side, error in in_processes(read_contents, iter(jobs), 2, workers, "packages", *limits):
        if error is not None:
            raise utils.UserError(error if paths[side] in error else f"{paths[side]}: {error}")
    return load_contents(str(folder / "0.json")), load_contents(str(folder / "1.json"))


def _keep_slices(contents: tuple[Contents, Contents], arch: str) -> None:
    """Drop the slices for other processors from the lists."""
    wanted = ALIASES.get(arch, arch)
    known = {m.processor for side in contents for m in side.members if m.slice_of}
    if not known:
        raise utils.UsageError(
            f"--arch {arch} is for universal (macOS) files, and the packages hold none; "
            "leave it out"
        )
    if wanted not in known:
        raise utils.UsageError(
            f"--arch {arch}: no universal file has a slice for it; they are for "
            f"{', '.join(sorted(known))}"
        )
    for side in contents:
        kept = [m for m in side.members if m.processor == wanted or not m.slice_of]
        if dropped := len(side.members) - len(kept):
            side.left_out["other slice"] = dropped
        for name in sorted({m.slice_of for m in side.members} - {m.slice_of for m in kept}):
            side.failed[name] = f"it has no slice for {arch}"
        side.members[:] = kept


def _status_by_content(pair: FilePair) -> str:
    """Return a file's status; "" if it depends on a comparison of functions."""
    if pair.old is None:
        return ONLY_NEW
    if pair.new is None:
        return ONLY_OLD
    if pair.old.sha256 == pair.new.sha256:
        return IDENTICAL
    if pair.old.path and pair.new.path:
        return ""
    return CHANGED if pair.old.path or pair.new.path else NO_PROGRAM  # e.g. a script


def _compare_programs(
    files: list[FileDiff],
    paths: tuple[str, str],
    model_file: str,
    pages: bool,
    output_dir: str,
    workers: int,
    limits: tuple[float, float],
) -> None:
    """Compare the functions of each pair of programs unless the result is cached."""
    kept = Path(output_dir) / "compared"
    same = utils.sha256_of(model_file), _code()
    digests = {m.path: m.sha256 for file in files for m in file.pair.members}
    shown = {
        member.path: f"{package}: {member.name}"
        for file in files
        for package, member in zip(paths, (file.pair.old, file.pair.new), strict=True)
        if member is not None
    }
    binaries = [
        {"path": path, "sha256": sha256, "shown": shown[path]} for path, sha256 in digests.items()
    ]
    failed = analyse_all(binaries, output_dir, workers, limits)
    jobs, sizes, results = {}, {}, {}
    for number, file in enumerate(files):
        both = [member.path for member in file.pair.members]
        if reasons := [failed[path] for path in both if path in failed]:
            _fail(file, reasons[0])
        if file.status:
            continue
        analyses = [cache_file(output_dir, digests[path]) for path in both]
        before, after = file.pair.members
        names = before.name, after.name
        key = _key(analyses, names, same)
        results[number] = kept / f"{key}.json", kept / f"{_slug(file.name)}-{key[:12]}.html"
        page = results[number][1] if pages else None
        if not results[number][0].exists() or (page and not page.exists()):
            jobs[number] = (paths, analyses, names, model_file, results[number][0], page)
            sizes[number] = sum(analysis.stat().st_size for analysis in analyses)
    ordered = sorted(jobs, key=lambda number: -sizes[number])  # large ones first
    given = ((number, jobs[number]) for number in ordered)
    time, memory = limits
    done = in_processes(_compare_two, given, len(jobs), workers, "pairs", time, memory, sizes=sizes)
    for number, reason in done:
        if reason is not None:
            _fail(files[number], reason)
    utils.remove_leftovers(kept)
    for number, (result, page) in results.items():
        if not files[number].status:
            try:
                _read_result(files[number], result, str(page) if pages else "")
            except (KeyError, TypeError, ValueError, AttributeError):
                why = f"the comparison that is kept in {result} is damaged; delete it and run again"
                _fail(files[number], why)
            except utils.UserError as error:
                _fail(files[number], f"{error}; delete it and run again")


def _fail(file: FileDiff, reason: str) -> None:
    """Mark a file as failed; in the reason, use its names in the packages."""
    for member in file.pair.members:
        reason = reason.replace(member.path, member.name)
    file.status, file.reason = FAILED, reason


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name.rpartition("/")[2])[-60:].lstrip(".")


def _key(analyses: list[Path], names: tuple[str, str], same: tuple[str, str]) -> str:
    """Return one hash of all that a comparison depends on; ``same``: hashes of model and code."""
    about = [*(analysis.name for analysis in analyses), *names, *same]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


FOLDERS = "binary", "encoder", "features", "matching"


def _code() -> str:
    """Return a hash of the code that compares; after a change, cached results are not used."""
    files = [f for folder in FOLDERS for f in (ROOT / folder).rglob("*") if f.is_file()]
    kept = sorted(f for f in files if f.suffix in (".py", ".js", ".css", ".html"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in kept)).hexdigest()


def _compare_two(
    paths: list[str],
    analyses: list[Path],
    names: tuple[str, str],
    model_file: str,
    result: Path,
    page: Path | None,
) -> None:
    """Compare two programs and write the result; runs in a worker."""
    old, new = (extract_features(load_analysis(file)) for file in analyses)
    codes = old, new
    diff = compare(old, new, read_model(model_file), known_pairs(paths, codes))
    if page:
        with utils.atomic_file(page) as out:
            out.write(make_page(names, codes, diff, home="index.html"))
    counts = Counter(match.status for match in diff.functions)
    differing = [as_record(m) for m in diff.functions if m.status != IDENTICAL]
    utils.write_json(result, {"counts": counts, "functions": differing})


def _read_result(file: FileDiff, result: Path, page: str) -> None:
    found = utils.read_json(result, "comparison that is kept")
    functions = [from_record(row) for row in found["functions"]]
    counts = {status: int(found["counts"].get(status, 0)) for status in STATUS}
    file.counts, file.functions, file.page = counts, functions, page
    statuses = {match.status for match in file.functions}
    changed = statuses & {CHANGED, ONLY_OLD, ONLY_NEW}
    file.status = CHANGED if changed else RECOMPILED if statuses else SAME_CODE
