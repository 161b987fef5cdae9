"""Pseudo-code of the functions that changed most, and what differs between its lines."""

import dataclasses
import re
from collections.abc import Mapping

from binary.decompile import decompile
from features.extract import Features
from matching.alignment import align
from matching.result import CHANGED, Diff

# Names that the decompiler numbers, and its comments on the stack layout: not differences.
NUMBERED = re.compile(r"\b(v|a|idx|ptr|flag|choice|LABEL_)[0-9a-f]*\b|// .*")
SAME, DIFFERENT, GONE, COME = "same", "changed", "gone", "new"

Sides = tuple[int, int]
Line = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class PseudoDiff:
    """The pseudo-code of two functions.

    Attributes
    ----------
    lines : list of (str, str, str)
        SAME, DIFFERENT, GONE or COME; a line of OLD; a line of NEW.
    reasons : (str, str)
        Why OLD's and NEW's pseudo-code is missing; "" if it is not.
    """

    lines: list[Line]
    reasons: tuple[str, str]


def pseudo_code(
    paths: tuple[str, str],
    codes: tuple[Features, ...],
    diff: Diff,
    count: int,
    output_dir: str,
    workers: int,
    limits: tuple[float, float],
) -> dict[Sides, PseudoDiff]:
    """Decompile the first ``count`` changed functions; return sides -> pseudo-code of a match."""
    sides = [match.sides for match in diff.functions if match.status == CHANGED][:count]
    wanted = [
        (path, code.analysis, f)
        for pair in sides
        for path, code, f in zip(paths, codes, pair, strict=True)
    ]
    found = decompile(wanted, output_dir, workers, limits)
    partner = {m.old.symbol: m.new.symbol for m in diff.functions if m.old and m.new}
    return {
        pair: PseudoDiff(line_diff(old.lines, new.lines, partner), (old.reason, new.reason))
        for pair, old, new in zip(sides, found[::2], found[1::2], strict=True)
    }


def line_diff(
    old: tuple[str, ...], new: tuple[str, ...], partner: Mapping[str, str] | None = None
) -> list[Line]:
    """Align the lines of two pseudo-codes.

    Different numbers in names of variables are ignored, and so are different names of matched
    functions; ``partner`` maps a name in OLD to the name in NEW.

    >>> line_diff(("f();", "v1 = 2;"), ("g();", "v3 = 2;", "b;"), {"f": "g"})
    [('same', 'f();', 'g();'), ('same', 'v1 = 2;', 'v3 = 2;'), ('new', '', 'b;')]
    """
    names = partner or {}
    keys = [[NUMBERED.sub(r"\1", line) for line in side] for side in (old, new)]
    keys[0] = [re.sub(r"\w+", lambda name: names.get(name[0], name[0]), line) for line in keys[0]]
    found: list[Line] = []
    for what, a, b, c, d in align(*keys):
        both = min(b - a, d - c)
        sign = SAME if what == "equal" else DIFFERENT
        found += [(sign, old[a + i], new[c + i]) for i in range(both)]
        found += [(GONE, line, "") for line in old[a + both : b]]
        found += [(COME, "", line) for line in new[c + both : d]]
    return found
