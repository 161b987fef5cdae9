"""Make the page's data for a row of its table: two functions, their matched blocks and graphs."""

from typing import Any

import scipy.sparse
import scipy.sparse.csgraph

from matching.page.layout import MOST
from matching.page.side import Side
from matching.result import Diff

FEW = 3  # minimum number of unchanged blocks, away from any difference, to draw them as one box


class Rows:
    """Makes the parts of the page that are read when a row is opened."""

    def __init__(self, sides: list[Side], diff: Diff):
        self.sides = sides
        blocks = (diff.blocks.a.tolist(), diff.blocks.b.tolist(), diff.same.tolist())
        self.partner: list[dict[int, tuple[int, bool]]] = [{}, {}]  # block -> partner, if equal
        for a, b, same in zip(*blocks, strict=True):
            self.partner[0][a], self.partner[1][b] = (b, same), (a, same)

    def make(self, functions: tuple[int, int], draws: bool) -> dict[str, Any]:
        """Return the data for two functions; -1 stands for none.

        Returns
        -------
        dict
            ``blocks``: for each side, the result of `Side.blocks`. ``pairs``: places of matched
            blocks in both, and whether they are the same code. ``away``, for blocks whose partner
            is in another function: side, place, the partner's function and address, and whether it
            is the same code. ``graphs``: for each side, the whole graph and the one with folded
            blocks, or None.
        """
        blocks = [
            side.blocks(f) if f >= 0 else [] for side, f in zip(self.sides, functions, strict=True)
        ]
        pairs, away = [], []
        for which, (side, f) in enumerate(zip(self.sides, functions, strict=True)):
            other = self.sides[1 - which]
            for place, block in enumerate(side.code.blocks[f].tolist() if f >= 0 else []):
                if block not in self.partner[which]:
                    continue
                found, equal = self.partner[which][block]
                function = int(other.code.analysis.function[found])
                if function != functions[1 - which]:
                    away.append([which, place, function, other.address(found), int(equal)])
                elif which == 0:
                    pairs.append([place, other.place[found], int(equal)])
        graphs: list[list[dict | None]] = [[None, None], [None, None]]
        for which, side in enumerate(self.sides):
            if draws and blocks[which]:
                same = {pair[which] for pair in pairs if pair[2]}
                entry = side.entry(functions[which])
                graphs[which] = _graphs(side, blocks[which], entry, same)
        return {"blocks": blocks, "pairs": pairs, "away": away, "graphs": graphs}


def _graphs(side: Side, blocks: list[list], entry: int, same: set[int]) -> list[dict | None]:
    """Return the whole graph, and the one with folded blocks; None if too large or the same."""
    alone = [[place] for place in range(len(blocks))]
    folded = _fold(blocks, same)
    return [
        side.graph(blocks, sorted(groups, key=lambda group: entry not in group))
        if len(groups) <= MOST and (groups is alone or len(folded) < len(alone))
        else None
        for groups in (alone, folded)
    ]


def _fold(blocks: list[list], same: set[int]) -> list[list[int]]:
    """Return groups of blocks: connected ones away from all differences, and single others."""
    n = len(blocks)
    edges = [(place, target) for place, block in enumerate(blocks) for target, _ in block[2]]
    near = {place for edge in edges if not same.issuperset(edge) for place in edge}
    far = same - near
    if len(far) == n:  # nothing differs anywhere
        far = set()
    inside = [edge for edge in edges if far.issuperset(edge)]
    rows, columns = zip(*inside, strict=True) if inside else ((), ())
    graph = scipy.sparse.csr_matrix(([1] * len(inside), (rows, columns)), (n, n))
    _, part = scipy.sparse.csgraph.connected_components(graph, directed=False)
    groups: dict[int, list[int]] = {}
    for place, label in enumerate(part.tolist()):
        groups.setdefault(label, []).append(place)
    kept = []
    for group in groups.values():
        kept += [group] if len(group) >= FEW else [[place] for place in group]
    return kept
