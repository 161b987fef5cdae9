"""Make scripts for Ghidra and IDA that give NEW's functions their names in OLD."""

import re

from matching.result import Diff

PIE_BASE = 0x400000  # where angr maps position-independent ELF files
MADE_UP = re.compile("sub_[0-9a-f]+$")  # a disassembler's name of a function without a symbol
# The scripts for Ghidra and IDA differ only in these lines.
NAMING = {
    "ghidra": """\
from ghidra.program.model.symbol import SourceType
for place, name, comment in NAMES:
    at = currentProgram.getImageBase().add(place) if RELATIVE else toAddr(place)
    createLabel(at, name, True, SourceType.ANALYSIS)
    setPlateComment(at, comment)
""",
    "ida": """\
import ida_funcs
import ida_name
import idaapi
for place, name, comment in NAMES:
    at = idaapi.get_imagebase() + place if RELATIVE else place
    ida_name.set_name(at, name, ida_name.SN_NOCHECK | ida_name.SN_FORCE)
    function = ida_funcs.get_func(at)
    if function:
        ida_funcs.set_func_cmt(function, comment, True)
""",
}


def naming_script(tool: str, new: str, diff: Diff, min_score: float = 0.0) -> str:
    """Return a script that names NEW's functions by their partners' symbols in OLD.

    Each function also gets a comment: the demangled name in OLD, the previous name in NEW, and the
    score and status of the match. Matches below ``min_score`` are left out.
    """
    with open(new, "rb") as file:
        head = file.read(18)
    relative = head[:4] == b"\x7fELF" and 3 in (head[16], head[17])  # ET_DYN, either byte order
    names = []
    for match in diff.functions:
        old, new_one = match.old, match.new
        if not (old and new_one) or MADE_UP.match(old.symbol) or match.score < min_score:
            continue
        name = re.sub("[^A-Za-z0-9_.$]", "_", old.symbol)[:200]
        comment = f"{old.name} at 0x{old.address:x} in the old binary: {match.status}, "
        comment += f"score {match.score:.2f}"
        if new_one.symbol != old.symbol:
            comment += f"; was {new_one.name}"
        names.append((new_one.address - PIE_BASE * relative, name, comment))
    lines = "".join(
        f"    (0x{place:x}, {name!r}, {comment!a}),\n" for place, name, comment in sorted(names)
    )
    return f"RELATIVE = {relative}\nNAMES = [\n{lines}]\n{NAMING[tool]}"
