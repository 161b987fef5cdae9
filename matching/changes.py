"""What changed between two matched binaries."""

from collections import Counter

import numpy as np

import utils
from features.extract import Features
from matching.blocks import match_blocks
from matching.functions import match_functions
from matching.identical import identical_pairs
from matching.inlined import likely_inlined
from matching.judge import Judge
from matching.kinds import describe_kinds
from matching.lone_strings import LoneStrings
from matching.model import Model
from matching.recompiled import recompiled
from matching.result import (
    CHANGED,
    IDENTICAL,
    ONLY_NEW,
    ONLY_OLD,
    ORDER,
    RECOMPILED,
    Diff,
    FunctionMatch,
    functions_of,
)


@utils.rare_collections()
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
    old, new = functions_of(first), functions_of(second)
    found = []
    for a, b, score in zip(functions.a, functions.b, functions.score, strict=True):
        pair = int(a), int(b)
        total = len(first.blocks[a]) + len(second.blocks[b])
        differing = total - 2 * unchanged[pair]
        status, rank = IDENTICAL, 0.0
        kinds: tuple[str, ...] = ()
        if differing and recompiled(judge, pair):
            status = RECOMPILED
        elif differing:
            status, (kinds, rank) = CHANGED, describe_kinds(judge, pair, inside, strings)
        share = round(differing / total, 4)
        numbers = round(float(score), 4), differing, share, rank
        found.append(FunctionMatch(status, *numbers, kinds, old[a], new[b]))
    both = old, new
    for side, (status, matched) in enumerate(((ONLY_OLD, functions.a), (ONLY_NEW, functions.b))):
        mine, other = both[side], both[1 - side]
        inlined = likely_inlined((first, second), functions, blocks, side)
        for f in sorted(set(range(len(mine))) - set(matched.tolist())):
            a, b = (mine[f], None) if side == 0 else (None, mine[f])
            into = tuple(other[g] for g in inlined.get(f, ()))
            found.append(FunctionMatch(status, 0.0, mine[f].blocks, 1.0, 0.0, (), a, b, into))
    found.sort(key=lambda m: (ORDER.index(m.status), -m.rank, -m.differing, m.sides))
    return Diff(found, blocks, same)
