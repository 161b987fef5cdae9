"""Decide whether two functions are the same program, only compiled differently.

They are if their flow graphs are equal and matched blocks do the same, except for the choice of
registers and for the order of instructions that do not depend on each other. The two functions are
followed in parallel to know which of their registers hold the same value, also after copies.
Addresses are compared by what they point to, not by how they are computed, so a linker's rewriting
does not count as a difference. If in doubt, the answer is no.
"""

import functools
import re
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from binary.accesses import STACK, Access, accesses, whole_register, width
from binary.analysis import CALL as CALL_EDGE
from binary.frames import Use, read_frame
from binary.operands import BRANCH, CALLS, PART, PLACE, SLOT, parse
from features.extract import Features
from features.normalised import IDLE, normal_line
from features.places import CODE
from matching.judge import Judge
from matching.reordered import in_order_of
from matching.spills import (
    STAND_IN,
    Layout,
    Renamed,
    access_of,
    layout_of,
    renamed,
    same_layout,
)

WORD = re.compile(r"[$%]?\b[a-z][a-z]*\d*[a-z]*\b")
NO_REGISTERS = {"ptr", "byte", "word", "dword", "qword", "xmmword", "ymmword", "xword", "ds", "es"}
NO_REGISTERS |= {"lsl", "lsr", "asr", "ror", "sxtw", "uxtw", "sxtx", "uxtb", "uxth", "sxtb", "sxth"}
NO_REGISTERS |= {"eq", "ne", "lt", "gt", "le", "ge", "hi", "lo", "hs", "ls", "mi", "pl", "cs"}
HALF_COPY = "mov .d, .d"  # of 32 bits: it clears the other half of a register
WIDTH = re.compile(r"\.(\w*)")
COPIES = {"mov", "fmov", "movaps", "movapd", "movdqa"}
ADDRESSES = ("lea", "adr", "la", "add", "daddi", "c.addi", "mov")  # mnemonics that make addresses
JUMPS = {"jmp", "j", "b", "b.w", "c.j", "jg", "jr", "jalr"}
ABI = {  # processor -> registers of arguments, of results, and preserved by calls
    "x86_64": (
        {"rdi", "rsi", "rdx", "rcx", "r8", "r9"} | {f"xmm{i}" for i in range(8)},
        {"rax", "rdx", "xmm0", "xmm1"},
        {"rbx", "rbp", "rsp", "r12", "r13", "r14", "r15"},
    ),
    "aarch64": (
        {f"x{i}" for i in range(9)} | {f"v{i}" for i in range(8)},
        {"x0", "x1"} | {f"v{i}" for i in range(4)},
        {f"x{i}" for i in range(19, 30)} | {"sp"},
    ),
}


class Step(NamedTuple):
    """One step of a block.

    Attributes
    ----------
    shape : str
        The instruction with its registers replaced by their widths.
    registers : tuple of str
        Its registers, in order, each as the full register.
    references : tuple of int
        Its indices into the binary's references, see `features.places.Places`.
    what : str
        call, tail (a jump to another function), jump, return, address, copy, forget (what the
        register held no longer matters) or other.
    line : int
        Which instruction of the block it is.
    """

    shape: str
    registers: tuple[str, ...]
    references: tuple[int, ...]
    what: str
    line: int


def recompiled(judge: Judge, pair: tuple[int, int]) -> bool:
    """Whether two functions that differ are only compiled differently.

    Parameters
    ----------
    judge : matching.judge.Judge
    pair : (int, int)
        The functions.
    """
    blocks = [code.blocks[f].tolist() for code, f in zip(judge.codes, pair, strict=True)]
    partner = {b: int(judge.block_partner[b]) for b in blocks[0]}
    if sorted(partner.values()) != sorted(blocks[1]):
        return False
    flow = [_flow(code, f) for code, f in zip(judge.codes, pair, strict=True)]
    if any(
        sorted(partner[t] for t in flow[0][b]) != sorted(flow[1][partner[b]]) for b in blocks[0]
    ):
        return False
    if _agree(judge, partner, flow[0], (None, None)):
        return True
    layouts = _layouts(judge, pair, flow)
    return layouts is not None and _agree(judge, partner, flow[0], layouts)


Layouts = tuple[Layout | None, Layout | None]


def _agree(
    judge: Judge,
    partner: dict[int, int],
    flow: dict[int, list[int]],
    layouts: Layouts,
) -> bool:
    """Whether the blocks of two functions do the same; their slots are named by ``layouts``."""
    steps = {}
    for block, other in partner.items():
        both = [
            steps_of(judge, side, b, goes_on=bool(flow[block]), layout=layouts[side])
            for side, b in enumerate((block, other))
        ]
        shapes = [sorted(s.shape for s in side if not _is_free(s)) for side in both]
        if shapes[0] != shapes[1]:
            return False
        steps[block] = both
    return _Follow(judge, list(partner), flow, steps, layouts).agree()


def _is_free(step: Step) -> bool:
    """Whether a step may be in one of the functions only."""
    return step.what in ("copy", "forget") or step.shape == HALF_COPY


def _layouts(
    judge: Judge, pair: tuple[int, int], flow: list[dict[int, list[int]]]
) -> tuple[Layout, Layout] | None:
    """Return the layouts of two functions' frames; None if they are not known or not the same."""
    if judge.processor != "x86_64":
        return None
    found = []
    for code, f, successors in zip(judge.codes, pair, flow, strict=True):
        blocks = code.blocks[f].tolist()
        if any(len(code.analysis.code) <= block for block in blocks):
            return None
        parts = {block: code.analysis.code[block] for block in blocks}
        entry = int(code.analysis.function_address[f])
        first = next((b for b in blocks if int(code.analysis.address[b]) == entry), blocks[0])
        frame = read_frame(parts, successors, first)
        layout = frame and layout_of(frame, ABI["x86_64"][2])
        if not layout:
            return None
        found.append(layout)
    old, new = found
    return (old, new) if same_layout(old, new) else None


def _flow(code: Features, f: int) -> dict[int, list[int]]:
    within = code.flow[f]
    within = within[code.analysis.kind[within] != CALL_EDGE]
    found = defaultdict(list)
    for source, target in code.analysis.edges[within].tolist():
        found[source].append(target)
    return found


def steps_of(
    judge: Judge, side: int, block: int, goes_on: bool, layout: Layout | None = None
) -> list[Step]:
    """Return the steps of a block, without instructions that only compute parts of addresses.

    ``goes_on``: the block has successors in its function. ``layout`` names its stack slots.
    """
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
        use = layout.frame.uses.get((block, i)) if layout else None
        if layout and use and (named := renamed(line, use, layout)):
            if step := _with_slot(judge.processor, named, use, marked, tuple(references[i]), i):
                found.append(step)
            continue
        shape, registers, what = _read(judge.processor, line, marked, SLOT in kinds)
        leaves = any(
            places.kind[r] != CODE
            or code.analysis.function[places.target[r]] != code.analysis.function[block]
            for r in references[i]
        )
        if leaves and what != "call" and BRANCH.match(mnemonic):
            what = "tail"
        elif what == "tail" and goes_on:  # through a table
            what = "other"
        found.append(Step(shape, registers, tuple(references[i]), what, i))
    if found and found[-1].what == "jump":  # the flow graph has its target
        found.pop()
    return found


def _with_slot(
    processor: str, named: Renamed, use: Use, marks: tuple, references: tuple[int, ...], line: int
) -> Step | None:
    """Return the step of an instruction that uses the frame; None if it does nothing else."""
    if use.what == "moves":
        return Step("", (use.register,), (), "forget", line) if use.register else None
    if use.what == "address":
        return Step(f"address {named.place}", (use.register,), (), "address", line)
    shape, registers, what = _read(processor, named.line, marks, False)
    registers = tuple(named.slot if r in STAND_IN else r for r in registers)
    return Step(f"{shape} {named.place}".strip(), registers, references, what, line)


def accesses_of(judge: Judge, side: int, block: int) -> tuple[Access, ...] | None:
    """Return what each instruction of a block reads and writes; None if that is not known."""
    analysis = judge.codes[side].analysis
    if judge.processor not in ABI or len(analysis.code) <= block:
        return None
    found = accesses(judge.processor, analysis.code[block])
    return found if len(found) == analysis.instructions[block].count(b"\n") + 1 else None


@functools.lru_cache(1 << 16)
def _read(processor: str, line: str, marks: tuple, slot: bool) -> tuple:
    """Return shape, registers and ``what`` of an instruction, see `Step`."""
    mnemonic = line.removeprefix("notrack ").partition(" ")[0]
    parsed = parse(line.removeprefix("notrack ").partition(" ")[2])
    text = normal_line(line, marks).partition(" ")[2]
    named = any(mark == "@" for _, mark in marks)
    names = [name for name in WORD.findall(text) if name not in NO_REGISTERS]
    registers = tuple(whole_register(processor, name) for name in names)
    shape = WORD.sub(lambda found: _dot(processor, found), text)
    if mnemonic == "ret" and not names:
        return "ret", (), "return"
    if BRANCH.match(mnemonic) or mnemonic in ("jalr", "c.jr", "c.jalr"):
        linked = mnemonic == "jalr" and parsed.operands and parsed.operands[0] == "ra"
        if named and (CALLS.match(mnemonic) or linked):
            return "call", (), "call"
        if named and mnemonic in JUMPS:
            return "jump", (), "jump"
        if CALLS.match(mnemonic):
            return f"call {shape}", registers, "call"
        if mnemonic in JUMPS or mnemonic == "br":  # a jump table, or a tail call
            return f"{mnemonic} {shape}", registers, "tail"
    first = parsed.operands[0] if parsed.operands else ""
    if named and "[" not in first and len(parsed.operands) > 1:
        makes = mnemonic.startswith(ADDRESSES) and (not parsed.memory or mnemonic == "lea")
        if (makes or slot) and not (parsed.memory and parsed.memory.other):
            return "address", (whole_register(processor, first),), "address"
    if processor in ABI and mnemonic in COPIES and len(parsed.operands) == len(names) == 2:
        whole = not parsed.memory and not parsed.numbers
        if whole and {width(processor, name) for name in names} <= {"", "x"}:
            return "copy", registers, "copy"
    if mnemonic in ("xor", "pxor") and len(names) == 2 and len(set(names)) == 1:
        return f"{mnemonic} zero", registers[:1], "other"
    return f"{mnemonic} {shape}", registers, "other"


def _dot(processor: str, found: re.Match) -> str:
    return found[0] if found[0] in NO_REGISTERS else f".{width(processor, found[0])}"


class _Follow:
    """Follows two functions to know which of their registers hold the same value."""

    def __init__(
        self,
        judge: Judge,
        blocks: list[int],
        flow: dict[int, list[int]],
        steps: dict[int, list[list[Step]]],
        layouts: Layouts,
    ) -> None:
        self.judge, self.blocks, self.flow, self.steps = judge, blocks, flow, steps
        self.layouts = layouts

    def agree(self) -> bool:
        """Whether the functions compute the same from equal values everywhere."""
        if all(self._equal(*self.steps[block]) for block in self.blocks):
            return True
        if not self._prepare():
            return False
        if all(self._equal(*self.steps[block]) for block in self.blocks):
            return True
        self.arguments, self.results, self.kept = ABI[self.judge.processor]
        before = defaultdict(list)
        for source, targets in self.flow.items():
            for target in targets:
                before[target].append(source)
        names = {r for sides in self.known.values() for side in sides for a in side for r in a[0]}
        names |= {r for sides in self.known.values() for side in sides for a in side for r in a[1]}
        slots = {name for name in names if name.startswith("[")}
        arguments = frozenset((slot, slot) for slot in slots if slot.startswith("[+"))
        names -= slots
        self.everything = frozenset((r, r) for r in names | self.arguments | self.kept)
        stack = frozenset((r, r) for r in STACK)
        ends: dict[int, tuple[frozenset, frozenset]] = {}
        for _ in range(8):
            changed = False
            for i, block in enumerate(self.blocks):
                states = [ends[p] for p in before[block] if p in ends]
                if i == 0:
                    states.append((self.everything | arguments, frozenset()))
                elif not before[block]:  # reached by a table or an exception: little is known
                    states.append((stack, frozenset(names)))
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

    def _prepare(self) -> bool:
        """Look up what all instructions read and write, and undo what was only reordered."""
        self.known: dict[int, tuple[tuple[Access, ...], tuple[Access, ...]]] = {}
        for block in self.blocks:
            pair = block, int(self.judge.block_partner[block])
            before, after = (self._accesses(side, b) for side, b in enumerate(pair))
            if before is None or after is None:
                return False
            known = self.known[block] = before, after
            old, new = self.steps[block]
            if any(known[side][s.line].opaque for side in (0, 1) for s in (old, new)[side]):
                return False
            if not self._equal(old, new):
                same = self._same_copy, self._same_step
                order = in_order_of((old, new), known, same, self._flags_live(block))
                self.steps[block] = [old, order or new]
        return True

    def _accesses(self, side: int, block: int) -> tuple[Access, ...] | None:
        found, layout = accesses_of(self.judge, side, block), self.layouts[side]
        if found is None or layout is None:
            return found
        text = self.judge.codes[side].analysis.instructions[block].decode("ascii", "replace")
        accesses = list(found)
        for i, line in enumerate(text.split("\n")):
            use = layout.frame.uses.get((block, i))
            if use and (named := renamed(line, use, layout)):
                accesses[i] = access_of(accesses[i], use, named)
        return tuple(accesses)

    def _flags_live(self, block: int) -> bool:
        """Whether a block's successors may read the flags that it leaves."""
        for source in self.flow.get(block, ()):
            pair = source, int(self.judge.block_partner[source])
            for side, b in enumerate(pair):
                for access in accesses_of(self.judge, side, b) or ():
                    if "flags" in access.reads or access.opaque:
                        return True
                    if "flags" in access.writes and not access.keeps_flags:
                        break
                else:
                    return True
        return False

    def _equal(self, old: list[Step], new: list[Step]) -> bool:
        """Whether two blocks do the same with the same registers."""
        return len(old) == len(new) and all(
            a.registers == b.registers and self._same_step(a, b)
            for a, b in zip(old, new, strict=True)
        )

    def _same_step(self, old: Step, new: Step) -> bool:
        """Whether two steps are the same but for their registers."""
        if old.shape != new.shape or len(old.references) != len(new.references):
            return False
        if not old.references:
            return True
        references = np.array(old.references, int), np.array(new.references, int)
        return bool(self.judge.same_references(*references).all())

    def _same_copy(self, one: Step, other: Step) -> bool:
        """Whether two steps of the old function are the same but for their registers."""
        places = self.judge.places[0]
        refers = [[(places.kind[r], places.target[r]) for r in s.references] for s in (one, other)]
        return one.shape == other.shape and refers[0] == refers[1]

    def _run(self, block: int, alike: set, fresh: set) -> tuple[frozenset, frozenset] | None:
        old, new = self.steps[block]
        known = self.known[block]
        i = j = 0
        while i < len(old) or j < len(new):
            if i < len(old) and self._alone(alike, old[i], 0):
                fresh.add(old[i].registers[0])
                i += 1
            elif j < len(new) and self._alone(alike, new[j], 1):
                fresh.add(new[j].registers[0])
                j += 1
            elif i == len(old) or j == len(new):
                return None
            else:
                does = known[0][old[i].line], known[1][new[j].line]
                if not self._step(alike, fresh, old[i], new[j], *does):
                    return None
                i, j = i + 1, j + 1
        return frozenset(alike), frozenset(fresh)

    def _alone(self, alike: set, step: Step, side: int) -> bool:
        """Follow a step that may be in one of the functions only; return whether it is one."""
        if step.what == "forget":
            alike -= {pair for pair in alike if pair[side] == step.registers[0]}
            return True
        if step.what != "copy" and not (step.shape == HALF_COPY and step.what == "other"):
            return False
        target, source = step.registers
        small = (source, None) if side == 0 else (None, source)
        if step.what != "copy" and small not in alike:
            return False
        partners = {pair[1 - side] for pair in alike if pair[side] == source}
        alike -= {pair for pair in alike if pair[side] == target}
        alike |= {(target, p) if side == 0 else (p, target) for p in partners}
        return True

    def _step(
        self, alike: set, fresh: set, old: Step, new: Step, before: Access, after: Access
    ) -> bool:
        """Follow one step of both; return whether it does the same with the same values."""
        if not self._same_step(old, new) or len(old.registers) != len(new.registers):
            return False
        named = list(zip(old.registers, new.registers, strict=True))
        # An address is compared by what it refers to, and the same register minus itself is 0.
        constant = old.what == "address" or old.shape.endswith(" zero")
        reads = set() if constant else _paired(named, before.reads, after.reads)
        writes = _paired(named, before.writes, after.writes)
        if reads is not None and before.keeps_flags:
            reads |= {("flags", "flags")}
        if reads is None or writes is None or not alike.issuperset(reads):
            return False
        if any(len({pair[i] for pair in writes}) < len(writes) for i in (0, 1)):
            return False  # it is not clear which corresponds to which
        if old.what in ("tail", "return") and not self._restored(alike):
            return False
        if old.what in ("call", "tail"):
            if any((r, r) not in alike for r in fresh & self.arguments):
                return False
            if old.what == "call":
                alike -= {pair for pair in alike if not all(map(self._outlives, pair))}
                # What is not preserved is the result of the same call, or nobody reads it.
                alike |= self.everything - {(r, r) for r in self.kept}
                fresh.clear()
            return True
        if old.what == "return":
            return all((r, r) in alike for r in self.results & fresh)
        for target in writes:
            for pair in [p for p in alike if p[0] == target[0] or p[1] == target[1]]:
                alike.discard(pair)
        alike |= writes
        for step, side in ((old, 0), (new, 1)):
            for register in _zero_extended(self.judge.processor, step):
                if any(pair[side] == register for pair in writes):
                    alike.add((register, None) if side == 0 else (None, register))
        fresh |= {register for pair in writes for register in pair}
        return True

    def _outlives(self, place: str | None) -> bool:
        """Whether a call preserves what a register or slot holds."""
        return place is None or place in self.kept or place.startswith("[")

    def _restored(self, alike: set) -> bool:
        """Whether both functions have restored the registers that their caller expects back."""
        return None in self.layouts or all((r, r) in alike for r in self.kept)


def _zero_extended(processor: str, step: Step) -> set[str]:
    """Return the registers and slots of which a step writes the lower half, and clears the rest."""
    if processor != "x86_64" or not step.registers:
        return set()
    widths = WIDTH.findall(step.shape.partition(" ")[2])
    return {step.registers[0]} if widths and widths[0] == "d" else set()


def _paired(
    named: list[tuple[str, str]], old: frozenset[str], new: frozenset[str]
) -> set[tuple[str, str]] | None:
    """Pair the registers that two equal instructions read, or write; None if that cannot be said.

    Registers that are written out correspond by their position, all others by name.
    """
    pairs = {pair for pair in named if pair[0] in old and pair[1] in new}
    implied = []
    for i, registers in enumerate((old, new)):
        implied.append(registers - {pair[i] for pair in named})
        if registers - implied[i] != {pair[i] for pair in pairs}:
            return None
    if implied[0] != implied[1]:
        return None
    return pairs | {(r, r) for r in implied[0]}
