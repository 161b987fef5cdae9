"""Pseudo-code of single functions, by angr's decompiler.

angr recovers the graph of one function only, from the blocks of the analysis. So a few functions of
a large program take seconds.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

import utils
from binary.analysis import Analysis
from binary.binexport import SUFFIX
from jobs.processes import in_processes
from terminal import progress
from terminal.escape import printable

VERSION = 1  # of the cached files; raise it to make them again
SECONDS = 60.0  # processor time that one function may take


@dataclasses.dataclass(frozen=True)
class Pseudo:
    """The lines of a function's pseudo-code, safe to print; or the reason why there are none."""

    lines: tuple[str, ...] = ()
    reason: str = ""


def decompile(
    wanted: Iterable[tuple[str, Analysis, int]],
    output_dir: str,
    workers: int,
    limits: tuple[float, float],
) -> list[Pseudo]:
    """Decompile functions in workers; if one fails, the others go on.

    Parameters
    ----------
    wanted : iterable of (str, Analysis, int)
        A file, its analysis, and the index of a function.
    output_dir : str
        The folder that caches the pseudo-code.
    limits : (float, float)
        Seconds of processor time (at most SECONDS count), and GiB of memory.
    """
    wanted = list(wanted)
    digest = {path: utils.sha256_of(path) for path, _, _ in wanted}
    files = [
        Path(output_dir, "decompiled", f"{_key(digest[path], analysis, f)}.json")
        for path, analysis, f in wanted
    ]
    failed: dict[Path, str] = {}
    jobs = {}
    for file, (path, analysis, f) in zip(files, wanted, strict=True):
        if path.lower().endswith(SUFFIX):
            failed[file] = "a BinExport file contains no code to decompile"
        elif not file.exists():
            entry = int(analysis.function_address[f])
            jobs[file] = (path, entry, regions(analysis, f), _names(analysis), file)
    if jobs:
        progress.notice("loading angr ...")
        with utils.rare_collections():
            import angr  # noqa: F401 - once, not in each worker
    seconds = min(limits[0], SECONDS)
    done = in_processes(
        _decompile_one, iter(jobs.items()), len(jobs), workers, "functions", seconds, limits[1]
    )
    for file, error in done:
        if error is not None:
            failed[file] = error
    return [Pseudo(reason=failed[file]) if file in failed else _read(file) for file in files]


def _read(file: Path) -> Pseudo:
    """Return what `_decompile_one` wrote."""
    try:
        lines = utils.read_json(file, "cached pseudo-code")
    except utils.UserError as error:
        return Pseudo(reason=f"{error}; delete it and run again")
    if not (isinstance(lines, list) and all(isinstance(line, str) for line in lines)):
        return Pseudo(reason=f"{file} contains no lines of pseudo-code; delete it and run again")
    return Pseudo(tuple(printable(line) for line in lines))


def regions(analysis: Analysis, f: int) -> list[tuple[int, int]]:
    """Return (begin, end) of each contiguous piece of a function's code."""
    end_of = np.append(0, np.cumsum(analysis.instruction_size, dtype=np.int64))
    size = np.diff(end_of[analysis.first_instruction])
    found: list[tuple[int, int]] = []
    for block in np.flatnonzero(analysis.function[: analysis.code_blocks] == f).tolist():
        begin = int(analysis.address[block])
        end = begin + int(size[block])
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def _names(analysis: Analysis) -> dict[int, str]:
    """Return address -> name of functions and stubs of imports."""
    count = analysis.code_functions
    names = zip(analysis.function_address[:count].tolist(), analysis.function_name, strict=False)
    stubs = zip(analysis.imported_address.tolist(), analysis.imported_name, strict=True)
    return dict(stubs) | dict(names)


def _key(sha256: str, analysis: Analysis, f: int) -> str:
    about = [VERSION, importlib.metadata.version("angr"), sha256]
    about += [int(analysis.function_address[f]), regions(analysis, f)]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


@functools.lru_cache(maxsize=2)
def _project(path: str) -> Any:
    """Load a file, and keep it for the worker's next functions."""
    import angr

    return angr.Project(path, auto_load_libs=False)


def _decompile_one(
    path: str, entry: int, inside: list[tuple[int, int]], names: dict[int, str], to: Path
) -> None:
    """Write the lines of a function's pseudo-code as JSON; runs in a worker."""
    import angr

    project = _project(path)
    project.kb = angr.KnowledgeBase(project)
    for address, name in names.items():
        project.kb.labels[address] = printable(name)  # it could contain a line break
    try:
        with utils.rare_collections():
            cfg = project.analyses.CFGFast(
                regions=inside,
                function_starts=[entry],
                normalize=True,
                **dict.fromkeys(
                    ("start_at_entry", "symbols", "function_prologues", "eh_frame"), False
                ),
                force_smart_scan=False,
                force_complete_scan=False,
            )
            function = project.kb.functions.get_by_addr(entry)
            found = project.analyses.Decompiler(function, cfg=cfg.model)
    except Exception as error:  # hostile code may fail anywhere; the others go on
        raise utils.UserError(f"{type(error).__name__}: {error}".split("\n")[0]) from error
    if found.codegen is None or not found.codegen.text:
        raise utils.UserError("angr's decompiler returned nothing")
    lines = [printable(line.expandtabs(4)) for line in found.codegen.text.strip("\n").split("\n")]
    with utils.atomic_file(to) as file:
        json.dump(lines, file)
