"""Jump tables of position-independent code on MIPS.

The entries are distances from the address in $gp, which a function without calls keeps in any
register. angr resolves few of these on 64 bits, so the code of the cases is lost. The jump looks
like this, where $a0 is the number of the case:

    sltiu $v0, $a0, 44 ; beqz $v0, ... ; lui $v1, 4 ; daddu $v1, $v1, $t9 ; daddiu $v1, $v1, -18328
    ld $v0, -32704($v1) ; dsll $a0, $a0, 3 ; daddiu $v0, $v0, -3824 ; daddu $v0, $v0, $a0
    ld $v0, ($v0) ; daddu $v0, $v0, $v1 ; jr $v0
"""

import re
from typing import Any, NamedTuple

from binary.instructions import Instruction
from binary.jump_tables import Table, read_word
from binary.offset_tables import offset_tables, table_base
from binary.operands import CALLS, Memory, parse

ENTRY = {"lw": 4, "ld": 8}  # the instructions that read an entry, and its bytes
SAME = re.compile(r"move|d?ext|andi|d?s(ll|rl|ra)(32)?|seb|seh")  # still the case's number
WRITES_NONE = re.compile(
    r"s[bhwd][lrcx]?\d*$|b|j|sync|t(eq|ge|lt|ne)|cache|pref|nop|mt|c\.|[sc]wc1"
)
SAVED = {*(f"$s{n}" for n in range(9)), "$gp", "$sp", "$fp"}

Origin = tuple[int, str]  # of a number: the line that made it (-1 for none), and a register


class Indexed(NamedTuple):
    """An address to which the number of a case was added."""

    address: int
    origin: Origin


class Callers(NamedTuple):
    """What the caller kept in a register; code behind a return has what was there before it."""

    register: str


class Target(NamedTuple):
    """Where the entry of a table leads."""

    table: Table


def find_table(project: Any, lines: list[Instruction]) -> Table | None:
    """Return the table of the indirect jump at the end of some code, or None.

    Parameters
    ----------
    lines : list of Instruction
        The function up to the jump, or the last part of a long one, or one way through it.
    """
    if not lines:
        return None
    image = project.loader.main_object
    gp, mask, slots = table_base(image), (1 << project.arch.bits) - 1, offset_tables(image)
    # Register, or place on the stack -> the address, indexed address, entry or target it holds.
    held: dict[str, Any] = {register: Callers(register) for register in SAVED} | {
        "$t9": lines[0].address
    }
    origins: dict[str, Origin] = {}
    length: dict[Origin, int] = {}

    def origin(where: str) -> Origin:
        return origins.get(where, (-1, where))

    def loaded(mnemonic: str, memory: Memory, text: str) -> Any:
        base = held.get(memory.base)
        if isinstance(base, Indexed):
            entries = length.get(base.origin, 0)
            return Table(base.address + memory.offset, gp, ENTRY[mnemonic], entries)
        if memory.base in ("$sp", "$fp"):
            return held.get(text)
        if isinstance(base, int):
            place = (base + memory.offset) & mask
            if any(first <= place < end for first, end in slots):
                return read_word(project, place, project.arch.bytes)
        return None

    for at, line in enumerate(lines):
        held["$gp"] = gp
        mnemonic, (operands, numbers, memory) = line.mnemonic, parse(line.operands)
        if mnemonic == "jr" and at >= len(lines) - 2:
            found = held.get(operands[0])
            return found.table if isinstance(found, Target) else None
        if CALLS.match(mnemonic):
            held = {w: value for w, value in held.items() if w in SAVED or "(" in w}
            origins = {w: o for w, o in origins.items() if w in SAVED or "(" in w}
            registers = [f"${kind}{n}" for kind in "vat" for n in range(10)]
            origins |= {register: (at, register) for register in registers}
        elif memory and WRITES_NONE.match(mnemonic):
            held[operands[1]] = held.get(operands[0])
            origins[operands[1]] = origin(operands[0])
        elif operands and not WRITES_NONE.match(mnemonic):
            target, value, made = operands[0], None, (at, "")
            sources = [held.get(operand) for operand in operands[1:]]
            if mnemonic == "lui":
                value = (numbers[0][1] << 16) - ((numbers[0][1] << 17) & (1 << 32)) & mask
            elif mnemonic in ("addiu", "daddiu") and numbers and isinstance(sources[0], int):
                value = sources[0] + numbers[-1][1] & mask
            elif mnemonic in ("addu", "daddu") and len(sources) == 2:
                tables = [s for s in sources if isinstance(s, Table)]
                numbers_held = [s for s in sources if isinstance(s, int)]
                if tables and numbers_held == [gp]:
                    value = Target(tables[0])
                elif len(numbers_held) == 2:
                    value = sum(numbers_held) & mask
                elif numbers_held and not tables:
                    other = operands[1 + (sources[0] is not None)]
                    value = Indexed(numbers_held[0], origin(other))
            elif mnemonic == "move":
                value = sources[0]
            elif memory and mnemonic in ENTRY:
                value = loaded(mnemonic, memory, operands[1])
                if value == Callers(target):
                    continue
            elif mnemonic == "sltiu":
                length[origin(operands[1])] = numbers[-1][1]
            if SAME.fullmatch(mnemonic):
                made = origin(operands[1])
            elif memory:
                made = origins.setdefault(operands[1], (at, ""))
            for places in (held, origins):  # places that the register points to are others now
                for place in [p for p in places if p.endswith(f"({target})")]:
                    del places[place]
            held[target], origins[target] = value, made
    return None
