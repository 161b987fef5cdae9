"""What kinds of change a function shows, and how likely it is that a human made them."""

import functools
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from binary.analysis import JUMP, STEP_OVER
from binary.operands import BRANCH, CALLS, IN_MEMORY, NUMBER, OFFSET, PART, Parsed, parse
from features.extract import Features
from features.normalised import IDLE
from features.places import CODE, DATA, IMPORT
from matching.lone_strings import LoneStrings

if TYPE_CHECKING:  # it imports this module
    from matching.judge import Judge

# How strongly each kind suggests a human edit, 0..1: a compiler does not add calls or change texts.
# A string that is added or removed is one that the other program does not contain.
WEIGHTS = {
    "call added": 0.7,
    "call removed": 0.6,
    "call replaced": 0.7,
    "call replaced by a bounded one": 0.8,
    "allocation or free changed": 0.6,
    "string added": 0.8,
    "string removed": 0.7,
    "string changed": 0.7,
    "constant changed": 0.5,
    "comparison or branch added": 0.5,
    "comparison or branch removed": 0.4,
    "comparison or branch turned": 0.5,
    "loop added": 0.5,
    "loop removed": 0.4,
    "block added": 0.2,
    "block removed": 0.2,
    "field offset changed": 0.4,
    "stack layout changed": 0.3,
    "data changed": 0.4,
    "instructions changed": 0.0,
}
KINDS = tuple(WEIGHTS)
# Functions of C -> those that do the same, but are told the size of the target.
BOUNDED = {
    "strcpy": {"strncpy", "strlcpy", "strscpy", "strcpy_s", "snprintf"},
    "stpcpy": {"stpncpy", "strlcpy", "snprintf"},
    "strcat": {"strncat", "strlcat", "strcat_s", "snprintf"},
    "sprintf": {"snprintf", "sprintf_s"},
    "vsprintf": {"vsnprintf", "vsprintf_s"},
    "gets": {"fgets", "gets_s"},
    "memcpy": {"memcpy_s"},
    "wcscpy": {"wcsncpy", "wcslcpy", "wcscpy_s"},
}
ALLOCATIONS = {"malloc", "calloc", "realloc", "reallocarray", "free", "strdup", "strndup", "alloca"}
ALLOCATIONS |= {"aligned_alloc", "posix_memalign", "HeapAlloc", "HeapReAlloc", "HeapFree"}
ALLOCATIONS |= {"kmalloc", "kzalloc", "krealloc", "kfree", "vmalloc", "vfree"}
CPP_ALLOCATION = ("_Znw", "_Zna", "_Zdl", "_Zda", "??2@", "??_U@", "??3@", "??_V@")  # new, delete
STACK = {"rsp", "esp", "sp", "r1", "r15"}  # stack pointers, if the frame's registers have them
FIELD, SLOT = "field", "slot of the frame"
CHOOSING = ("set", "cmov", "cs", "cinc", "cneg", "it", "movz", "movn", "isel", "loc")


def bare(register: str) -> str:
    """Return a register's name without the sign before it on MIPS and s390x."""
    return register.lstrip("$%")


class Traits:
    """What the differing blocks of a function do, in terms that both binaries share."""

    def __init__(self, side: int, code: Features, blocks: list[int], judge: "Judge") -> None:
        self.calls: Counter = Counter()
        self.texts: Counter = Counter()
        self.data: Counter = Counter()
        self.numbers: Counter = Counter()
        self.fields: Counter = Counter()
        self.conditions: Counter = Counter()
        self.stack: set[tuple[str, int]] = set()  # the frame's size, and where objects are in it
        analysis, places = code.analysis, code.places
        self.frame = frozenset(register.decode() for register in analysis.architecture.frame)
        function = analysis.function
        for block in blocks:
            lines = analysis.instructions[block].decode("ascii", "replace").split("\n")
            marked = judge.marks[side].get(block, {})
            forked = block in judge.forks[side]
            for i, line in enumerate(lines):
                self._read(line, marked.get(i, {}), forked)
            for r in range(places.offsets[block], places.offsets[block + 1]):
                kind, target = int(places.kind[r]), int(places.target[r])
                if kind == IMPORT:
                    self.calls["import", places.names[target]] += 1
                elif kind == CODE and function[target] != function[block]:
                    self.calls[judge.name_of(side, int(function[target]))] += 1
                elif kind == DATA and (text := places.text(target)) is not None:
                    self.texts[text] += 1
                elif kind == DATA:
                    self.data[places.content(target)[0][:64]] += 1

    def _read(self, line: str, marks: dict[int, tuple[int, int]], forked: bool) -> None:
        read = _read_line(line, self.frame)
        if read.condition and (forked or not read.branches):
            self.conditions[read.condition] += 1
        self.stack |= read.stack
        for position, value, place in read.numbers:
            kind, known = marks.get(position, (None, value))
            if kind == NUMBER or (kind is None and place == ""):
                self.numbers[known] += 1
            elif kind is None and place == FIELD:
                self.fields[known] += 1


class _Line(NamedTuple):
    """What an instruction does, by its text alone.

    ``numbers`` holds (position, value, and what it is the offset of: FIELD, SLOT or nothing);
    numbers that lay out the frame are in ``stack`` instead, as (mnemonic, value).
    """

    condition: str = ""  # the mnemonic, if it branches or chooses by a condition
    branches: bool = False
    stack: frozenset[tuple[str, int]] = frozenset()
    numbers: tuple[tuple[int, int, str], ...] = ()


@functools.lru_cache(1 << 17)
def _read_line(line: str, frame: frozenset[str]) -> _Line:
    mnemonic, _, operands = line.partition(" ")
    if mnemonic in IDLE:
        return _Line()
    if BRANCH.match(mnemonic):
        return _Line("" if CALLS.match(mnemonic) else mnemonic, True)
    parsed = parse(operands)
    memory = parsed.memory
    if _lays_out(mnemonic, parsed, frame & STACK):
        return _Line(stack=frozenset((mnemonic, value) for _, value in parsed.numbers))
    numbers = []
    for position, (_, value) in enumerate(parsed.numbers):
        place = ""
        if memory and position == memory.position:
            place = SLOT if bare(memory.base) in frame else FIELD
        numbers.append((position, value, place))
    return _Line(mnemonic if mnemonic.startswith(CHOOSING) else "", numbers=tuple(numbers))


def _lays_out(mnemonic: str, parsed: Parsed, pointer: frozenset[str]) -> bool:
    """Whether an instruction moves the stack pointer, or computes an address from it."""
    memory = parsed.memory
    if memory is None:
        return not pointer.isdisjoint(map(bare, parsed.operands))
    first, last = bare(parsed.operands[0]), parsed.operands[-1]
    moves = first in pointer or last.endswith("!") or last.startswith("#")
    return bare(memory.base) in pointer and (moves or mnemonic in ("lea", "la", "lay"))


def marks_of(code: Features) -> dict[int, dict[int, dict[int, tuple[int, int]]]]:
    """Return block -> line -> index of the number -> (kind, value), without plain numbers."""
    found: dict = {}
    analysis = code.analysis
    names = "block", "line", "number", "kind", "value"
    columns = (getattr(analysis, f"operand_{name}").tolist() for name in names)
    for block, line, number, kind, value in zip(*columns, strict=True):
        if kind != OFFSET and (number != IN_MEMORY or kind != PART):
            found.setdefault(block, {}).setdefault(line, {})[number] = kind, value
    return found


def forks_of(code: Features) -> set[int]:
    """Return the blocks with more than one successor."""
    edges = code.analysis.edges[np.isin(code.analysis.kind, (JUMP, STEP_OVER))]
    blocks, count = np.unique(edges[:, 0], return_counts=True)
    return set(blocks[count > 1].tolist())


def loops(code: Features, f: int) -> int:
    """Return the number of back edges in a function's flow graph."""
    within = code.flow[f]
    source, target = code.analysis.edges[within[code.analysis.kind[within] == JUMP]].T
    return int(np.sum(target <= source))


def kinds_of(old: Traits, new: Traits, blocks: tuple[int, int], back: tuple[int, int]) -> list[str]:
    """Return the kinds of change, a subset of KINDS.

    Parameters
    ----------
    blocks, back : (int, int)
        Numbers of blocks and of back edges of the two functions.
    """
    found = set()
    gone, come = old.calls - new.calls, new.calls - old.calls
    if gone and come:
        found.add("call replaced")
    elif gone or come:
        found.add("call added" if come else "call removed")
    imports = [{name for kind, name in calls if kind == "import"} for calls in (gone, come)]
    if _bounded(*imports):
        found.add("call replaced by a bounded one")
    if any(n in ALLOCATIONS or n.startswith(CPP_ALLOCATION) for n in imports[0] | imports[1]):
        found.add("allocation or free changed")
    if old.texts != new.texts:
        found.add("string changed")
    if old.data != new.data:
        found.add("data changed")
    if old.numbers != new.numbers:
        found.add("constant changed")
    if old.fields != new.fields:
        found.add("field offset changed")
    if old.stack != new.stack:
        found.add("stack layout changed")
    more = sum(new.conditions.values()) - sum(old.conditions.values())
    if more:
        found.add(f"comparison or branch {'added' if more > 0 else 'removed'}")
    elif old.conditions != new.conditions:
        found.add("comparison or branch turned")
    for what, (before, after) in (("block", blocks), ("loop", back)):
        if before != after:
            found.add(f"{what} {'added' if after > before else 'removed'}")
    return [kind for kind in KINDS if kind in found] or ["instructions changed"]


def _bounded(gone: set[str], come: set[str]) -> bool:
    """Whether a call was replaced by one of the same kind that is told the size of its target."""
    return any(
        _plain(other) in BOUNDED.get(_plain(one), ())
        or (other == f"__{one}_chk" and one == _plain(one))
        for one in gone
        for other in come
    )


def _plain(name: str) -> str:
    """Return the name without what glibc's checks (_FORTIFY_SOURCE) put around it."""
    return name[2:-4] if name.startswith("__") and name.endswith("_chk") else name


def rank(kinds: Iterable[str], differing: int, surprise: float = 0.0) -> float:
    """Return how likely a human edited the function: higher is likelier.

    The size of the change counts by its logarithm. Kinds of change that a compiler does not make by
    itself count most. Between two compilers nearly every function shows such kinds; there,
    ``surprise`` tells more (`matching.lone_strings.LoneStrings.surprise`).
    """
    doubt = np.prod([1 - WEIGHTS[kind] for kind in kinds])
    return round(float(np.log2(1 + differing) * (1.5 - doubt)) + surprise, 4)


def describe_kinds(
    judge: "Judge", pair: tuple[int, int], same: list[set[int]], strings: LoneStrings
) -> tuple[tuple[str, ...], float]:
    """Return the kinds of change of a changed pair, and its rank.

    Parameters
    ----------
    judge : matching.judge.Judge
    pair : (int, int)
    same : list of set of int
        The unchanged blocks of each binary.
    strings : LoneStrings
    """
    sides, counts, back = [], [], []
    for side, (code, f) in enumerate(zip(judge.codes, pair, strict=True)):
        inside = code.blocks[f]
        differing = [b for b in inside.tolist() if b not in same[side]]
        sides.append((Traits(side, code, differing, judge), len(differing)))
        counts.append(len(inside))
        back.append(loops(code, f))
    found = set(kinds_of(sides[0][0], sides[1][0], (counts[0], counts[1]), (back[0], back[1])))
    found |= set(strings.kinds(pair))
    kinds = tuple(kind for kind in KINDS if kind in found)
    total = sides[0][1] + sides[1][1]
    return kinds, rank(kinds, total, strings.surprise(pair))
