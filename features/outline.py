"""The normalised code of a binary's functions, and what they refer to, to find identical ones."""

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from features.places import CODE, DATA

if TYPE_CHECKING:
    from features.extract import Features


class Outline:
    """The normalised code of a binary's functions, and what they refer to.

    Attributes
    ----------
    code : list of tuple
        The normalised code of each function.
    size : int64 (F,)
        Number of instructions, texts and imports of each function.
    uses : list of list of (int, int)
        For each function: (index of the reference, function that it refers to).
    used : list of list of (int, int)
        For each function: (function that refers to it, index of that function's reference).
    constants : list of tuple
        For each function: the first bytes of the constants that it refers to.
    tables : list of list of (int, int)
        For each function: (table, position in it) of the pointers to it.
    """

    def __init__(self, code: "Features") -> None:
        analysis, places, n = code.analysis, code.places, code.functions
        function = analysis.function
        local = np.zeros(analysis.code_blocks, np.int64)
        for inside in code.blocks:
            local[inside] = np.arange(len(inside))
        follows = defaultdict(list)
        within = analysis.edges[(analysis.edges < analysis.code_blocks).all(1)]
        within = within[function[within[:, 0]] == function[within[:, 1]]]
        for source, target in within.tolist():
            follows[source].append(int(local[target]))
        self.code, self.constants = [], []
        self.uses: list[list[tuple[int, int]]] = [[] for _ in range(n)]
        self.used: list[list[tuple[int, int]]] = [[] for _ in range(n)]
        kinds, targets, offsets = places.kind.tolist(), places.target.tolist(), places.offsets
        for f, inside in enumerate(code.blocks):
            parts, constants, nth = [], [], 0
            for block in inside.tolist():
                own = []
                for r in range(offsets[block], offsets[block + 1]):
                    nth += 1
                    if kinds[r] == CODE:
                        g = int(function[targets[r]])
                        if g == f:
                            own.append(int(local[targets[r]]))
                        else:
                            own.append(-1)
                            self.uses[f].append((nth, g))
                            self.used[g].append((f, nth))
                    elif kinds[r] == DATA:
                        constants.append(code.places.beginning(targets[r]))
                parts.append((code.forms[block], *own, *sorted(follows[block])))
            self.code.append(tuple(parts))
            self.constants.append(tuple(constants))
        self.size = np.array([sum(len(code.forms[b]) for b in i.tolist()) for i in code.blocks])
        self.tables: list[list[tuple[int, int]]] = [[] for _ in range(n)]
        t = code.tables
        self.rows = list(zip(t.table.tolist(), t.place.tolist(), t.function.tolist(), strict=True))
        for table, place, f in self.rows:
            self.tables[f].append((table, place))
