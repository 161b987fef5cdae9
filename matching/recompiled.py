"""Decide whether two functions are the same program, only compiled differently.

They are if their flow graphs are equal and matched blocks do the same in the same order, except for
the choice of registers. The two functions are followed in parallel to know which of their registers
hold the same value, also after copies. Addresses are compared by what they point to, not by how
they are computed, so a linker's rewriting does not count as a difference. If in doubt, the answer
is no.
"""

import functools
import re
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from binary.addresses import BRANCH, CALLS, PART, PLACE, SLOT, parse
from binary.analysis import CALL as CALL_EDGE
from features.normalised import IDLE, normal_line

WORD = re.compile(r"[$%]?\b[a-z][a-z]*\d*[a-z]*\b")
NO_REGISTERS = {"ptr", "byte", "word", "dword", "qword", "xmmword", "ymmword", "xword", "ds", "es"}
NO_REGISTERS |= {"lsl", "lsr", "asr", "ror", "sxtw", "uxtw", "sxtx", "uxtb", "uxth", "sxtb", "sxth"}
NO_REGISTERS |= {"eq", "ne", "lt", "gt", "le", "ge", "hi", "lo", "hs", "ls", "mi", "pl", "cs"}
COPIES = {"mov", "move", "mv", "c.mv", "mr", "lgr", "fmov", "movaps", "cpy"}
ADDRESSES = ("lea", "adr", "la", "add", "daddi", "c.addi", "mov")  # mnemonics that make addresses
JUMPS = {"jmp", "j", "b", "b.w", "c.j", "jg", "jr", "jalr"}
# Instructions that write their first operand and do not read it.
X86_WRITES = re.compile(r"(mov|movabs|mov[sz]xd?|lea|pop|cvt\w+|mov[dq]|movs[sd]|movaps)$")
A64_KEEPS = re.compile(r"(movk|bfi|bfxil|bfm|ins|fmla|fmls|mla|mls|tbx|sli|sri|st\w+)")
ABI = {  # processor -> registers of arguments, of the result, and preserved by calls
    "x86_64": (
        {"rdi", "rsi", "rdx", "rcx", "r8", "r9"},
        {"rax", "xmm0"},
        {"rbx", "rbp", "rsp", "r12", "r13", "r14", "r15"},
    ),
    "aarch64": (
        {f"x{i}" for i in range(9)},
        {"x0", "d0"},
        {f"x{i}" for i in range(19, 30)} | {"sp"},
    ),
}


class Step(NamedTuple):
    """One step of a block.

    Attributes
    ----------
    shape : str
        The instruction with its registers replaced by dots.
    registers : tuple of str
        Its registers, in order.
    references : tuple of int
        Its indices into the binary's references, see `features.places.Places`.
    what : str
        call, jump, address, copy or other.
    writes : bool
        Whether it writes its first register without reading it.
    """

    shape: str
    registers: tuple[str, ...]
    references: tuple[int, ...]
    what: str
    writes: bool


def recompiled(judge, pair: tuple[int, int], same: list[set[int]]) -> bool:
    """Whether two functions that differ are only compiled differently.

    Parameters
    ----------
    judge : matching.judge.Judge
    pair : (int, int)
        The functions.
    same : list of set of int
        For each binary, the blocks that are the same as their partners.
    """
    blocks = [code.blocks[f].tolist() for code, f in zip(judge.codes, pair, strict=True)]
    partner = {b: int(judge.block_partner[b]) for b in blocks[0]}
    if sorted(partner.values()) != sorted(blocks[1]):
        return False
    flow = [_flow(code, set(inside)) for code, inside in zip(judge.codes, blocks, strict=True)]
    if any(
        sorted(partner[t] for t in flow[0][b]) != sorted(flow[1][partner[b]]) for b in blocks[0]
    ):
        return False
    steps = {
        b: [steps_of(judge, side, block) for side, block in enumerate((b, partner[b]))]
        for b in blocks[0]
    }
    shapes = [
        [s.shape for b in blocks[0] for s in steps[b][side] if s.what != "copy"] for side in (0, 1)
    ]
    if shapes[0] != shapes[1]:
        return False
    return _Follow(judge, blocks[0], flow[0], steps).agree()


def _flow(code, inside: set[int]) -> dict[int, list[int]]:
    edges = code.analysis.edges[code.analysis.kind != CALL_EDGE]
    edges = edges[np.isin(edges, list(inside)).all(1)]
    found = defaultdict(list)
    for source, target in edges.tolist():
        found[source].append(target)
    return found


def steps_of(judge, side: int, block: int) -> list[Step]:
    """Return the steps of a block, without instructions that only compute parts of addresses."""
    code = judge.codes[side]
    places = code.places
    lines = code.analysis.instructions[block].decode("ascii", "replace").split("\n")
    marks = judge.marks[side].get(block, {})
    begin, end = places.offsets[block], places.offsets[block + 1]
    references = defaultdict(list)
    for r in range(begin, end):
        references[int(places.line[r])].append(r)
    found = []
    for i, line in enumerate(lines):
        mnemonic = line.removeprefix("notrack ").partition(" ")[0]
        kinds = {kind for kind, _ in marks.get(i, {}).values()}
        if mnemonic in IDLE or (PART in kinds and not kinds & {PLACE, SLOT}):
            continue
        marked = tuple(
            (number, "@" if kind in (PLACE, SLOT) else "~" if kind == PART else f"={value}")
            for number, (kind, value) in sorted(marks.get(i, {}).items())
        )
        found.append(_step(judge.processor, line, marked, SLOT in kinds, tuple(references[i])))
    if found and found[-1].what == "jump":  # the flow graph has its target
        found.pop()
    return found


def _step(processor: str, line: str, marks: tuple, slot: bool, references: tuple) -> Step:
    shape, registers, what, writes = _read(processor, line, marks, slot)
    return Step(shape, registers, references, what, writes)


@functools.lru_cache(1 << 16)
def _read(processor: str, line: str, marks: tuple, slot: bool) -> tuple:
    mnemonic = line.removeprefix("notrack ").partition(" ")[0]
    parsed = parse(line.removeprefix("notrack ").partition(" ")[2])
    text = normal_line(line, marks).partition(" ")[2]
    named = any(mark == "@" for _, mark in marks)
    registers = tuple(_whole(processor, r) for r in WORD.findall(text) if r not in NO_REGISTERS)
    if BRANCH.match(mnemonic) or mnemonic in ("jalr", "c.jr", "c.jalr"):
        linked = mnemonic == "jalr" and parsed.operands and parsed.operands[0] == "ra"
        if named and (CALLS.match(mnemonic) or linked):
            return "call", (), "call", False
        if named and mnemonic in JUMPS:
            return "jump", (), "jump", False
        if CALLS.match(mnemonic):
            return f"call {WORD.sub('.', text)}", registers, "call", False
        if mnemonic == "ret":
            return "ret", (), "return", False
    first = parsed.operands[0] if parsed.operands else ""
    if named and "[" not in first and len(parsed.operands) > 1:
        makes = mnemonic.startswith(ADDRESSES) and (not parsed.memory or mnemonic == "lea")
        if (makes or slot) and not (parsed.memory and parsed.memory.index):
            return "address", (_whole(processor, first),), "address", True
    plain = len(parsed.operands) == 2 and len(registers) == 2 and not parsed.memory
    if mnemonic in COPIES and plain and not parsed.numbers:
        return "copy", registers, "copy", True
    writes = False
    if processor == "x86_64":
        writes = bool(X86_WRITES.match(mnemonic)) and "[" not in first
        writes = writes and (len(first) > 2 or first in ("r8", "r9"))  # not a part of a register
        if mnemonic in ("xor", "pxor") and len(set(registers)) == 1 and "[" not in text:
            return f"{mnemonic} zero", registers[:1], "other", True
    elif processor == "aarch64":
        writes = not A64_KEEPS.match(mnemonic) and not mnemonic.startswith(("cmp", "cmn", "tst"))
        writes = writes and not BRANCH.match(mnemonic) and not mnemonic.startswith("ldp")
    return f"{mnemonic} {WORD.sub(_dot, text)}", registers, "other", writes and bool(registers)


def _dot(found: re.Match) -> str:
    return found[0] if found[0] in NO_REGISTERS else "."


def _whole(processor: str, register: str) -> str:
    """Return the full register of which this one is a part."""
    if processor == "aarch64":
        return "x" + register[1:] if re.fullmatch(r"w\d+", register) else register
    if processor != "x86_64":
        return register
    if found := re.fullmatch(r"(r\d+)[dwb]", register):
        return found[1]
    if found := re.fullmatch(r"[re]?([abcd])[xlh]", register):
        return f"r{found[1]}x"
    if found := re.fullmatch(r"[re]?(si|di|bp|sp)l?", register):
        return f"r{found[1]}"
    return register


class _Follow:
    """Follows two functions to know which of their registers hold the same value."""

    def __init__(self, judge, blocks, flow, steps) -> None:
        self.judge, self.blocks, self.flow, self.steps = judge, blocks, flow, steps
        self.abi = ABI.get(judge.processor)
        names = {r for b in blocks for side in steps[b] for s in side for r in s.registers}
        self.names = names | (set().union(*self.abi) if self.abi else set())

    def agree(self) -> bool:
        """Whether the functions read equal values everywhere."""
        if all(self._equal(*self.steps[block]) for block in self.blocks):
            return True
        before = defaultdict(list)
        for source, targets in self.flow.items():
            for target in targets:
                before[target].append(source)
        everything = frozenset((r, r) for r in self.names)
        ends: dict[int, tuple[frozenset, frozenset]] = {}
        for _ in range(8):
            changed = False
            for i, block in enumerate(self.blocks):
                states = [ends[p] for p in before[block] if p in ends]
                if i == 0 or not before[block]:
                    states.append((everything, frozenset()))
                if not states:
                    continue
                alike = frozenset.intersection(*(s[0] for s in states))
                fresh = frozenset.union(*(s[1] for s in states))
                end = self._run(block, set(alike), set(fresh))
                if end is None:
                    return False
                if ends.get(block) != end:
                    ends[block] = end
                    changed = True
            if not changed:
                return len(ends) == len(self.blocks)
        return False

    def _equal(self, old: list[Step], new: list[Step]) -> bool:
        """Whether two blocks do the same with the same values."""
        if len(old) != len(new):
            return False
        return all(
            (a.shape, a.registers) == (b.shape, b.registers) and self._same_references(a, b)
            for a, b in zip(old, new, strict=True)
        )

    def _same_references(self, old: Step, new: Step) -> bool:
        if len(old.references) != len(new.references):
            return False
        references = np.array(old.references, int), np.array(new.references, int)
        return bool(self.judge.same_references(*references).all())

    def _run(self, block: int, alike: set, fresh: set) -> tuple[frozenset, frozenset] | None:
        old, new = self.steps[block]
        i = j = 0
        while i < len(old) or j < len(new):
            if i < len(old) and old[i].what == "copy":
                self._copy(alike, *old[i].registers, side=0)
                fresh.add(old[i].registers[0])
                i += 1
            elif j < len(new) and new[j].what == "copy":
                self._copy(alike, *new[j].registers, side=1)
                fresh.add(new[j].registers[0])
                j += 1
            elif i == len(old) or j == len(new) or not self._step(alike, fresh, old[i], new[j]):
                return None
            else:
                i, j = i + 1, j + 1
        return frozenset(alike), frozenset(fresh)

    def _copy(self, alike: set, target: str, source: str, side: int) -> None:
        partners = {pair[1 - side] for pair in alike if pair[side] == source}
        for pair in [pair for pair in alike if pair[side] == target]:
            alike.discard(pair)
        alike |= {(target, p) if side == 0 else (p, target) for p in partners}

    def _step(self, alike: set, fresh: set, old: Step, new: Step) -> bool:
        if old.shape != new.shape or len(old.registers) != len(new.registers):
            return False
        if not self._same_references(old, new):
            return False
        pairs = list(zip(old.registers, new.registers, strict=True))
        if self.abi is None:  # registers are followed only on the processors of ABI
            return old.registers == new.registers or old.what in ("call", "jump")
        reads = pairs[1:] if old.writes else pairs
        if not alike.issuperset(reads):
            return False
        arguments, result, kept = self.abi
        if old.what == "call":
            if any((r, r) not in alike for r in fresh & arguments):
                return False
            for pair in [p for p in alike if p[0] not in kept or p[1] not in kept]:
                alike.discard(pair)
            alike |= {(r, r) for r in result}
            fresh.clear()
        elif old.what == "return":
            return all((r, r) in alike for r in result if r in fresh)
        elif old.writes and pairs:
            target = pairs[0]
            for pair in [p for p in alike if p[0] == target[0] or p[1] == target[1]]:
                alike.discard(pair)
            alike.add(target)
            fresh |= set(target)
        else:
            fresh |= {r for pair in pairs[:1] for r in pair}
        return True
