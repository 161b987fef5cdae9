"""Parse the text of an instruction's operands, and name what its numbers can mean."""

import functools
import re
from typing import NamedTuple

# What a number is: an address; a part of one; a number from a pool of constants; the address of an
# entry of the offset table, where the entry's content counts; an offset from an address to a
# variable, which counts as a number and as an address.
PLACE, PART, NUMBER, SLOT, OFFSET = range(5)
IN_MEMORY = 255  # a memory operand that shows no offset because the offset is 0
# A number as capstone writes it; numbers in names (x8, st(0)) and scales (rax*8) do not match.
DIGITS = re.compile(r"(?<![\w*$%.])-?(?:0x[0-9a-f]+|\d+)(?![\w.])")
BRANCH = re.compile(r"(bnd |notrack )*(call|j|loop|b|cbn?z|tbn?z|xbegin|c\.j|c\.b|c[lg]*[ir]+j)")
CALLS = re.compile(r"(bnd |notrack )*(call|bl|blx|jal|bal|bctrl|bdnzl|bcl|brasl|bras)\b")


class Memory(NamedTuple):
    """A memory operand: its registers (or ""), its offset, and which number of the line that is."""

    base: str
    other: str
    offset: int
    position: int
    scaled: bool


class Parsed(NamedTuple):
    """The parsed text of an instruction; ``numbers`` holds (operand, value) for each number."""

    operands: tuple[str, ...]
    numbers: tuple[tuple[int, int], ...]
    memory: Memory | None


@functools.lru_cache(1 << 17)
def parse(text: str) -> Parsed:
    """Parse the text of an instruction's operands."""
    operands = tuple(re.split(r", (?![^\[{(]*[\]})])", text)) if text else ()
    numbers: list[tuple[int, int]] = []
    memory = None
    for which, operand in enumerate(operands):
        first = len(numbers)
        found = DIGITS.findall(operand)
        numbers += [(which, int(text, 16 if "x" in text else 10)) for text in found]
        if "[" in operand:
            memory = _brackets(operand[operand.index("[") + 1 : operand.rindex("]")], first)
        elif operand.endswith(")") and not operand.startswith("st("):
            memory = _parentheses(operand, first)
    return Parsed(operands, tuple(numbers), memory)


def _brackets(inside: str, first: int) -> Memory:
    """Read ``rbx + rax*8 + 0x38`` or ``x0, #8``."""
    registers, offset, position, scaled = [], 0, IN_MEMORY, False
    for sign, term in re.findall(r"([+-]?) ?#?(-?[\w*.]+)", inside):
        if re.fullmatch(r"-?(0x[0-9a-f]+|\d+)", term):
            offset = -int(term, 0) if sign == "-" else int(term, 0)
            position = first
        elif term in ("lsl", "sxtw", "uxtw", "sxtx", "lsr", "asr"):
            scaled = True
            break
        else:
            scaled |= "*" in term
            registers.append(term)
    if not registers or "*" in registers[0]:
        registers.insert(0, "")
    base, other, *_ = [*registers, ""]
    return Memory(base, other, offset, position, scaled)


def _parentheses(operand: str, first: int) -> Memory | None:
    """Read ``0x38($v0)``."""
    found = re.fullmatch(r"(-?(?:0x[0-9a-f]+|\d+))?\((?:([%\w]+), )?([$%\w]+)\)", operand)
    if not found:
        return None
    shown = found[1] is not None
    offset = int(found[1], 0) if shown else 0
    return Memory(found[3], found[2] or "", offset, first if shown else IN_MEMORY, False)
