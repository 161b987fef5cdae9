"""Analyse many binaries in parallel; each analysis is made once and cached in a folder."""

import gc
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import utils
from binary.analysis import analysis_settings, cache_file, save_analysis
from binary.binexport import SUFFIX
from binary.disassemble import analyse
from binary.formats import BEGINNINGS, choose_slice, processors, slices
from binary.relocations import relocation_warning
from jobs.processes import LIMITS
from jobs.run import run_all
from terminal import progress
from terminal.escape import printable

LOADING = 6  # seconds to import angr
BYTES_A_SECOND = 60_000  # speed of one process, in bytes of coreutils files with debug information

HEADER = 4096  # bytes from the beginning of a file that tell its kind


def analyse_all(
    binaries: list[dict[str, str]],
    output_dir: str,
    workers: int,
    limits: tuple[float, float] = LIMITS,
    cluster: str | None = None,
    all_or_none: bool = False,
) -> dict[str, str]:
    """Analyse what is not cached yet; return path -> reason for the binaries that failed.

    With ``all_or_none``, the first that fails stops the others.
    """
    by_content = {binary["sha256"]: binary for binary in binaries}
    missing = {
        sha256: binary["path"]
        for sha256, binary in by_content.items()
        if not cache_file(output_dir, sha256).exists()
    }
    # What no program begins with comes first, as it fails at once and may stop the others; then the
    # largest, so that all workers finish at about the same time.
    missing = dict(
        sorted(missing.items(), key=lambda item: (is_program(item[1]), -os.path.getsize(item[1])))
    )
    failed = {}
    sizes = {sha256: os.path.getsize(file) for sha256, file in missing.items()}
    if missing and cluster is None:
        seconds = sum(sizes.values()) / BYTES_A_SECOND / min(workers, len(missing))
        seconds = LOADING + max(seconds, max(sizes.values()) / BYTES_A_SECOND)
        n = len(missing)
        size = f"{n} {utils.plural(n, 'file')}, {sum(sizes.values()) / 1e6:.1f} MB"
        progress.line(f"analysing {size}: about {seconds:.0f} seconds")
        progress.notice("loading angr ...")
        with utils.rare_collections():
            import angr  # noqa: F401 - imported once: the workers are copies of this process
        gc.freeze()  # the workers' garbage collectors skip what is here
    jobs = ((sha, (file, cache_file(output_dir, sha))) for sha, file in missing.items())
    where = (workers, limits, cluster, analysis_settings, ("angr",))
    for sha256, error in run_all(analyse_one, jobs, len(missing), "binaries", *where, sizes):
        if error is not None:
            failed[sha256] = error
            if all_or_none:
                break
    utils.remove_leftovers(output_dir)  # by workers that were stopped
    reasons = {b["path"]: failed[b["sha256"]] for b in binaries if b["sha256"] in failed}
    for binary in binaries:
        if binary["path"] not in reasons and (said := relocation_warning(binary["path"])):
            shown = binary.get("shown", binary["path"])
            print(f"{printable(shown)}: {said}", file=sys.stderr)
    return reasons


def analyse_files(
    paths: Sequence[str],
    output_dir: str,
    workers: int,
    limits: tuple[float, float] = LIMITS,
    all_or_none: bool = False,
) -> tuple[dict[str, Path], dict[str, str]]:
    """Return path -> analysis, and path -> reason for the files that could not be analysed.

    Raises
    ------
    UserError
        No file could be analysed; with ``all_or_none``, at least one could not.
    """
    binaries, failed = [], {}
    for path in dict.fromkeys(paths):
        try:
            binaries.append({"path": path, "sha256": utils.sha256_of(path)})
        except utils.UserError as error:
            failed[path] = str(error)
    if not (all_or_none and failed):
        failed |= analyse_all(binaries, output_dir, workers, limits, all_or_none=all_or_none)
    found = {b["path"]: cache_file(output_dir, b["sha256"]) for b in binaries}
    found = {path: file for path, file in found.items() if path not in failed}
    if failed and (all_or_none or not found):
        raise utils.UserError("; ".join(reason_of(path, why) for path, why in failed.items()))
    return found, failed


def reason_of(path: str, why: str) -> str:
    """Return why a file failed, with its name in front unless the reason contains it."""
    return why if path in why else f"{path}: {why}"


def report_skipped(skipped: Mapping[str, str]) -> None:
    """Print which files were skipped, and why."""
    for file, why in skipped.items():
        print(f"skipped {printable(reason_of(file, why))}", file=sys.stderr)


def analyse_one(file: str, cache_file: Path) -> None:
    """Analyse one binary into its cache file; runs in a worker."""
    try:
        with utils.temporary_folder(cache_file) as scratch:
            analysis = analyse(file, scratch)
    except utils.UserError:
        raise
    except Exception as error:  # a hostile file may fail anywhere; the others go on
        raise utils.UserError(f"{file}: {type(error).__name__} in the analysis: {error}") from error
    save_analysis(analysis, cache_file)


def take_slices(paths: Sequence[str], output_dir: str, arch: str | None) -> tuple[str, ...]:
    """Return the files, but for each universal file one slice of it, written to ``output_dir``.

    Parameters
    ----------
    arch : str, optional
        The slice's processor; by default, the processor of all other files.

    Raises
    ------
    UserError
        A universal file has no such slice, or several are possible.
    """
    contents = {path: _beginning(path) for path in paths}
    universal = {path for path, content in contents.items() if slices(content)}
    taken = []
    for path in paths:
        if path not in universal:
            taken.append(path)
            continue
        others = [processors(contents[other]) for other in paths if other != path]
        common = set.intersection(*map(set, others)) if others else set()
        content = Path(path).read_bytes()
        name = choose_slice(path, content, arch, sorted(common))
        offset, size = slices(content)[name]
        # Named by its content, because both files may have the same name.
        digest = utils.sha256_of(path)[:16]
        file = Path(output_dir) / f"{digest}-{Path(path).name}.{name}"
        with utils.atomic_file(file, "wb") as out:
            out.write(content[offset : offset + size])
        print(f"{path}: the slice for {name} of {', '.join(slices(content))}")
        taken.append(str(file))
    return tuple(taken)


def refuse_arch(paths: Iterable[str], arch: str | None) -> None:
    """Refuse the flag --arch if it has no effect, as none of the files is a universal one.

    Raises
    ------
    UsageError
    """
    # A file that cannot be read may be universal; the analysis will report why it cannot.
    if arch is not None and not any(not (b := _beginning(p)) or slices(b) for p in paths):
        raise utils.UsageError(
            f"--arch {arch} is for universal (macOS) files, and none is given; leave it out"
        )


def is_program(path: str) -> bool:
    """Return whether a file begins like an ELF, PE or Mach-O file, or is a BinExport file."""
    return _beginning(path).startswith(BEGINNINGS) or path.lower().endswith(SUFFIX)


def _beginning(path: str) -> bytes:
    try:
        with utils.open_regular(path) as file:
            return file.read(HEADER)
    except OSError:
        return b""  # the analysis will report why
