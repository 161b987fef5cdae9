"""Jump tables of 64-bit PowerPC.

GCC makes a table's address from the table of contents, whose address is in r2. angr does not know
r2, so it resolves few of these tables, and the code of the cases is lost. The jump looks like this,
where r9 is the number of the case:

    cmplwi r9, 79 ; bgt ... ; addis r10, r2, -11 ; addi r10, r10, 32288 ; rldic r9, r9, 2, 54
    lwax r9, r10, r9 ; add r9, r9, r10 ; mtctr r9 ; bctr
"""

import re
from typing import Any

from binary.instructions import Instruction
from binary.jump_tables import Table, read_word
from binary.offset_tables import table_base

LOADS = "lwax"  # the instruction that reads an entry, a signed distance from the table
ENTRY = 4  # bytes
WORD = 8  # bytes
COMPARES = ("cmplwi", "cmpldi")
BOUNDS = {"bgt": 1, "ble": 1, "bge": 0, "blt": 0}  # branches; what they add to make the length
SAME = ("mr", "extsw", "clrldi", "clrlwi", "sldi", "slwi", "rldic")  # still the case's number
CALLS = re.compile(r"b\w*l[+-]?$")
KEEPS = re.compile(r"st|cmp|mt|b|nop|tw|td|dcb")  # these write no register, or not the first one
LOAD = re.compile(r"(-?(?:0x)?[0-9a-f]+)\((r\d+)\)")
SAVED = {f"r{n}" for n in (1, *range(14, 32))}
KEPT = ("cr2", "cr3", "cr4")  # condition registers that a call leaves alone


Origin = tuple[int, str]  # of a number: the line that made it (-1 for none), and a register


def find_table(project: Any, lines: list[Instruction]) -> Table | None:
    """Return the table of the indirect jump at the end of some code, or None.

    Parameters
    ----------
    lines : list of Instruction
        The function up to the jump, or the last part of a long one, or one way through it.
    """
    toc = table_base(project.loader.main_object)
    known: dict[str, Any] = {"r2": toc}  # register -> what it holds
    loaded: dict[str, Any] = {}  # register -> the table that its entry was read from
    numbers = Numbers()
    for at, line in enumerate(lines):
        operands = line.operands.split(", ")
        target = operands[0]
        numbers.read(at, line.mnemonic, operands)
        if CALLS.match(line.mnemonic):
            known = {register: n for register, n in known.items() if register in SAVED}
        elif line.mnemonic == "mtctr" and at + 1 == len(lines) - 1:
            return loaded.get(target)
        elif not KEEPS.match(line.mnemonic):
            value = table = None
            if line.mnemonic in ("addi", "addis") and operands[1] in known:
                shift = 16 if line.mnemonic == "addis" else 0
                value = known[operands[1]] + (int(operands[2], 0) << shift)
            elif line.mnemonic == "mr":
                value = known.get(operands[1])
            elif line.mnemonic == "ld" and (place := LOAD.fullmatch(operands[1])):
                if place[2] in known and place[2] != "r1":
                    value = read_word(project, known[place[2]] + int(place[1], 0), WORD)
            elif line.mnemonic == LOADS:
                base = next((known[r] for r in operands[1:] if r in known), None)
                table = None if base is None else Table(base, base, ENTRY, numbers.entries)
            elif line.mnemonic == "add":
                read = [loaded[r] for r in operands[1:] if r in loaded]
                bases = [known[r] for r in operands[1:] if r in known]
                table = read[0] if read and read[0].address in bases else None
            for where, what in ((known, value), (loaded, table)):
                where.pop(target, None)
                if what is not None:
                    where[target] = what
        known["r2"] = toc
    return None


class Numbers:
    """Which registers hold the same number, and how large it can be, as code is read in order.

    Attributes
    ----------
    entries : int
        Length of the table from which the last line reads, 0 if its index has not been compared.
    """

    def __init__(self) -> None:
        self.entries = 0
        self.held: dict[str, Origin] = {}  # register, or place in memory -> its number
        self.compared: dict[str, tuple[Origin, int]] = {}  # condition register -> number, constant
        self.length: dict[Origin, int] = {}

    def read(self, at: int, mnemonic: str, operands: list[str]) -> None:
        """Read line ``at``."""
        target = operands[0]
        branch = mnemonic.rstrip("+-").removesuffix("lr")  # bgtlr returns where bgt jumps
        place = LOAD.fullmatch(operands[-1])
        condition = target if target.startswith("cr") else "cr0"
        if mnemonic in COMPARES:
            self.compared[condition] = self._origin(operands[-2]), int(operands[-1], 0)
        elif mnemonic.startswith("cmp"):
            self.compared.pop(condition, None)
        elif branch in BOUNDS:
            if condition in self.compared:
                origin, constant = self.compared.pop(condition)
                # Another comparison may exclude more for one path only: the largest holds for all.
                self.length[origin] = max(self.length.get(origin, 0), constant + BOUNDS[branch])
        elif CALLS.match(mnemonic):
            self.compared = {c: known for c, known in self.compared.items() if c in KEPT}
            kept = SAVED | {where for where in self.held if where.endswith("(r1)")}
            self.held = {where: origin for where, origin in self.held.items() if where in kept}
            self.held |= {f"r{n}": (at, f"r{n}") for n in range(13) if n != 1}
        elif mnemonic.startswith("st"):
            if place:
                self.held[operands[-1]] = self._origin(target)
        elif mnemonic == LOADS:
            lengths = [self.length.get(self._origin(register), 0) for register in operands[1:]]
            self.entries = max(lengths)
            self._write(target, (at, ""))
        elif not KEEPS.match(mnemonic):
            if mnemonic.endswith("."):  # these compare their result with 0
                self.compared.pop("cr0", None)
            if mnemonic in SAME:
                origin = self._origin(operands[1])
            elif place and place[2] != target:
                origin = self.held.setdefault(operands[-1], (at, ""))
            else:
                origin = at, ""
            self._write(target, origin)

    def _origin(self, register: str) -> Origin:
        return self.held.get(register, (-1, register))

    def _write(self, register: str, origin: Origin) -> None:
        """Record a register's number; places that it points to are others now."""
        pointed = f"({register})"
        self.held = {w: origin for w, origin in self.held.items() if not w.endswith(pointed)}
        self.held[register] = origin
