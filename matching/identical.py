"""Pair functions of two binaries that are the same code, before anything is scored.

Functions are the same code if they differ only in addresses. If several functions have the same
code, their surroundings tell them apart: callees, callers, positions in tables of pointers. Those
that are equal in every respect are paired in the order of tables and addresses. The time is linear
in the number of functions and of their references.
"""

from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np

from features.normalised import IDENTICAL_SIZE, numbered
from features.outline import Outline

ROUNDS = 3  # rounds of colour refinement: functions get colours from those around them
SPREAD = 30  # maximum number of rounds in which pairs lead to other pairs
BESIDE = 2  # number of neighbours on each side in a table of pointers


class Pairing:
    """Pairs of functions, each at most once, found so far."""

    def __init__(self, outlines: tuple[Outline, Outline], known: np.ndarray) -> None:
        self.outlines = outlines
        self.partner = [np.full(len(o.code), -1) for o in outlines]
        self.colour = numbered(*(o.code for o in outlines))
        for a, b in known.tolist():
            self.add(a, b)

    def add(self, a: int, b: int) -> None:
        """Record that function a of the first binary is function b of the second."""
        self.partner[0][a], self.partner[1][b] = b, a

    def refined(self) -> list[list[np.ndarray]]:
        """Return colours of functions that include more and more of their surroundings."""
        levels = [self.colour]
        for _ in range(ROUNDS):
            levels.append(self._refine(levels[-1]))
        return levels

    def _refine(self, colours: list[np.ndarray]) -> list[np.ndarray]:
        contents = []
        for outline, colour in zip(self.outlines, colours, strict=True):
            content = defaultdict(list)
            for table, place, f in outline.rows:
                content[table].append((place, int(colour[f])))
            contents.append([tuple(content[table]) for table in range(len(content))])
        tables = numbered(*contents)
        keys = []
        for outline, colour, table in zip(self.outlines, colours, tables, strict=True):
            c = colour.tolist()
            keys.append(
                [
                    (
                        c[f],
                        outline.constants[f],
                        tuple((nth, c[g]) for nth, g in outline.uses[f]),
                        tuple(sorted(Counter((c[g], nth) for g, nth in outline.used[f]).items())),
                        tuple(sorted((int(table[t]), place) for t, place in outline.tables[f])),
                    )
                    for f in range(len(c))
                ]
            )
        return numbered(*keys)

    def one_to_one(self, colours: list[np.ndarray], enough: list[np.ndarray]) -> None:
        """Pair functions whose colour is unique among the unpaired ones of both binaries."""
        free = [np.flatnonzero((p < 0) & e) for p, e in zip(self.partner, enough, strict=True)]
        once = []
        for side in (0, 1):
            values, first, count = np.unique(
                colours[side][free[side]], return_index=True, return_counts=True
            )
            once.append(dict(zip(values[count == 1], free[side][first[count == 1]], strict=True)))
        for colour, a in once[0].items():
            if colour in once[1]:
                self.add(int(a), int(once[1][colour]))

    def spread(self) -> None:
        """Pair functions with the same code and the same relation to a pair, until none is left."""
        for _ in range(SPREAD):
            if not self._pair_by(self._by_reference) and not self._pair_by(self._beside):
                return

    def _pair_by(self, features: Callable[[int], dict[tuple, int]]) -> bool:
        """Pair functions with a feature that is unique in both binaries; return whether any."""
        sides = [features(side) for side in (0, 1)]
        found = False
        for key, a in sides[0].items():
            b = sides[1].get(key, -1)
            if a >= 0 and b >= 0 and self.partner[0][a] < 0 and self.partner[1][b] < 0:
                self.add(a, b)
                found = True
        return found

    def _by_reference(self, side: int) -> dict[tuple, int]:
        outline, partner, colour = self.outlines[side], self.partner[side], self.colour[side]
        name = np.where(partner >= 0, np.arange(len(partner)) if side == 0 else partner, -1)
        found: dict[tuple, int] = {}
        for f in np.flatnonzero(partner < 0).tolist():
            c = int(colour[f])
            keys = [(c, "uses", nth, int(name[g])) for nth, g in outline.uses[f] if name[g] >= 0]
            keys += [(c, "used", int(name[g]), nth) for g, nth in outline.used[f] if name[g] >= 0]
            for key in set(keys):
                found[key] = -1 if key in found else f
        rows = outline.rows
        for i, (table, place, f) in enumerate(rows):
            if partner[f] >= 0:
                continue
            for j in range(max(i - BESIDE, 0), min(i + BESIDE + 1, len(rows))):
                other, at, g = rows[j]
                if other == table and name[g] >= 0:
                    key = int(colour[f]), "table", int(name[g]), place - at
                    found[key] = -1 if found.get(key, f) != f else f
        return found

    def _beside(self, side: int) -> dict[tuple, int]:
        partner, colour = self.partner[side], self.colour[side]
        name = np.where(partner >= 0, np.arange(len(partner)) if side == 0 else partner, -1)
        found: dict[tuple, int] = {}
        for f in np.flatnonzero(partner < 0).tolist():
            for step in (-1, 1):
                if 0 <= f + step < len(name) and name[f + step] >= 0:
                    key = int(colour[f]), step, int(name[f + step])
                    found[key] = -1 if key in found else f
        return found

    def in_order(self, colours: list[np.ndarray]) -> None:
        """Pair equal functions in the order of tables and addresses, if there are as many."""
        groups = []
        for outline, partner, colour in zip(self.outlines, self.partner, colours, strict=True):
            members = defaultdict(list)
            for f in np.flatnonzero(partner < 0).tolist():
                members[int(colour[f])].append((min(outline.tables[f], default=(0, 0)), f))
            groups.append(members)
        for same, first in groups[0].items():
            second = groups[1].get(same, [])
            if len(first) == len(second):
                for (_, a), (_, b) in zip(sorted(first), sorted(second), strict=True):
                    self.add(a, b)

    def pairs(self) -> np.ndarray:
        """Return all pairs, int64 (k, 2), sorted."""
        a = np.flatnonzero(self.partner[0] >= 0)
        return np.stack([a, self.partner[0][a]], 1).astype(np.int64)


def identical_pairs(
    outlines: tuple[Outline, Outline], known: np.ndarray, small: bool = False
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Pair functions that are the same code.

    Parameters
    ----------
    known : int (k, 2)
        Pairs that are certain.
    small : bool
        Also pair functions with hardly any code that their surroundings do not tell apart.

    Returns
    -------
    int64 (n, 2)
        The pairs, known ones included, sorted.
    list of int64 (F,)
        For each binary, a number for each function; functions with the same code and the same
        surroundings have the same number.
    """
    pairing = Pairing(outlines, known)
    levels = pairing.refined()
    connected = [
        np.array([bool(u or v or t) for u, v, t in zip(o.uses, o.used, o.tables, strict=True)])
        for o in outlines
    ]
    large = [o.size >= IDENTICAL_SIZE for o in outlines]
    told = [a | b for a, b in zip(connected, large, strict=True)]
    for colours in reversed(levels[1:]):
        pairing.one_to_one(colours, told)
    if small:
        large = [np.ones_like(x) for x in large]
    pairing.one_to_one(levels[0], large)
    pairing.spread()
    pairing.in_order(levels[-1])
    pairing.spread()
    return pairing.pairs(), levels[-1]
