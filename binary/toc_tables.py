"""Jump tables of 64-bit PowerPC.

GCC makes a table's address from the table of contents, whose address is in r2. angr does not know
r2, so it resolves few of these tables, and the code of the cases is lost. The jump looks like this,
where r9 is the number of the case:

    cmplwi r9, 79 ; bgt ... ; addis r10, r2, -11 ; addi r10, r10, 32288 ; rldic r9, r9, 2, 54
    lwax r9, r10, r9 ; add r9, r9, r10 ; mtctr r9 ; bctr
"""

import re
from types import SimpleNamespace
from typing import Any, NamedTuple

from binary.instructions import read_instructions

TOC = 0x8000  # how far r2 points behind the beginning of .got
LOADS = "lwax"  # the instruction that reads an entry, a signed distance from the table
ENTRY = 4  # bytes
FAR = 1 << 16  # bytes of code before the jump, at most, that are read
COMPARES = ("cmplwi", "cmpldi")
BOUNDS = {"bgt": 1, "ble": 1, "bge": 0, "blt": 0}  # branches; what they add to make the length
SAME = ("mr", "extsw", "clrldi", "clrlwi", "sldi", "slwi", "rldic")  # still the case's number
CALLS = re.compile(r"b\w*l[+-]?$")
KEEPS = re.compile(r"st|cmp|mt|b|nop|tw|td|dcb")  # these write no register, or not the first one
LOAD = re.compile(r"(-?(?:0x)?[0-9a-f]+)\((r\d+)\)")
SAVED = {f"r{n}" for n in (1, *range(14, 32))}
KEPT = ("cr2", "cr3", "cr4")  # condition registers that a call leaves alone


Origin = tuple[int, str]  # of a number: the line that made it (-1 for none), and a register


class Table(NamedTuple):
    """A jump table: its address, and the number of its entries or 0 if that is not known."""

    address: int
    entries: int


def toc_resolver(project: Any, starts: list[Any]) -> Any:
    """Return a resolver of indirect jumps for angr.

    Parameters
    ----------
    starts : list of Start
        Where functions begin and end according to the file; without a known length, a table ends
        where an entry leads out of the function.
    """
    from angr.analyses.cfg.indirect_jump_resolvers.resolver import IndirectJumpResolver

    ranges = {start.address: start.end for start in starts}

    class TocResolver(IndirectJumpResolver):
        def filter(self, cfg: Any, addr: int, func_addr: int, block: Any, jumpkind: str) -> bool:
            return jumpkind == "Ijk_Boring"

        def resolve(
            self,
            cfg: Any,
            addr: int,
            func_addr: int,
            block: Any,
            jumpkind: str,
            func_graph_complete: bool = True,
            **_: Any,
        ) -> tuple[bool, list[int] | None]:
            start = max(min(func_addr, addr), addr - FAR)
            table = find_table(project, start, addr + block.size)
            targets = read_table(project, table, func_addr, ranges.get(func_addr, 0))
            if table is None or len(targets) < 2:
                return False, None
            jump = cfg.indirect_jumps.get(addr)
            if jump is not None:
                jump.jumptable, jump.resolved_targets = True, set(targets)
                jump.add_jumptable(table.address, ENTRY * len(targets), ENTRY, targets, True)
            return True, targets

    return TocResolver(project)


def find_table(project: Any, start: int, end: int) -> Table | None:
    """Return the table of the indirect jump that ends at ``end``, or None.

    Parameters
    ----------
    start, end : int
        The code to read: the function, or the last part of a long one, up to the end of the jump.
    """
    got = project.loader.main_object.sections_map.get(".got")
    if got is None:
        return None
    code = SimpleNamespace(addr=start, size=end - start, thumb=False)
    try:
        lines = read_instructions(project, code)
    except KeyError:  # the function's code is in several places
        return None
    known = {"r2": got.vaddr + TOC}  # register -> what it holds
    loaded: dict[str, Table] = {}  # register -> the table that its entry was read from
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
                    value = _word(project, known[place[2]] + int(place[1], 0))
            elif line.mnemonic == LOADS:
                base = next((known[r] for r in operands[1:] if r in known), None)
                table = None if base is None else Table(base, numbers.entries)
            elif line.mnemonic == "add":
                read = [loaded[r] for r in operands[1:] if r in loaded]
                bases = [known[r] for r in operands[1:] if r in known]
                table = read[0] if read and read[0].address in bases else None
            for where, what in ((known, value), (loaded, table)):
                where.pop(target, None)
                if what is not None:
                    where[target] = what
        known["r2"] = got.vaddr + TOC
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


def read_table(project: Any, table: Table | None, start: int, end: int) -> list[int]:
    """Return where the entries of a table lead.

    Parameters
    ----------
    start, end : int
        The function, if the file says where it ends; else ``end`` is 0.
    """
    targets: list[int] = []
    while table is not None and (not table.entries or len(targets) < table.entries):
        distance = _word(project, table.address + ENTRY * len(targets), ENTRY)
        if distance is None:
            break
        target = table.address + (distance ^ 0x80000000) - 0x80000000
        section = project.loader.find_section_containing(target)
        inside = start <= target < end
        if target % ENTRY or not (inside or (table.entries and section and section.is_executable)):
            break
        targets.append(target)
    return targets


def _word(project: Any, address: int, size: int = 8) -> int | None:
    try:
        return project.loader.memory.unpack_word(address, size=size)
    except KeyError:  # not in the file
        return None
