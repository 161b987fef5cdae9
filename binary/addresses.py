"""Find which numbers in a binary's instructions are addresses, and what they point to.

Compilers write an address in many ways: whole (x86, s390x), as a page and its low bits (``adrp``
and ``add`` on AArch64, ``lui`` and ``addiu`` on MIPS, ``lis`` and ``addi`` on PowerPC, ``auipc``
and ``addi`` on RISC-V), as a distance from a register that holds the address of the global offset
table (i386, MIPS, PowerPC), or as a word in a pool after the function (ARM). This module follows
the registers that hold parts of addresses through each function, and so finds out whether each
number in the text of an instruction is an address, a part of one, or just a number.
"""

import re
from collections import defaultdict, deque
from typing import Any, NamedTuple

import numpy as np

from binary.analysis import CALL, STEP_OVER
from binary.instructions import Instruction
from binary.offset_tables import offset_tables, table_base
from binary.operands import (
    BRANCH,
    CALLS,
    IN_MEMORY,
    NUMBER,
    OFFSET,
    PART,
    PLACE,
    SLOT,
    Memory,
    Parsed,
    parse,
)

READS_FIRST = re.compile(r"(c\.)?(st|sw|sd|sh|sb|fs|s[dw]c1|v?str|cmp|cmn|tst|teq|test|push|mt|b)")
COMPUTES = {"and", "or", "xor", "test", "imul", "shl", "shr", "sar", "rol", "ror", "ret", "enter"}
NOT_A_PLACE = COMPUTES | {"bt", "bts", "btr", "int", "in", "out"}  # x86: these never use addresses
NOP, MOST_NOPS = 0x90, 9  # i386's
SAVED = {  # registers that a call preserves
    "X86": {"ebx", "esi", "edi", "ebp"},
    "AARCH64": {f"x{i}" for i in range(19, 30)},
    "ARM": {f"r{i}" for i in range(4, 12)} | {"sb", "sl", "fp"},
    "MIPS": {f"$s{i}" for i in range(9)} | {"$gp", "$fp"},
    "PPC": {f"r{i}" for i in range(14, 32)} | {"r2"},
    "RISCV": {f"s{i}" for i in range(12)} | {"gp"},
}


AHEAD = 40  # how many instructions to search for a loop's first access to memory


class Value(NamedTuple):
    """What a register is known to hold.

    Attributes
    ----------
    number : int
    base : int
        1: adding an offset completes an address; the offset is not that of a structure's field.
        2: the same, and so does adding another offset to the sum. 0: neither.
    made_by : tuple of (block, line, position)
        The numbers in the instructions from which it was computed.
    """

    number: int
    base: int
    made_by: tuple[tuple[int, int, int], ...] = ()


State = dict[str, Value]  # register -> what it holds


def is_constant(region: Any) -> bool:
    """Whether the content of a section or segment never changes after loading."""
    return not region.is_writable or getattr(region, "name", "").startswith(".data.rel.ro")


class Finder:
    """Finds the addresses in one binary's code.

    Parameters
    ----------
    project : angr.Project
    code : dict of angr's node to list of Instruction
        The code blocks, ordered by their numbers.
    edges : list of (int, int, int)
        (source, target, kind), as in `Analysis`.
    """

    def __init__(
        self, project: Any, code: dict[Any, list[Instruction]], edges: list[tuple[int, int, int]]
    ) -> None:
        self.arch, self.memory, self.word = project.arch, project.loader.memory, project.arch.bytes
        self.mask = (1 << project.arch.bits) - 1
        name = project.arch.name
        self.family = next((f for f in SAVED if name.startswith(f)), name)
        image = project.loader.main_object
        regions = list(image.sections) or list(image.segments)
        mapped = [r for r in regions if r.memsize and getattr(r, "occupies_memory", True)]
        mapped = [r for r in mapped if getattr(r, "type", "") != "SHT_NOTE"]
        self.bounds = sorted((r.vaddr, r.vaddr + r.memsize) for r in mapped if r.vaddr)
        self.starts = [start for start, _ in self.bounds]
        self.constant = [(r.vaddr, r.vaddr + r.memsize) for r in mapped if is_constant(r)]
        self.executable = [(r.vaddr, r.vaddr + r.memsize) for r in mapped if r.is_executable]
        self.offset_table, self.got = offset_tables(image), table_base(image)
        # Position-independent code holds only distances: no number in it is an absolute address.
        kind = type(image).__name__
        moves = "MachO" in kind or ("ELF" in kind and image.pic and image.is_main_bin is not None)
        self.absolute = not (moves and getattr(image, "pic", False))
        self.thumb = {block for block, node in enumerate(code) if node.thumb}
        self.address = [node.addr for node in code]
        self.lines = list(code.values())
        self.edges = edges
        self.emit = False  # whether to record what is found, and where: block, line
        self.at = 0, 0
        self.found: list[tuple[int, int, int, int, int]] = []
        self.parts: set[tuple[int, int, int]] = set()
        self.thunks: dict[int, str | None] = {}
        self.words: set[int] = set()  # addresses of the words that ARM code loads from pools

    def fields(self) -> dict[str, Any]:
        """Return the fields of an `Analysis` that say what the numbers in instructions mean."""
        columns = list(zip(*self.references(), strict=True)) or [()] * 5
        names = "operand_block", "operand_line", "operand_number", "operand_kind", "operand_value"
        types = np.int32, np.int32, np.uint8, np.uint8, np.uint64
        fields = {n: np.array(c, t) for n, c, t in zip(names, columns, types, strict=True)}
        big = self.arch.memory_endness != "Iend_LE"
        fields["pointers"] = np.array([self.word, big, self.got], np.uint64)
        return fields

    def pools(self) -> list[tuple[int, int]]:
        """Return (start, end) of the data between blocks of ARM code that instructions refer to."""
        if self.family != "ARM":
            return []
        starts = sorted(a & ~1 for a in self.address)
        ends = sorted((x[-1].address & ~1) + x[-1].size for x in self.lines)
        found = set()
        for *_, kind, value in self.found:
            after = int(np.searchsorted(starts, value & ~1))
            at = int(np.searchsorted(ends, value & ~1, side="right")) - 1
            between = 0 < after < len(starts) and at >= 0 and ends[at] > starts[after - 1]
            if kind == PLACE and between and self.is_mapped(value) and value & ~1 != starts[after]:
                found.add((ends[at], starts[after]))
        pieces: list[tuple[int, int]] = []
        for start, end in sorted(found):
            inside = sorted(w for w in self.words if start <= w < end)
            pieces += zip([start, *(w + 4 for w in inside)], [*inside, end], strict=True)
        return [(start, end) for start, end in pieces if start < end]

    def references(self) -> list[tuple[int, int, int, int, int]]:
        """Return (block, line, index of the number in the line, kind, value), sorted."""
        states = self._states() if self.family in SAVED else [{} for _ in self.lines]
        self.emit = True
        for block, state in enumerate(states):
            self._run(block, dict(state or {}))
        kept = {}
        for block, line, position, kind, value in self.found:
            at = block, line, position
            if kind == NUMBER and at in self.parts:
                kind, value = PART, 0
            if at not in kept or kind != NUMBER:
                kept[at] = kind, value & ((1 << 64) - 1)
        for at in self.parts:
            kept.setdefault(at, (PART, 0))
        return [(*at, *what) for at, what in sorted(kept.items())]

    def is_mapped(self, address: int) -> bool:
        """Whether an address lies in a section of the file, or directly after one."""
        at = int(np.searchsorted(self.starts, address, side="right")) - 1
        return at >= 0 and address <= self.bounds[at][1]

    def is_near(self, address: int) -> bool:
        """Whether the image can be reached from an address with a 16-bit offset."""
        return self.starts[0] - 0x8000 <= address <= self.bounds[-1][1] + 0x8000

    # ---------------------------------------------------------------- registers through blocks

    def _states(self) -> list[State | None]:
        """Return what the registers hold at the beginning of each block."""
        n = len(self.lines)
        flow, entered = defaultdict(list), set()
        ends = [lines[-1].address + lines[-1].size for lines in self.lines]
        for source, target, kind in self.edges:
            if source < n and target < n:
                # Stubs on 32-bit PowerPC use their caller's register for the offset table.
                stub = self.family == "PPC" and self.lines[target][-1].mnemonic == "bctr"
                if kind == CALL and self.address[target] & ~1 != ends[source] and not stub:
                    entered.add(target)
                else:
                    flow[source].append((target, kind in (STEP_OVER, CALL)))
        has_flow = {t for targets in flow.values() for t, _ in targets}
        states: list[State | None] = [None] * n
        for block in range(n):
            if block in entered or block not in has_flow:
                states[block] = self._at_entry(block)
        waiting = deque(b for b in range(n) if states[b] is not None)
        queued = set(waiting)
        while waiting:
            block = waiting.popleft()
            queued.discard(block)
            state = dict(states[block] or {})
            self._run(block, state)
            saved = SAVED[self.family]
            kept = {r: v for r, v in state.items() if r in saved or "[" in r or "(" in r}
            # A function of i386 gave its own return address back (__x86.get_pc_thunk.ax).
            kept |= {r: v for r, v in state.items() if v[:2] == (ends[block], True)}
            for target, called in flow[block]:
                out = kept if called else state
                if "$t9" in out and out["$t9"].number == self.address[target]:
                    out = out | self._at_entry(target)  # a tail call
                known = states[target]
                if known is None:
                    states[target] = dict(out)
                else:
                    agreed = {
                        r: v._replace(made_by=tuple({*v.made_by, *out[r].made_by})[:8])
                        for r, v in known.items()
                        if r in out and out[r][:2] == v[:2]
                    }
                    if len(agreed) == len(known):
                        continue
                    states[target] = agreed
                if target not in queued:
                    queued.add(target)
                    waiting.append(target)
        return states

    def _at_entry(self, block: int) -> State:
        address = self.address[block] & ~1
        if self.family == "MIPS":
            return {"$t9": Value(address, True)}
        if self.family == "PPC" and self.word == 8:
            return {"r12": Value(address, True), "r2": Value(self.got, True)}
        return {}

    # ------------------------------------------------------------------------ instructions

    def _run(self, block: int, state: State) -> None:
        """Follow the instructions of a block; if ``self.emit``, record what they refer to."""
        lines = self.lines[block]
        start = self.address[block] & ~1
        if self.family == "X86" and lines[0].mnemonic == "pop" and block:
            before = self.lines[block - 1][-1]
            if before.mnemonic == "call" and before.operands == hex(start):
                state["the return address"] = Value(start, True)
        if self.family == "PPC" and block:
            before = self.lines[block - 1][-1]
            if before.operands.endswith(hex(start)) and CALLS.match(before.mnemonic):
                state["lr"] = Value(start, 2)
        if self.family == "MIPS":
            state["$gp"] = Value(self.got, True)
        follow = getattr(self, f"_{self.family.lower()}") if self.family in SAVED else None
        for line, instruction in enumerate(lines):
            self.at = block, line
            parsed = parse(instruction.operands)
            if self.emit:
                self._direct(instruction, parsed)
            if follow:
                follow(instruction, parsed, state)

    def _note(self, position: int, kind: int, value: int, *values: Value) -> None:
        """Record what a number of this instruction means, and the values it was made from."""
        if not self.emit:
            return
        self.found.append((*self.at, position, kind, value))
        for made in values:
            self.parts.update(made.made_by)

    def _direct(self, instruction: Instruction, parsed: Parsed) -> None:
        """Record the addresses that an instruction contains whole."""
        if not parsed.numbers:
            return
        last = len(parsed.numbers) - 1
        operand, value = parsed.numbers[last]
        mnemonic = instruction.mnemonic
        if BRANCH.match(mnemonic) and operand == len(parsed.operands) - 1 and not parsed.memory:
            if self.family == "RISCV":
                value += instruction.address
            if self.is_mapped(value):
                self._note(last, PLACE, value)
            return
        if self.family in ("AMD64", "X86"):
            memory = parsed.memory
            if memory and memory.base in ("rip", "eip"):
                place = memory.offset + instruction.address + instruction.size
                self._note_through(memory.position, place)
            if not self.absolute or mnemonic.split(" ")[-1] in NOT_A_PLACE:
                return
            for position, (_, value) in enumerate(parsed.numbers):
                relative = memory and memory.position == position and memory.base in ("rip", "eip")
                if not relative and value > 0xFFF and self.is_mapped(value):
                    self._note(position, PLACE, value)
        elif self.family == "S390X" and mnemonic.endswith("rl") and self.is_mapped(value):
            self._note_through(last, value)

    def _note_through(self, position: int, address: int, *values: Value) -> None:
        """Record an access to memory; if it is to the offset table, one to what the entry holds."""
        place = self._through(address)
        self._note(position, PLACE if place == address else SLOT, place, *values)

    def _through(self, address: int) -> int:
        """Return the offset table's entry at an address, or the address if there is none."""
        if any(start <= address < end for start, end in self.offset_table):
            content = self._word(address)
            page = self.family == "MIPS" and content and not content & 0xFFFF
            if content and (self.is_mapped(content) or (page and self.is_near(content))):
                return content
        return address

    def _word(self, address: int, size: int | None = None) -> int | None:
        try:
            return self.memory.unpack_word(address, size=size or self.word)
        except (KeyError, ValueError):
            return None

    def _kill(self, state: State, instruction: Instruction, parsed: Parsed) -> None:
        """Forget the registers that an instruction writes or may write."""
        operands = parsed.operands
        if operands and not READS_FIRST.match(instruction.mnemonic):
            for register in re.findall(r"[$%\w]+", operands[0]) if "[" not in operands[0] else ():
                state.pop(register, None)
        if instruction.mnemonic.startswith(("ldp", "ldaxp", "ldrd", "umull", "smull", "lmg")):
            state.pop(operands[1], None)

    def _load(self, memory: Memory, base: Value) -> Value | None:
        """Record an access to memory relative to a base; return the offset table's word there."""
        address = (base.number + memory.offset) & self.mask
        if not base.base or not self.is_mapped(address):
            return None
        place = self._through(address)
        if place == address:
            self._note(memory.position, PLACE, place, base)
            return None
        page = self.family == "MIPS" and not place & 0xFFFF
        self._note(memory.position, PART if page else SLOT, 0 if page else place, base)
        return Value(place, page, ((*self.at, memory.position),) if page else ())

    def _add(self, position: int, base: Value, offset: int) -> Value | None:
        """Record base + offset and return it; None if it is not an address."""
        address = (base.number + offset) & self.mask
        if not self.is_mapped(address):
            return None
        self._note(position, PLACE, address, base)
        return Value(address, False)

    def _x86(self, instruction: Instruction, parsed: Parsed, state: State) -> None:
        mnemonic, operands, memory = instruction.mnemonic, parsed.operands, parsed.memory
        result = None
        target = operands[0] if operands else ""
        if mnemonic == "pop" and "the return address" in state:
            result = state.pop("the return address")
        elif mnemonic == "add" and target in state and parsed.numbers and not memory:
            base = state[target]
            number = (base.number + parsed.numbers[-1][1]) & self.mask
            if base.base and self.is_mapped(number):
                self._note(0, PART, 0)
                self.got = number
                result = Value(number, True)
        elif mnemonic == "mov" and len(operands) == 2 and operands[1] in state:
            result = state[operands[1]]
        elif memory and memory.base in state and memory.base not in ("esp", "ebp"):
            loaded = self._load(memory, state[memory.base])
            if mnemonic == "mov" and "[" not in target and not memory.other:
                result = loaded
        if mnemonic == "call":
            after = instruction.address + instruction.size
            if parsed.numbers and parsed.numbers[0][1] == after and not memory:
                state["the return address"] = Value(after, True)
                self._note(0, PART, 0)
            thunk = parsed.numbers and self._thunk(parsed.numbers[0][1])
            if thunk:
                state[thunk] = Value(after, True)
            return
        if mnemonic in ("push", "pop") or (target == "esp" and mnemonic in ("add", "sub")):
            for slot in [r for r in state if "[esp" in r]:
                del state[slot]
        self._kill(state, instruction, parsed)
        if mnemonic in ("xchg", "cdq", "mul", "imul", "div", "idiv"):
            for register in ("eax", "edx", *operands):
                state.pop(register, None)
        if target in ("al", "ah", "ax", "bl", "bx", "cl", "cx", "dl", "dx"):
            state.pop(f"e{target[0]}x", None)
        if "[" in target and mnemonic == "mov":
            state.pop(target, None)
        if result is not None:
            state[target] = result

    def _thunk(self, address: int) -> str | None:
        """Return the register into which the function at this address loads its return address."""
        if address not in self.thunks:
            self.thunks[address] = self._read_thunk(address)
        return self.thunks[address]

    def _read_thunk(self, address: int) -> str | None:
        try:
            # Tuned for Atom, GCC begins with eight times nop.
            nops = next((n for n in range(MOST_NOPS) if self.memory[address + n] != NOP), 0)
            code = self.memory.load(address + nops, 4)
        except KeyError:
            return None
        # mov reg, dword ptr [esp]; ret
        if code[0] == 0x8B and code[2:] == b"\x24\xc3" and code[1] & 0xC7 == 4:
            return ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")[code[1] >> 3]
        return None

    def _aarch64(self, instruction: Instruction, parsed: Parsed, state: State) -> None:
        mnemonic, operands, memory = instruction.mnemonic, parsed.operands, parsed.memory
        if not operands:
            return
        target = "x" + operands[0][1:] if operands[0].startswith("w") else operands[0]
        result = None
        last = len(parsed.numbers) - 1
        if mnemonic in ("adrp", "adr"):
            number = parsed.numbers[0][1]
            page = mnemonic == "adrp"
            self._note(last, PART if page else PLACE, 0 if page else number)
            result = Value(number, page)
        elif mnemonic.startswith("ldr") and len(operands) == 2 and not memory and parsed.numbers:
            self._note(last, PLACE, parsed.numbers[0][1])
        elif mnemonic == "add" and len(operands) == 3 and operands[1] in state and parsed.numbers:
            base = state[operands[1]]
            if base.base:
                result = self._add(last, base, parsed.numbers[0][1])
        elif mnemonic == "mov" and operands[1] in state:
            result = state[operands[1]]
        elif memory and memory.base in state and not memory.other:
            loaded = self._load(memory, state[memory.base])
            if mnemonic == "ldr" and operands[0].startswith("x"):
                result = loaded
        self._kill(state, instruction, parsed)
        state.pop(target, None)
        if memory and (instruction.operands.endswith("!") or "[" not in operands[-1]):
            state.pop(memory.base, None)  # the instruction writes it back
        if mnemonic.startswith("ldp"):
            state.pop("x" + operands[1][1:], None)
        if result is not None:
            state[target] = result

    def _arm(self, instruction: Instruction, parsed: Parsed, state: State) -> None:
        mnemonic, operands, memory = instruction.mnemonic, parsed.operands, parsed.memory
        if not operands:
            return
        pc = (instruction.address & ~1) + (4 if self.at[0] in self.thumb else 8)
        target, result = operands[0], None
        name = mnemonic.partition(".")[0]
        last = len(parsed.numbers) - 1
        at = *self.at, last
        if memory and memory.base == "pc" and not memory.other and name.startswith(("ldr", "vldr")):
            last = memory.position
            at = *self.at, last
            size = {"ldrb": 1, "ldrsb": 1, "ldrh": 2, "ldrsh": 2, "ldrd": 8}.get(name, 4)
            size = 8 if target.startswith("d") else size
            number = self._word((pc & ~3) + memory.offset, size)
            self.words |= {(pc & ~3) + memory.offset + step for step in range(0, size, 4)}
            if number is not None:
                whole = self.absolute and number > 0xFFF and self.is_mapped(number) and size == 4
                self._note(last, PLACE if whole else NUMBER, number)
                result = Value(number, False, () if whole else (at,))
        elif name in ("ldr", "add") and "pc" in operands[1:] + ((memory.base,) if memory else ()):
            others = [memory.other] if memory else [o for o in operands if o != "pc"][-1:]
            if others[0] in state and len(parsed.numbers) == 0:
                distance = state[others[0]]
                address = (pc + distance.number) & self.mask
                if self.is_mapped(address):
                    place = self._through(address) if memory else address
                    self._whole(place, place != address, distance)
                    if not memory or place != address:
                        result = Value(place, not memory)
            elif parsed.numbers and not memory:
                address = (pc & ~3) + parsed.numbers[0][1]
                if self.is_mapped(address):
                    self._note(last, PLACE, address)
        elif name in ("adr", "adr.w") and parsed.numbers:
            address = (pc & ~3) + parsed.numbers[0][1]
            if self.is_mapped(address):
                self._note(last, PLACE, address)
        elif name == "movw" and parsed.numbers:
            result = Value(parsed.numbers[0][1], False, (at,))
        elif name == "movt" and target in state and parsed.numbers:
            low = state[target]
            number = parsed.numbers[0][1] << 16 | low.number
            result = Value(number, False, (*low.made_by, at))
            if self.absolute and self.is_mapped(number):
                self._note(last, PLACE, number, low)
                self.parts.discard(at)
                result = Value(number, False)
        elif name == "mov" and len(operands) == 2 and operands[1] in state:
            result = state[operands[1]]
        elif memory and memory.base in state and memory.other in state:
            base, index = state[memory.base], state[memory.other]
            address = (base.number + index.number) & self.mask
            if not memory.scaled and self.is_mapped(address):
                place = self._through(address)
                self._whole(place, place != address, base, index)
                result = Value(place, False) if place != address and name == "ldr" else None
        elif name == "add" and len(operands) == 3 and {*operands[1:]} <= state.keys():
            base, index = (state[o] for o in operands[1:])
            address = (base.number + index.number) & self.mask
            if (base.base or index.base) and self.is_mapped(address):
                self._whole(address, False, base, index)
                result = Value(address, False)
        self._kill(state, instruction, parsed)
        for register in ("r0", "r1", "r2", "r3", "ip", "lr") if name in ("bl", "blx") else ():
            state.pop(register, None)
        if name.startswith(("pop", "ldm")):
            for register in re.findall(r"\w+", instruction.operands):
                state.pop(register, None)
        if memory and (instruction.operands.endswith("!") or "[" not in operands[-1]):
            state.pop(memory.base, None)
        if result is not None:
            state[target] = result

    def _whole(self, place: int, slot: bool, *values: Value) -> None:
        """Record that an instruction completes an address although it contains no number."""
        self._note(IN_MEMORY, SLOT if slot else PLACE, place, *values)

    def _mips(self, instruction: Instruction, parsed: Parsed, state: State) -> None:
        mnemonic, operands, memory = instruction.mnemonic, parsed.operands, parsed.memory
        if not operands:
            return
        target, result = operands[0], None
        last = len(parsed.numbers) - 1
        at = *self.at, last
        if mnemonic == "lui":
            number = parsed.numbers[0][1] << 16
            number -= (number & 0x80000000) << 1
            result = Value(number & self.mask, True, (at,))
            if target == "$gp":
                self._note(last, PART, 0)
        elif mnemonic in ("addiu", "daddiu") and len(operands) == 3 and operands[1] in state:
            base = state[operands[1]]
            number = (base.number + parsed.numbers[0][1]) & self.mask
            if base.base and base.number == self.got:
                if target == "$gp":  # its other part may be some instructions before
                    self._note(last, PART, 0)
                elif self.is_mapped(number):
                    self._note_through(last, number, base)
            elif base.base and self.got and number == self.got:
                self._note(last, PART, 0, base)
                result = Value(number, True)
            elif base.base and self.is_near(base.number) and self.is_mapped(number):
                result = self._add(last, base, parsed.numbers[0][1])
            elif base.base:
                result = Value(number, True, (*base.made_by, at))
        elif mnemonic in ("addu", "daddu") and {*operands[1:]} <= state.keys():
            one, other = (state[o] for o in operands[1:])
            number = (one.number + other.number) & self.mask
            if self.got and abs(number - self.got) <= 0x8000 and (one.base or other.base):
                made_by = one.made_by + other.made_by
                self.parts.update(made_by if self.emit else ())
                result = Value(number, True, made_by)
        elif mnemonic in ("addu", "daddu"):
            result = self._indexed(operands[1:], state)
        elif mnemonic == "move" and operands[1] in state:
            result = state[operands[1]]
        elif memory and memory.base in ("$sp", "$fp"):
            if mnemonic in ("lw", "ld"):
                result = state.get(operands[1])
        elif memory and memory.base in state:
            base = state[memory.base]
            if base.base and (self.is_near(base.number) or base.number == self.got):
                loaded = self._load(memory, base)
                if mnemonic in ("lw", "ld"):
                    result = loaded
        self._keep(mnemonic, operands, memory, state)
        self._kill(state, instruction, parsed)
        state["$gp"] = Value(self.got, True)
        if result is not None and not READS_FIRST.match(mnemonic):
            state[target] = result

    @staticmethod
    def _keep(
        mnemonic: str, operands: tuple[str, ...], memory: Memory | None, state: State
    ) -> None:
        """Follow values that MIPS code keeps on the stack; forget those whose base changes."""
        if operands[0] in ("$sp", "$fp"):
            for slot in [r for r in state if r.endswith(f"({operands[0]})")]:
                del state[slot]
        elif memory and memory.base in ("$sp", "$fp") and mnemonic[0] == "s":
            for base in ("$sp", "$fp"):  # they may be equal
                state.pop(operands[1].replace(memory.base, base), None)
            if mnemonic in ("sw", "sd") and operands[0] in state:
                state[operands[1]] = state[operands[0]]

    @staticmethod
    def _indexed(operands: tuple[str, ...], state: State) -> Value | None:
        """Return the page to which an index is added; a later instruction may add the low bits."""
        bases = [state[o] for o in operands if o in state and state[o].base]
        return bases[0] if len(bases) == 1 else None

    def _ppc(self, instruction: Instruction, parsed: Parsed, state: State) -> None:
        mnemonic, operands, memory = instruction.mnemonic, parsed.operands, parsed.memory
        if not operands:
            return
        target, result = operands[0], None
        last = len(parsed.numbers) - 1
        at = *self.at, last
        if mnemonic == "lis":
            result = Value(parsed.numbers[0][1] << 16 & self.mask, True, (at,))
        elif mnemonic in ("addis", "addi") and operands[1] in state and parsed.numbers:
            base = state[operands[1]]
            shift = 16 if mnemonic == "addis" else 0
            offset = parsed.numbers[0][1] << shift
            number = (base.number + offset) & self.mask
            if base.base == 2 or (base.base and number == self.got):
                self._note(last, PART, 0, base)
                result = Value(number, base.base)
            elif shift:
                result = Value(number, True, (*base.made_by, at))
            elif base.base:
                result = self._add(last, base, offset)
            else:
                self._offset(last, number + self._bias(target))
                result = Value(number, False)
        elif mnemonic == "add":
            sources = [state[o] for o in operands[1:] if o in state]
            result = self._indexed(operands[1:], state)
            if sorted(source.base for source in sources) == [0, 2]:
                result = Value(sum(s.number for s in sources) & self.mask, True)
        elif mnemonic == "mr" and operands[1] in state:
            result = state[operands[1]]
        elif mnemonic == "mflr" and "lr" in state:
            result = state["lr"]
        elif CALLS.match(mnemonic) and parsed.numbers:
            after = instruction.address + instruction.size
            if parsed.numbers[-1][1] == after:
                state["lr"] = Value(after, 2)
                self._note(last, PART, 0)
        elif memory and memory.base == "r1":
            if mnemonic in ("lwz", "ld"):
                result = state.get(operands[1])
        elif memory and memory.base in state and state[memory.base].base:
            result = self._before_function(memory, state[memory.base])
            if result is None:
                loaded = self._load(memory, state[memory.base])
                result = loaded if mnemonic in ("lwz", "ld") else None
        elif memory and memory.base in state and not memory.other:
            address = (state[memory.base].number + memory.offset) & self.mask
            self._offset(memory.position, address)
        self._spill(mnemonic, operands, memory, state)
        self._kill(state, instruction, parsed)
        if self.word == 8:
            state["r2"] = Value(self.got, True)
        if result is not None and not READS_FIRST.match(mnemonic):
            state[target] = result

    def _before_function(self, memory: Memory, base: Value) -> Value | None:
        """Return a word between 32-bit code: the distance from there to the offset table."""
        address = (base.number + memory.offset) & self.mask
        if base.base < 2 or not any(start <= address < end for start, end in self.executable):
            return None
        self._note(memory.position, PART, 0)
        number = self._word(address)
        return None if number is None else Value(number, False)

    def _bias(self, register: str) -> int:
        """Return the step of a loop that adds it before it loads; its base is one step too low."""
        block, line = self.at
        ahead = [i for lines in self.lines[block : block + 3] for i in lines][line + 1 :]
        for instruction in ahead[:AHEAD]:
            parsed = parse(instruction.operands)
            if parsed.memory and parsed.memory.base == register:
                return parsed.memory.offset if instruction.mnemonic.endswith("u") else 0
            if parsed.operands and parsed.operands[0] == register:
                return 0
        return 0

    def _offset(self, position: int, address: int) -> None:
        """Record an offset from a known address; clang merges variables and texts into one object.

        For constants, only the content at the sum counts, because texts may move. For variables
        the offset counts as well, because it may be the offset of a field.
        """
        if self.is_mapped(address):
            constant = any(start <= address < end for start, end in self.constant)
            self._note(position, PLACE if constant else OFFSET, address)

    @staticmethod
    def _spill(
        mnemonic: str, operands: tuple[str, ...], memory: Memory | None, state: State
    ) -> None:
        """Follow values that PowerPC code keeps on the stack; forget those whose base changes."""
        if memory and mnemonic.endswith(("u", "ux")):
            state.pop(memory.base, None)
        if operands[0] == "r1" or (memory and memory.base == "r1" and mnemonic.endswith("u")):
            for slot in [r for r in state if r.endswith("(r1)")]:
                del state[slot]
        elif memory and memory.base == "r1" and mnemonic.startswith("st"):
            state.pop(operands[1], None)
            if mnemonic in ("stw", "std") and operands[0] in state:
                state[operands[1]] = state[operands[0]]

    def _riscv(self, instruction: Instruction, parsed: Parsed, state: State) -> None:
        mnemonic, operands, memory = instruction.mnemonic, parsed.operands, parsed.memory
        if not operands:
            return
        mnemonic = mnemonic.removeprefix("c.")
        target, result = operands[0], None
        last = len(parsed.numbers) - 1
        at = *self.at, last
        if mnemonic == "auipc":
            number = parsed.numbers[0][1] << 12
            number -= (number & 0x80000000) << 1
            self._note(last, PART, 0)
            result = Value((instruction.address + number) & self.mask, True)
        elif mnemonic == "lui" and self.absolute:
            number = parsed.numbers[0][1] << 12
            number -= (number & 0x80000000) << 1
            result = Value(number & self.mask, True, (at,))
        elif mnemonic in ("addi", "addiw") and parsed.numbers:
            source = operands[1] if len(operands) == 3 else target
            if source in state and state[source].base:
                result = self._add(last, state[source], parsed.numbers[0][1])
        elif mnemonic == "add":
            result = self._indexed(operands[-2:], state)
        elif mnemonic == "mv" and operands[1] in state:
            result = state[operands[1]]
        elif mnemonic in ("jalr", "jr") and not memory:
            source = operands[1] if len(operands) > 1 else target
            if source in state and state[source].base:
                offset = parsed.numbers[0][1] if parsed.numbers else 0
                self._add(last if parsed.numbers else IN_MEMORY, state[source], offset)
        elif memory and memory.base in state:
            loaded = self._load(memory, state[memory.base])
            if mnemonic == "ld" or (mnemonic == "lw" and self.word == 4):
                result = loaded
        self._kill(state, instruction, parsed)
        if result is not None and not READS_FIRST.match(mnemonic):
            state[target] = result
