"""The code of a block without its addresses: equal where two blocks are the same code."""

import functools
import re
from collections import defaultdict

import numpy as np

from binary.analysis import Analysis

IMAGE = 1 << 24  # a number less than this behind the first function may be an address
BRANCH = re.compile(rb"(call|j\w+|bl?)\b [^ \[]*$")
ADDRESS = re.compile(rb"\b(rip|eip) [+-] (?:0x[0-9a-f]+|\d+)|0x[0-9a-f]+")
# Instructions that compute nothing: alignment, and the landing pads of control-flow protection,
# which one distribution has compiled in and the other not. "notrack" belongs to these.
IDLE = {b"nop", b"endbr64", b"endbr32", b"bti", b"hint"}
IDENTICAL_SIZE = 4  # instructions, literals and imports that make a block hardly a coincidence


def normal_forms(analysis: Analysis) -> list[tuple]:
    """Return of each code block what is left of it when addresses are taken away.

    Two blocks are the same code if these are equal: instructions that compute something, without
    targets of branches and places in the image; string literals; imports.
    """
    first = int(analysis.function_address[0])
    texts = defaultdict(list)
    for block, literal in zip(analysis.string_block.tolist(), analysis.string, strict=True):
        texts[block].append(literal)
    names = defaultdict(list)
    for source, target in analysis.edges.tolist():
        if source < analysis.code_blocks <= target:
            names[source].append(analysis.import_name[target - analysis.code_blocks])
    form = functools.cache(lambda line: _normal_form(line, first))
    return [
        (*filter(None, map(form, text.split(b"\n"))), *texts[block], *names[block])
        for block, text in enumerate(analysis.instructions[: analysis.code_blocks])
    ]


def _normal_form(line: bytes, first: int) -> bytes:
    """Return an instruction without its addresses, nothing of one that computes nothing."""
    if line.partition(b" ")[0] in IDLE:
        return b""
    line = line.removeprefix(b"notrack ")
    if BRANCH.match(line):
        return line.partition(b" ")[0]

    def form(place: re.Match) -> bytes:
        if place[1]:
            return place[1]
        return b"@" if 0 <= int(place[0], 16) - first < IMAGE else place[0]

    return ADDRESS.sub(form, line)


def numbered(*sides: list[tuple]) -> list[np.ndarray]:
    """Return a number for each thing, the same for equal ones of all sides."""
    number: dict[tuple, int] = {}
    return [np.array([number.setdefault(x, len(number)) for x in side]) for side in sides]
