"""Normalise the code of a block: without its addresses, so that the same code is equal."""

import functools
import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterable

import numpy as np

from binary.analysis import STEP_OVER, Analysis
from binary.operands import DIGITS, IN_MEMORY, NUMBER, OFFSET, PART, PLACE, SLOT
from features.places import DATA, IMPORT, Places
from features.tfidf import factorised

# Instructions that compute nothing: alignment, and the landing pads of control-flow protection,
# which only some distributions compile in. The prefix "notrack" belongs to these.
IDLE = {"nop", "endbr64", "endbr32", "bti", "hint", "c.nop", "nopr", "fnop"}
IDENTICAL_SIZE = 4  # equal blocks with so many instructions, literals and imports are no accident


def normal_forms(analysis: Analysis, places: Places) -> list[tuple]:
    """Return the normalised code of each code block; two blocks with equal ones are the same code.

    It consists of the instructions that compute something, with @ for an address and ~ for a part
    of one, then the texts and imports that they refer to, and the imports that the block branches
    to.
    """
    marks = defaultdict(list)
    where = analysis.operand_block, analysis.operand_line, analysis.operand_number
    columns = [*where, analysis.operand_kind, analysis.operand_value]
    for block, line, number, kind, value in zip(*(c.tolist() for c in columns), strict=True):
        if kind != OFFSET:  # which is compared as it is written
            mark = {PLACE: "@", SLOT: "@", PART: "~", NUMBER: f"={value:#x}"}[kind]
            marks[block, line].append((number, mark))
    labels = defaultdict(list)
    for block, kind, target in zip(
        places.block.tolist(), places.kind.tolist(), places.target.tolist(), strict=True
    ):
        if kind == IMPORT:
            labels[block].append(places.names[target])
        elif kind == DATA and (text := places.text(target)):
            labels[block].append(text)
    n = analysis.code_blocks
    for (source, target), kind in zip(analysis.edges.tolist(), analysis.kind.tolist(), strict=True):
        if source < n <= target and kind != STEP_OVER:
            name = analysis.import_name[target - n]
            if name not in labels[source]:
                labels[source].append(name)
    empty = ()
    forms = []
    for block, text in enumerate(analysis.instructions[:n]):
        lines = text.decode("ascii", "replace").split("\n")
        shown = (
            normal_line(line, tuple(marks[block, i]) if (block, i) in marks else empty)
            for i, line in enumerate(lines)
        )
        forms.append((*filter(None, shown), *labels.get(block, ())))
    return forms


@functools.lru_cache(1 << 18)
def normal_line(line: str, marks: tuple[tuple[int, str], ...] = ()) -> str:
    """Return an instruction without its addresses; "" for one that computes nothing.

    Parameters
    ----------
    line : str
        The instruction as capstone writes it.
    marks : tuple of (int, str)
        Which numbers in the line are addresses, and what to write instead.
    """
    mnemonic, _, operands = line.removeprefix("notrack ").partition(" ")
    if mnemonic in IDLE:
        return ""
    spans = [found.span() for found in DIGITS.finditer(operands)]
    for number, mark in sorted(marks, reverse=True):
        if number < len(spans):
            start, end = spans[number]
            # capstone omits an offset of 0 and its sign, so omit the sign here, too.
            for sign in (" + ", " - ", ", #"):
                if operands[:start].endswith(sign):
                    start -= len(sign)
            operands = operands[:start] + mark + operands[end:]
        elif number == IN_MEMORY:
            at = max(operands.find("]"), operands.find("("))
            operands = operands[:at] + mark + operands[at:] if at >= 0 else operands + mark
    return f"{mnemonic} {operands}" if operands else mnemonic


def numbered(*sides: Iterable[Hashable]) -> list[np.ndarray]:
    """Return a number for each item; equal items get the same number on all sides."""
    lists = [list(side) for side in sides]
    number, _ = factorised(itertools.chain.from_iterable(lists))
    return np.split(number, np.cumsum([len(items) for items in lists])[:-1])
