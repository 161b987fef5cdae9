"""Which functions and basic blocks of two binaries correspond, and what changed.

    python diff.py OLD NEW
    python diff.py OLD NEW --html report.html --json diff.json --csv diff.csv

Symbols are used to show names, never to match. Neither binary is executed.
"""

import csv as csv_module
import dataclasses
import io
import itertools
import re
import time
from collections import Counter
from typing import Annotated, Any

import numpy as np
from pydantic import Field, PositiveInt

import analyse
import features
import matching
import preprocessing
import report
import similarity
import utils
from features import Code
from matching import Matches

outputDir = "output/"  # analysed binaries, shared with gendata.py
workers = 2  # processes

STATUS = ("changed", "only in old", "only in new", "identical")
CHANGED, ONLY_OLD, ONLY_NEW, IDENTICAL = range(4)
PIE_BASE = 0x400000  # where angr maps ELF files that may lie anywhere

# The same text is Python for Ghidra and for IDA but for these lines.
NAMING = {
    "ghidra": """\
from ghidra.program.model.symbol import SourceType
for place, name in NAMES:
    at = currentProgram.getImageBase().add(place) if RELATIVE else toAddr(place)
    createLabel(at, name, True, SourceType.ANALYSIS)
""",
    "ida": """\
import ida_name
import idaapi
for place, name in NAMES:
    at = idaapi.get_imagebase() + place if RELATIVE else place
    ida_name.set_name(at, name, ida_name.SN_NOCHECK | ida_name.SN_FORCE)
""",
}


@dataclasses.dataclass
class Diff:
    """What corresponds in two binaries.

    Attributes
    ----------
    functions : list of dict
        ``status`` (index into STATUS), ``sides`` (function of OLD and of NEW, -1 for none),
        ``score`` 0..1, ``differing``: how many blocks of both have no identical partner, and
        ``change``: which share of them. Changed functions come first, those with most differing
        blocks at the top.
    blocks : Matches
        Code blocks of OLD and NEW.
    same : bool (n,)
        Which of the matched blocks are the same code.
    """

    functions: list[dict[str, Any]]
    blocks: Matches
    same: np.ndarray


def main(
    old: str,
    new: str,
    model_file: str = str(similarity.DEFAULT),
    html: str | None = None,
    json: str | None = None,
    csv: str | None = None,
    anchors: str | None = None,
    ghidra: str | None = None,
    ida: str | None = None,
    top: Annotated[int, Field(ge=0)] = 10,
    outputDir: str = outputDir,
    workers: PositiveInt = workers,
) -> None:
    """Compare two binaries: which functions and blocks correspond, and what changed.

    Parameters
    ----------
    old, new : str
        Executables that angr reads (ELF, PE, Mach-O).
    model_file : str
        Model that contrast.py wrote. Default: the one that comes with this repository.
    html : str
        Write a page with both control-flow graphs of every function here.
    json, csv : str
        Write all matches here; CSV holds functions only.
    anchors : str
        File of known pairs of functions, one a line: their addresses in old and new, such as
        0x401000 0x401230. What follows a # is a comment.
    ghidra, ida : str
        Write a Python script here that gives the functions of new their names in old.
    top : int
        How many changed functions are printed.
    outputDir : str
        Where analysed binaries are cached.
    workers : int
        Processes.
    """
    began = time.perf_counter()
    model = similarity.read_model(model_file)
    codes = read_binaries((old, new), outputDir, workers)
    known = read_anchors(anchors, codes) if anchors else None
    diff = compare(*codes, model, known)
    if html:
        pairs = zip(diff.blocks.a.tolist(), diff.blocks.b.tolist(), diff.same.tolist(), strict=True)
        page = report.page((old, new), codes, diff.functions, [list(pair) for pair in pairs])
        write(html, page)
    if json:
        utils.write_json(json, as_json((old, new), codes, diff))
    if csv:
        write(csv, as_csv(codes, diff))
    for tool, file in (("ghidra", ghidra), ("ida", ida)):
        if file:
            write(file, naming_script(tool, new, codes, diff))
    summary((old, new), codes, diff, top, time.perf_counter() - began)


def write(path: str, text: str) -> None:
    """Write a text file, whole or not at all."""
    with utils.atomic_file(path) as file:
        file.write(text)


def read_binaries(paths: tuple[str, ...], output_dir: str, workers: int) -> tuple[Code, ...]:
    """Analyse binaries, or take their analyses from the cache.

    Raises
    ------
    UserError
        One cannot be analysed.
    """
    binaries = [{"path": path, "sha256": utils.sha256_of(path)} for path in paths]
    failed = analyse.analyse_all(binaries, output_dir, workers)
    if failed:
        raise utils.UserError("; ".join(f"{path}: {why}" for path, why in failed.items()))
    files = [preprocessing.cache_file(output_dir, binary["sha256"]) for binary in binaries]
    return tuple(features.read_code(preprocessing.load(file)) for file in files)


def read_anchors(path: str, codes: tuple[Code, ...]) -> np.ndarray:
    """Read known pairs of functions: int64 (k, 2), functions of OLD and NEW.

    Raises
    ------
    UserError
        A line that is no pair, an address that is no function's start, a function named twice.
    """
    starts = [
        {a: f for f, a in enumerate(c.analysis.function_address[: c.functions].tolist())}
        for c in codes
    ]
    pairs = []
    for number, line in enumerate(utils.read_text(path, "list of anchors").splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not all(re.fullmatch("0[xX][0-9a-fA-F]+", word) for word in words):
            raise utils.UserError(
                f"{path}, line {number}: {line.strip()!r} is no pair of addresses like 0x401000 "
                "0x401230"
            )
        for word, known, which in zip(words, starts, ("old", "new"), strict=True):
            if int(word, 16) not in known:
                raise utils.UserError(
                    f"{path}, line {number}: no function of the {which} binary begins at {word}"
                )
        pairs.append([known[int(word, 16)] for word, known in zip(words, starts, strict=True)])
    found = np.array(pairs, np.int64).reshape(-1, 2)
    for column in found.T:
        if len(np.unique(column)) < len(column):
            raise utils.UserError(f"{path}: a function stands in two pairs; each has one partner")
    return found


def compare(
    first: Code,
    second: Code,
    model: similarity.Model,
    anchors: np.ndarray | None = None,
) -> Diff:
    """Match two binaries and say what changed; parameters are those of `match_functions`."""
    functions = matching.match_functions(first, second, model, anchors)
    blocks = matching.match_blocks(first, second, functions)
    forms = first.forms, second.forms
    same = np.array(
        [forms[0][a] == forms[1][b] for a, b in zip(blocks.a, blocks.b, strict=True)], bool
    )
    function = [code.analysis.function for code in (first, second)]
    sides = function[0][blocks.a[same]].tolist(), function[1][blocks.b[same]].tolist()
    unchanged = Counter(zip(*sides, strict=True))
    rows = []
    for a, b, score in zip(functions.a, functions.b, functions.score, strict=True):
        pair = int(a), int(b)
        total = len(first.blocks[a]) + len(second.blocks[b])
        differing = total - 2 * unchanged[pair]
        status = CHANGED if differing else IDENTICAL
        rows.append(_row(status, pair, float(score), differing, total))
    for f in sorted(set(range(first.functions)) - set(functions.a.tolist())):
        rows.append(_row(ONLY_OLD, (f, -1), 0.0, len(first.blocks[f]), len(first.blocks[f])))
    for f in sorted(set(range(second.functions)) - set(functions.b.tolist())):
        rows.append(_row(ONLY_NEW, (-1, f), 0.0, len(second.blocks[f]), len(second.blocks[f])))
    rows.sort(key=lambda row: (row["status"], -row["differing"], row["sides"]))
    return Diff(rows, blocks, same)


def _row(status: int, sides: tuple[int, int], score: float, differing: int, total: int) -> dict:
    change = round(differing / total, 4)
    score = round(score, 4)
    return dict(status=status, sides=sides, score=score, differing=differing, change=change)


def describe(code: Code, f: int) -> dict[str, Any] | None:
    """Return address, name and number of blocks of a function; None for -1."""
    if f < 0:
        return None
    analysis = code.analysis
    address = f"0x{int(analysis.function_address[f]):x}"
    return {"address": address, "name": analysis.function_name[f], "blocks": len(code.blocks[f])}


def as_json(paths: tuple[str, str], codes: tuple[Code, ...], diff: Diff) -> dict[str, Any]:
    """Return all matches as a JSON object; addresses are texts, as JSON's numbers may be short."""
    rows = [
        {
            "status": STATUS[row["status"]],
            "score": row["score"],
            "differing": row["differing"],
            "change": row["change"],
            "old": describe(codes[0], row["sides"][0]),
            "new": describe(codes[1], row["sides"][1]),
        }
        for row in diff.functions
    ]
    address = [code.analysis.address for code in codes]
    blocks = [
        [
            f"0x{int(address[0][a]):x}",
            f"0x{int(address[1][b]):x}",
            round(float(score), 4),
            bool(same),
        ]
        for a, b, score, same in zip(
            diff.blocks.a, diff.blocks.b, diff.blocks.score, diff.same, strict=True
        )
    ]
    return {
        "format": 1,
        "old": paths[0],
        "new": paths[1],
        "functions": rows,
        "blocks": {"columns": ["old", "new", "score", "identical"], "rows": blocks},
    }


def as_csv(codes: tuple[Code, ...], diff: Diff) -> str:
    """Return the functions as CSV. No name can become a spreadsheet's formula."""
    out = io.StringIO()
    writer = csv_module.writer(out, lineterminator="\n")
    sides = [f"{side} {what}" for side in ("old", "new") for what in ("address", "name", "blocks")]
    writer.writerow(["status", "score", "differing", "change", *sides])
    for row in diff.functions:
        numbers = row["score"], row["differing"], f"{row['change']:.4f}"
        cells: list[Any] = [STATUS[row["status"]], *numbers]
        for code, f in zip(codes, row["sides"], strict=True):
            about = describe(code, f) or {"address": "", "name": "", "blocks": ""}
            if about["name"].startswith(("=", "+", "-", "@", "\t", "\r")):
                about["name"] = "'" + about["name"]
            cells += about.values()
        writer.writerow(cells)
    return out.getvalue()


def naming_script(tool: str, new: str, codes: tuple[Code, ...], diff: Diff) -> str:
    """Return a script that names NEW's functions by their partners' symbols in OLD."""
    with open(new, "rb") as file:
        head = file.read(18)
    relative = head[:4] == b"\x7fELF" and 3 in (head[16], head[17])  # ET_DYN, either byte order
    names = []
    for row in diff.functions:
        a, b = row["sides"]
        if a >= 0 and b >= 0 and not re.match("sub_[0-9a-f]+$", codes[0].analysis.function_name[a]):
            address = int(codes[1].analysis.function_address[b])
            name = re.sub("[^A-Za-z0-9_.$]", "_", codes[0].analysis.function_name[a])[:200]
            names.append((address - PIE_BASE * relative, name))
    lines = "".join(f"    (0x{place:x}, {name!r}),\n" for place, name in sorted(names))
    return f"RELATIVE = {relative}\nNAMES = [\n{lines}]\n{NAMING[tool]}"


def summary(
    paths: tuple[str, str], codes: tuple[Code, ...], diff: Diff, top: int, seconds: float
) -> None:
    """Print what was found, and the most changed functions."""
    for which, path, code in zip(("old", "new"), paths, codes, strict=True):
        print(
            f"{which}  {path}: {code.functions:,} functions, {code.analysis.code_blocks:,} blocks"
        )
    for status, name in enumerate(STATUS):
        print(f"{sum(row['status'] == status for row in diff.functions):6,} functions {name}")
    n = len(diff.blocks.a)
    print(f"{n:6,} blocks matched, {int(diff.same.sum()):,} of them identical")
    changed = [row for row in diff.functions if row["status"] == CHANGED]
    if changed and top:
        print(
            "most changed (blocks without an identical partner, their share, score of the match):"
        )
    for row in itertools.islice(changed, top):
        a, b = (describe(c, f) for c, f in zip(codes, row["sides"], strict=True))
        place = f"{a['address']} {a['name']} -> {b['address']} {b['name']}"
        share = max(row["change"], 0.01)
        print(f"{row['differing']:6,}  {share:4.0%}  {row['score']:.2f}  {place}")
    print(f"{seconds:.1f} seconds")


if __name__ == "__main__":
    utils.command_line(main)
