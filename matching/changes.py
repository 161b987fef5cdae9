"""What changed between two matched binaries."""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from features.extract import Features
from matching.blocks import match_blocks
from matching.functions import Matches, match_functions
from matching.identical import identical_pairs
from matching.inlined import likely_inlined
from matching.judge import Judge
from matching.kinds import describe_kinds
from matching.lone_strings import LoneStrings
from matching.model import Model
from matching.recompiled import recompiled

STATUS = ("changed", "only in old", "only in new", "identical", "compiled differently")
CHANGED, ONLY_OLD, ONLY_NEW, IDENTICAL, RECOMPILED = range(5)
ORDER = (CHANGED, RECOMPILED, ONLY_OLD, ONLY_NEW, IDENTICAL)  # order of the list


@dataclasses.dataclass
class Diff:
    """The result of comparing two binaries.

    Attributes
    ----------
    functions : list of dict
        ``status`` (index into STATUS), ``sides`` (function of OLD and of NEW, -1 for none),
        ``score`` 0..1, ``differing``: how many blocks of both have no identical partner,
        ``change``: their share, ``kinds``: what changed (see `matching.kinds`), ``rank``: how
        likely it is that a human changed it, and ``inlined``: for a function in only one binary,
        the functions of the other that probably contain its code. Changed functions come first, by
        falling rank.
    blocks : Matches
        Code blocks of OLD and NEW.
    same : bool (n,)
        Which of the matched blocks are the same code.
    """

    functions: list[dict[str, Any]]
    blocks: Matches
    same: np.ndarray


def compare(
    first: Features,
    second: Features,
    model: Model,
    anchors: np.ndarray | None = None,
) -> Diff:
    """Match two binaries and say what changed; parameters are those of `match_functions`."""
    functions = match_functions(first, second, model, anchors)
    blocks = match_blocks(first, second, functions)
    pairs = np.stack([functions.a, functions.b], 1)
    _, alike = identical_pairs((first.outline, second.outline), pairs)
    judge = Judge((first, second), functions, blocks, alike)
    strings = LoneStrings((first, second), pairs)
    same = judge.same_blocks()
    inside = [set(column[same].tolist()) for column in (blocks.a, blocks.b)]
    function = [code.analysis.function for code in (first, second)]
    sides = function[0][blocks.a[same]].tolist(), function[1][blocks.b[same]].tolist()
    unchanged = Counter(zip(*sides, strict=True))
    rows = []
    for a, b, score in zip(functions.a, functions.b, functions.score, strict=True):
        pair = int(a), int(b)
        total = len(first.blocks[a]) + len(second.blocks[b])
        differing = total - 2 * unchanged[pair]
        row = _row(CHANGED if differing else IDENTICAL, pair, float(score), differing, total)
        if differing and recompiled(judge, pair, inside):
            row["status"] = RECOMPILED
        elif differing:
            row |= describe_kinds(judge, pair, inside, strings)
        rows.append(row)
    for side, (code, status, matched) in enumerate(
        ((first, ONLY_OLD, functions.a), (second, ONLY_NEW, functions.b))
    ):
        inlined = likely_inlined((first, second), functions, blocks, side)
        for f in sorted(set(range(code.functions)) - set(matched.tolist())):
            size = len(code.blocks[f])
            row = _row(status, (f, -1) if side == 0 else (-1, f), 0.0, size, size)
            rows.append(row | {"inlined": inlined.get(f, [])})
    rows.sort(
        key=lambda row: (ORDER.index(row["status"]), -row["rank"], -row["differing"], row["sides"])
    )
    return Diff(rows, blocks, same)


def _row(status: int, sides: tuple[int, int], score: float, differing: int, total: int) -> dict:
    return {
        "status": status,
        "sides": sides,
        "score": round(score, 4),
        "differing": differing,
        "change": round(differing / total, 4),
        "kinds": [],
        "rank": 0.0,
        "inlined": [],
    }


def describe(code: Features, f: int) -> dict[str, Any] | None:
    """Return address, name and number of blocks of a function; None for -1."""
    if f < 0:
        return None
    analysis = code.analysis
    address = f"0x{int(analysis.function_address[f]):x}"
    return {"address": address, "name": analysis.function_name[f], "blocks": len(code.blocks[f])}
