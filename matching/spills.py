"""Name the stack slots of two functions, so that a slot can be followed like a register.

A compiler that has fewer registers, or gives them to other values, keeps some values on the stack,
saves other registers, and so lays out the frame differently. Nothing but the function itself reads
such slots; these are named by their offset, and their loads and stores become copies. What the
function hands out an address of, an array for example, must have the same layout in both functions:
a larger array is a change. If in doubt, nothing is named.
"""

import itertools
import re
from collections import defaultdict
from typing import NamedTuple

from binary.accesses import Access
from binary.frames import WORD, Frame, Use

# A slot is written as a register that does not exist, of its size.
STAND_INS = {1: "r99b", 2: "r99w", 4: "r99d", 8: "r99", 16: "xmm99", 32: "ymm99"}
STAND_IN = {"r99", "xmm99"}  # as whole registers
IN_MEMORY = re.compile(r"(?:\w+ ptr )?\[[^\]]*\]")
INSIDE = re.compile(r"\[([^\]]*)\]")
SLACK = 16  # bytes by which frames differ to keep the stack aligned


class Layout(NamedTuple):
    """How a function uses its frame.

    Attributes
    ----------
    frame : Frame
    saved : set of int
        Offsets at which a register is only saved and restored.
    slots : set of int
        Offsets of slots that only the function itself reads, and of its arguments on the stack.
    fixed : tuple of int
        The layout of everything else: distances from the lowest offset whose address is taken.
    base : int
        That offset; 0 if there is none.
    unused : int
        Number of bytes of the frame that no instruction names, what is fixed included.
    """

    frame: Frame
    saved: set[int]
    slots: set[int]
    fixed: tuple[int, ...]
    base: int
    unused: int


def layout_of(frame: Frame, preserved: set[str]) -> Layout | None:
    """Return the layout of a frame; None if its slots overlap.

    Parameters
    ----------
    frame : Frame
    preserved : set of str
        The registers that a function must preserve.
    """
    by_offset = defaultdict(list)
    for use in frame.uses.values():
        if use.what != "moves":
            by_offset[use.offset].append(use)
    saved = {offset for offset, uses in by_offset.items() if _saves(uses, preserved)}
    taken = {offset for offset, uses in by_offset.items() if offset < 0 and _is_taken(uses)}
    base = min(taken, default=0)
    sizes: dict[int, int] = {}  # slots
    other = set()  # offsets at which something else is pushed or popped
    loaded = set()
    for offset, uses in by_offset.items():
        for use in uses:
            if offset in saved:
                continue
            if use.what == "slot":
                if sizes.setdefault(offset, use.size) != use.size and not base <= offset <= 0:
                    return None
                if use.loads:
                    loaded.add(offset)
            elif use.what in ("push", "pop"):
                other.add(offset)
    free = sorted(offset for offset in sizes if offset < base or offset > 0)
    if any(offset < before + sizes[before] for before, offset in itertools.pairwise(free)):
        return None
    if any(o - WORD < s < o + sizes[o] for o in sizes for s in saved):
        return None
    lowest = min([frame.lowest, *free])
    fixed: tuple[int, ...] = ()
    if taken:
        inside = sorted(offset for offset in taken | sizes.keys() if base <= offset < 0)
        top = min((offset for offset in saved if offset > base), default=0)
        if top < inside[-1]:
            return None
        floor = max((o + sizes[o] for o in free if o < base), default=lowest)
        fixed = floor - base, *(o - base for o in inside), top - base
    used = sum(sizes[offset] for offset in free if offset < 0) + WORD * len(saved)
    slots = {
        offset
        for offset in free
        if offset in loaded
        and sizes[offset] in STAND_INS
        and not any(o - sizes[offset] < offset < o + WORD for o in other)
    }
    return Layout(frame, saved, slots, fixed, base, -lowest - used)


def _saves(uses: list[Use], preserved: set[str]) -> bool:
    """Whether a slot only holds a register between the function's beginning and its end."""
    pushed = {use.register for use in uses if use.what == "push"}
    return (
        len(pushed) == 1
        and pushed <= preserved
        and len(uses) > 1
        and all(use.register in pushed and (use.loads or use.what == "push") for use in uses)
        and all(use.size == WORD for use in uses)
    )


def _is_taken(uses: list[Use]) -> bool:
    return any(use.what in ("address", "indexed") for use in uses)


def same_layout(old: Layout, new: Layout) -> bool:
    """Whether two frames differ only in slots that the functions keep to themselves."""
    return old.fixed == new.fixed and abs(old.unused - new.unused) < SLACK


class Renamed(NamedTuple):
    """An instruction with its slot named.

    Attributes
    ----------
    line : str
        The instruction with a stand-in for the slot, or without its offset in the frame; "" for
        one that only moves the stack pointer.
    slot : str
        The name of the slot, or "".
    place : str
        Where in the fixed part of the frame the instruction reads, writes or points to.
    """

    line: str
    slot: str = ""
    place: str = ""


def renamed(line: str, use: Use, layout: Layout) -> Renamed | None:
    """Name the slot of an instruction; None if it is none that can be named."""
    mnemonic, _, operands = line.partition(" ")
    if use.what == "moves":
        return Renamed("")
    if use.what in ("push", "pop"):
        if use.offset not in layout.saved:
            return None
        slot = STAND_INS[WORD]
        pair = (slot, use.register) if use.what == "push" else (use.register, slot)
        return Renamed(f"mov {pair[0]}, {pair[1]}", name(use.offset))
    if use.what == "slot" and use.offset in layout.slots | layout.saved:
        text = IN_MEMORY.sub(STAND_INS[use.size], operands)
        return Renamed(f"{mnemonic} {text}", name(use.offset))
    if use.what == "slot" and use.offset < layout.base:
        return None
    place = f"entry{use.offset:+}" if use.offset >= 0 else f"frame+{use.offset - layout.base}"
    if use.what == "address":
        return Renamed(f"lea {use.register}", place=place)
    return Renamed(f"{mnemonic} {INSIDE.sub(_without_frame, operands)}", place=place)


def _without_frame(found: re.Match[str]) -> str:
    """Leave out the frame's register and the offset from it."""
    terms = re.split(r" [+-] ", found[1])[1:]
    return f"[{' + '.join(term for term in terms if not term[0].isdigit())}]"


def name(offset: int) -> str:
    """Return the name of a slot."""
    return f"[{offset:+}]"


def access_of(access: Access, use: Use, named: Renamed) -> Access:
    """Return what an instruction reads and writes if its slot is a register."""
    if use.what in ("push", "pop"):
        ends = frozenset({named.slot}), frozenset({use.register})
        reads, writes = ends if use.what == "pop" else ends[::-1]
        return Access(reads, writes, False, False, False, True, False)
    reads, writes = access.reads - {use.pointer}, access.writes
    if not named.slot:
        return access._replace(reads=reads)
    if access.loads:
        reads |= {named.slot}
    if access.stores:
        writes |= {named.slot}
    return access._replace(reads=reads, writes=writes, loads=False, stores=False, private=True)
