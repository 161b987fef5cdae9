"""Export what changed between two packages: as a sentence, JSON, CSV and Markdown."""

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any

from matching.exports.markdown import TOP, table
from matching.exports.records import CSV_COLUMNS, as_record, csv_cells
from matching.packages.compare import FAILED, FILE_STATUS, FileDiff, PackageDiff
from matching.result import CHANGED, IDENTICAL, ONLY_NEW, ONLY_OLD, ORDER, STATUS
from terminal.escape import csv_cell, markdown_text
from utils import plural

FORMAT = 1  # of the JSON; packages.schema.json describes it
SCHEMA = Path(__file__).resolve().parent / "packages.schema.json"


def verdict(diff: PackageDiff) -> str:
    """Say in one sentence what was found."""
    if diff.count(IDENTICAL) == len(diff.files):
        return f"identical: all {len(diff.files):,} files are"
    parts = [f"{n:,} {status}" for status in FILE_STATUS if (n := diff.count(status))]
    counts = Counter(match.status for _, match in diff.functions())
    functions = [f"{counts[status]:,} {status}" for status in ORDER if counts[status]]
    of = f"; functions: {', '.join(functions)}" if functions else ""
    n = len(diff.files)
    return f"{n:,} {plural(n, 'file')}: {', '.join(parts)}{of}"


def fails_on(diff: PackageDiff, fail_on: str) -> bool:
    """Whether the comparison fails under --fail_on; files that are not programs do not count."""
    asked = {ONLY_OLD, ONLY_NEW}
    if fail_on == "changed":
        asked.add(CHANGED)
    found = [file.status for file in diff.files if file.is_program]
    if fail_on == "unmatched":
        found += [match.status for _, match in diff.functions()]
    return not asked.isdisjoint(found)


def as_json(diff: PackageDiff) -> dict[str, Any]:
    """Return files, and functions that are not identical, in the format of `SCHEMA`."""
    number = {id(file): i for i, file in enumerate(diff.files)}
    return {
        "format": FORMAT,
        "old": diff.paths[0],
        "new": diff.paths[1],
        "left_out": dict(zip(("old", "new"), diff.left_out, strict=True)),
        "files": [_about(file) for file in diff.files],
        "functions": [
            {"file": number[id(file)], **as_record(match)} for file, match in diff.functions()
        ],
    }


def _about(file: FileDiff) -> dict[str, Any]:
    sides = {
        side: member and {"path": member.name, "size": member.size, "sha256": member.sha256}
        for side, member in (("old", file.pair.old), ("new", file.pair.new))
    }
    return {
        "status": file.status,
        "reason": file.reason,
        "paired_by": file.pair.how,
        "program": file.is_program,
        **sides,
        "functions": {status: file.counts.get(status, 0) for status in STATUS},
    }


def as_csv(diff: PackageDiff) -> str:
    """Return the functions that are not identical as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(["old file", "new file", *CSV_COLUMNS])
    for file, match in diff.functions():
        names = [csv_cell(side.name if side else "") for side in file.pair[:2]]
        writer.writerow([*names, *csv_cells(match)])
    return out.getvalue()


def as_markdown(diff: PackageDiff, top: int = TOP) -> str:
    """Return a verdict, tables of the files that differ, and the first ``top`` functions."""
    old, new = (markdown_text(path.rstrip("/").rpartition("/")[2]) for path in diff.paths)
    lines = [f"# {old} → {new}", "", f"**{verdict(diff)}**", "", "| files | |", "|---|---:|"]
    lines += [f"| {status} | {diff.count(status):,} |" for status in FILE_STATUS]
    differing = [file for file in diff.files if file.status != IDENTICAL]
    if differing:
        lines += ["", "## Files that differ", "", "| status | old | new | functions changed | |"]
        lines += ["|---|---|---|---:|---|"]
        lines += [_file_row(file) for file in differing[:top]]
        if len(differing) > top:
            lines += ["", f"{len(differing) - top:,} more are not listed."]
    found = diff.functions()
    if found and top:
        lines += ["", "## What changed most", ""]
        matches = [match for _, match in found[:top]]
        lines += table(matches, {"file": [markdown_text(file.name) for file, _ in found[:top]]})
        if len(found) > top:
            lines += ["", f"{len(found) - top:,} more are not listed."]
    return "\n".join(lines) + "\n"


def _file_row(file: FileDiff) -> str:
    names = [markdown_text(side.name) if side else "" for side in file.pair[:2]]
    changed = file.counts.get(CHANGED, 0) if file.counts else ""
    why = markdown_text(file.reason) if file.status == FAILED else ""
    return f"| {file.status} | {' | '.join(names)} | {changed} | {why} |"
