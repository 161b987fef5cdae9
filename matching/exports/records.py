"""The result of a comparison as JSON and CSV."""

import csv
import io
from pathlib import Path
from typing import Any

import pydantic

from features.extract import Features
from matching.result import STATUS, Diff, FunctionMatch, block_matches
from terminal.escape import csv_cell

FORMAT = 2  # of the JSON; diff.schema.json describes it
CSV_COLUMNS = ["status", "score", "differing", "change", "rank", "kinds"]
CSV_COLUMNS += [
    f"{side} {what}" for side in ("old", "new") for what in ("address", "name", "blocks")
]
CSV_COLUMNS += ["inlined"]
SCHEMA = Path(__file__).resolve().parent / "diff.schema.json"
FUNCTION_MATCH = pydantic.TypeAdapter(FunctionMatch)


def as_record(match: FunctionMatch) -> dict[str, Any]:
    """Return a match as `SCHEMA` describes it."""
    record: dict[str, Any] = FUNCTION_MATCH.dump_python(match)
    return record


def from_record(record: dict[str, Any]) -> FunctionMatch:
    """Return the match that `as_record` made into a record.

    Raises
    ------
    TypeError, ValueError
        It is not such a record.
    """
    match = FUNCTION_MATCH.validate_python(record)
    if match.status not in STATUS:
        raise ValueError(f"unknown status {match.status}")
    return match


def as_json(paths: tuple[str, str], codes: tuple[Features, ...], diff: Diff) -> dict[str, Any]:
    """Return all matches in the format of `SCHEMA`."""
    return {
        "format": FORMAT,
        "old": paths[0],
        "new": paths[1],
        "functions": [as_record(match) for match in diff.functions],
        "blocks": {
            "columns": ["old", "new", "score", "identical"],
            "rows": [
                [f"0x{match.old:x}", f"0x{match.new:x}", match.score, match.identical]
                for match in block_matches(codes, diff)
            ],
        },
    }


def as_csv(diff: Diff) -> str:
    """Return the functions as CSV; no name can act as a formula in a spreadsheet."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows(csv_cells(match) for match in diff.functions)
    return out.getvalue()


def csv_cells(match: FunctionMatch) -> list[Any]:
    """Return a row of the CSV; its columns are CSV_COLUMNS."""
    numbers = match.score, match.differing, f"{match.change:.4f}", match.rank
    cells: list[Any] = [match.status, *numbers, ", ".join(match.kinds)]
    for function in (match.old, match.new):
        if function is None:
            cells += ["", "", ""]
        else:
            cells += [f"0x{function.address:x}", csv_cell(function.name), function.blocks]
    return [*cells, csv_cell(", ".join(function.name for function in match.inlined))]
