"""Put the instructions of a block into the order of another block that computes the same."""

from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Any

from binary.accesses import Access

MEMORY, FLAGS = "memory", "flags"
START, PART = -1, -2  # values: that at the beginning of the block, a part of an address


def in_order_of(
    steps: tuple[list[Any], list[Any]],
    known: tuple[tuple[Access, ...], tuple[Access, ...]],
    same: tuple[Callable[[Any, Any], bool], Callable[[Any, Any], bool]],
    flags_live: bool,
) -> list[Any] | None:
    """Return the steps of the new block in the old one's order; None if it computes something else.

    Two blocks compute the same if each instruction of one has a partner in the other that reads
    the same values, and all registers have the same values at the end (local value numbering).
    Registers are compared by name. Stores keep their order, and so do loads, except those from the
    stack, which no other program sees: these may pass other loads, not stores.

    Parameters
    ----------
    steps : (list of matching.recompiled.Step, list of matching.recompiled.Step)
    known : (tuple of Access, tuple of Access)
        What the instructions of the two blocks read and write.
    same : (function, function)
        Whether two steps of the old block, and one of each block, are the same but for their
        registers.
    flags_live : bool
        Whether the flags at the end count.

    References
    ----------
    Muchnick, "Advanced Compiler Design and Implementation" (1997), section 12.4.1.
    """
    old, new = steps
    if len(old) != len(new):
        return None
    numbers: dict[Hashable, int] = {}
    kinds: list[Any] = []  # different steps of the old block
    for step in old:
        if _kind(step, kinds, same[0]) is None:
            kinds.append(step)
    ends = []
    for side in (0, 1):
        kind = [_kind(step, kinds, same[side]) for step in steps[side]]
        ends.append(_numbers(steps[side], kind, known[side], numbers, flags_live))
    first, second = ends
    if first is None or second is None or first[1] != second[1]:
        return None
    places = defaultdict(list)
    for step, value in zip(new, second[0], strict=True):
        places[value].append(step)
    order = [places[value].pop(0) if places[value] else None for value in first[0]]
    return None if None in order else order


def _kind(step: Any, kinds: list[Any], same: Callable[[Any, Any], bool]) -> int | None:
    """Return the number of the first step that is the same, with the same registers."""
    for number, other in enumerate(kinds):
        if (step.what, step.registers) == (other.what, other.registers) and same(other, step):
            return number
    return None


def _numbers(
    steps: list, kinds: list[int | None], known: tuple[Access, ...], numbers: dict, flags_live: bool
) -> tuple[list[int], dict[str, int]] | None:
    """Return the number of each step's value, and of those of registers and memory at the end.

    A value is what a step does, and the values that it reads; equal ones get the same number.
    """
    values: list[int] = []
    state: dict[str, int] = {}
    at = 0
    for step, kind in zip(steps, kinds, strict=True):
        if kind is None or (step.what in ("call", "tail", "return") and step is not steps[-1]):
            return None
        _forget(state, known[at : step.line])
        at = step.line + 1
        access = known[step.line]
        constant = step.what == "address" or step.shape.endswith(" zero")
        inputs = [] if constant else [(r, state.get(r, START)) for r in sorted(access.reads)]
        if any(value == PART for _, value in inputs) and not step.references:
            return None
        if not constant and (access.loads or access.stores):
            inputs.append((MEMORY, state.get(MEMORY, START)))
        value = numbers.setdefault((kind, *inputs), len(numbers))
        values.append(value)
        kept = state.get(FLAGS, START) if access.keeps_flags else START
        for register in access.writes:
            end = (value, register, kept if register == FLAGS else START)
            state[register] = numbers.setdefault(end, len(numbers))
        if not constant and (access.stores or (access.loads and not access.private)):
            state[MEMORY] = numbers.setdefault((value, MEMORY), len(numbers))
    _forget(state, known[at:])
    if not flags_live:
        state.pop(FLAGS, None)
    return values, {name: value for name, value in state.items() if value != PART}


def _forget(state: dict[str, int], skipped: tuple[Access, ...]) -> None:
    """Note the parts of addresses that instructions compute which are no steps."""
    for access in skipped:
        state |= dict.fromkeys(access.writes, PART)
