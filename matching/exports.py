"""The result of a comparison as JSON, CSV, and scripts for other tools."""

import csv as csv_module
import io
import re
from typing import Any

import utils
from features.extract import Features
from matching.changes import STATUS, Diff, describe

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


def write(path: str, text: str) -> None:
    """Write a text file, whole or not at all."""
    with utils.atomic_file(path) as file:
        file.write(text)


def as_json(paths: tuple[str, str], codes: tuple[Features, ...], diff: Diff) -> dict[str, Any]:
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


def as_csv(codes: tuple[Features, ...], diff: Diff) -> str:
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


def naming_script(tool: str, new: str, codes: tuple[Features, ...], diff: Diff) -> str:
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
