"""The result of a comparison as JSON, CSV, and dataclasses."""

import csv
import dataclasses
import io
from pathlib import Path
from typing import Annotated, Any

import pydantic

from binary.demangle import demangle
from features.extract import Features
from matching.changes import STATUS, Diff
from terminal.escape import csv_cell

FORMAT = 2  # of the JSON; diff.schema.json describes it
CSV_COLUMNS = ["status", "score", "differing", "change", "rank", "kinds"]
CSV_COLUMNS += [
    f"{side} {what}" for side in ("old", "new") for what in ("address", "name", "blocks")
]
CSV_COLUMNS += ["inlined"]
SCHEMA = Path(__file__).resolve().parent / "diff.schema.json"
# In JSON, addresses are strings, because JavaScript would round numbers.
Address = Annotated[
    int, pydantic.PlainSerializer(hex), pydantic.BeforeValidator(lambda text: int(text, 16))
]


@dataclasses.dataclass(frozen=True)
class Function:
    """A function of one binary.

    Attributes
    ----------
    address : int
    name : str
        Its symbol, demangled if possible, or a name made from the address.
    symbol : str
        The symbol as in the binary.
    blocks : int
        Number of basic blocks.
    """

    address: Address
    name: str
    symbol: str
    blocks: int


@dataclasses.dataclass(frozen=True)
class FunctionMatch:
    """Two matched functions, or one without a partner.

    Attributes
    ----------
    status : str
        One of `STATUS`.
    score : float
        Confidence of the match, 0 to 1.
    differing : int
        Number of basic blocks in both functions that have no identical partner.
    change : float
        The same as a share of their blocks, 0 to 1.
    rank : float
        The higher, the more likely a human changed it; the list is sorted by it.
    kinds : tuple of str
        Kinds of change.
    old, new : Function or None
    inlined : tuple of Function
        For a function in only one binary: functions of the other that likely contain its code.
    """

    status: str
    score: float
    differing: int
    change: float
    rank: float
    kinds: tuple[str, ...]
    old: Function | None
    new: Function | None
    inlined: tuple[Function, ...] = ()

    @property
    def explanation(self) -> str:
        """The kinds of change, or the functions into which the code was likely inlined."""
        names = ", ".join(function.name for function in self.inlined)
        inlined = f"likely inlined {'into' if self.old else 'in'} {names}" if names else ""
        return ", ".join(self.kinds) or inlined

    def record(self) -> dict[str, Any]:
        """Return one flat record; ``pandas.DataFrame`` takes a list of them."""
        flat = {
            "status": self.status,
            "score": self.score,
            "differing": self.differing,
            "change": self.change,
            "rank": self.rank,
            "kinds": ", ".join(self.kinds),
            "inlined": ", ".join(function.name for function in self.inlined),
        }
        for side, function in (("old", self.old), ("new", self.new)):
            about = dataclasses.asdict(function) if function else dict.fromkeys(FUNCTION)
            flat |= {f"{side}_{field}": value for field, value in about.items()}
        return flat


FUNCTION = [field.name for field in dataclasses.fields(Function)]


FUNCTION_MATCH = pydantic.TypeAdapter(FunctionMatch)


@dataclasses.dataclass(frozen=True)
class BlockMatch:
    """Two matched basic blocks: addresses, confidence, and whether they are the same."""

    old: int
    new: int
    score: float
    identical: bool


def function_matches(codes: tuple[Features, ...], diff: Diff) -> list[FunctionMatch]:
    """Return the functions of a comparison, in the order of its list."""
    names = [demangle(code.analysis.function_name) for code in codes]

    def function(side: int, f: int) -> Function | None:
        if f < 0:
            return None
        analysis, blocks = codes[side].analysis, codes[side].blocks[f]
        symbol = analysis.function_name[f]
        return Function(int(analysis.function_address[f]), names[side][f], symbol, len(blocks))

    return [
        FunctionMatch(
            STATUS[row["status"]],
            row["score"],
            row["differing"],
            row["change"],
            row["rank"],
            tuple(row["kinds"]),
            function(0, row["sides"][0]),
            function(1, row["sides"][1]),
            tuple(filter(None, (function(int(row["sides"][1] < 0), f) for f in row["inlined"]))),
        )
        for row in diff.functions
    ]


def block_matches(codes: tuple[Features, ...], diff: Diff) -> list[BlockMatch]:
    """Return the matched basic blocks."""
    old, new = (code.analysis.address for code in codes)
    found = diff.blocks.a, diff.blocks.b, diff.blocks.score, diff.same
    return [
        BlockMatch(int(old[a]), int(new[b]), round(float(score), 4), bool(same))
        for a, b, score, same in zip(*found, strict=True)
    ]


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
        "functions": [as_record(match) for match in function_matches(codes, diff)],
        "blocks": {
            "columns": ["old", "new", "score", "identical"],
            "rows": [
                [f"0x{match.old:x}", f"0x{match.new:x}", match.score, match.identical]
                for match in block_matches(codes, diff)
            ],
        },
    }


def as_csv(codes: tuple[Features, ...], diff: Diff) -> str:
    """Return the functions as CSV; no name can act as a formula in a spreadsheet."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows(csv_cells(match) for match in function_matches(codes, diff))
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
