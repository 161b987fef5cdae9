"""Make the page's data for one binary: its functions, with code and flow graph of each."""

from typing import Any

from binary.analysis import CALL
from binary.demangle import brief, demangle
from features.extract import Features
from matching.page.layout import draw
from matching.page.listing import Listing

LINE, CHARACTER = 14, 6.7  # pixels: height of a line, width of a character; as in page.css
BORDER = 14  # pixels around the text of a box, both sides together
NARROWEST, FOLDED = 110, 170  # pixels: minimum width of a box; width of a box for several blocks
PLAIN, TAKEN, NOT_TAKEN = range(3)  # kinds of edges
SEARCHED = 10_000  # characters of a function's strings and calls that can be searched


class Side:
    """Makes the page's data for one binary.

    Attributes
    ----------
    code : Features
    symbols, names : list of str
        Symbol and demangled name of each function, the imported ones at the end.
    place : list of int
        For each code block, the number of blocks of its function that come before it.
    """

    def __init__(self, code: Features):
        self.code = code
        self.symbols = code.analysis.function_name
        self.names = demangle(self.symbols)
        self.brief = [
            name if name == symbol else brief(name)
            for name, symbol in zip(self.names, self.symbols, strict=True)
        ]
        self.listing = Listing(code.analysis, self.brief)
        self.place = [0] * code.analysis.code_blocks
        for inside in code.blocks:
            for place, block in enumerate(inside.tolist()):
                self.place[block] = place
        self.flow: list[list[int]] = [[] for _ in self.place]
        function, n = code.analysis.function.tolist(), code.analysis.code_blocks
        edges = zip(code.analysis.edges.tolist(), code.analysis.kind.tolist(), strict=True)
        for (source, target), kind in edges:
            inside = source < n and target < n and function[source] == function[target]
            if inside and kind != CALL and target not in self.flow[source]:
                self.flow[source].append(target)

    def address(self, block: int) -> str:
        """Return a block's address as text, because JavaScript's numbers end at 2 ** 53."""
        return f"0x{int(self.code.analysis.address[block]):x}"

    def entry(self, f: int) -> int:
        """Return the place of the block at which a function begins."""
        address = self.code.analysis.function_address[f]
        begins = self.code.analysis.address[self.code.blocks[f]] == address
        return int(begins.argmax())  # the first block if the function begins with padding

    def function(self, f: int) -> list:
        """Return a function's entry in the page's index."""
        symbol, name = self.symbols[f], self.names[f]
        address = f"0x{int(self.code.analysis.function_address[f]):x}"
        short = "" if self.brief[f] == name else self.brief[f]
        return [address, name, "" if symbol == name else symbol, len(self.code.blocks[f]), short]

    def blocks(self, f: int) -> list[list]:
        """Return each block of a function: address, lines, edges as (block's place, kind)."""
        found = [(b, self.listing.lines(b)) for b in self.code.blocks[f].tolist()]
        return [[self.address(b), lines, self._edges(b, lines)] for b, lines in found]

    def _edges(self, block: int, lines: list[list]) -> list[tuple[int, int]]:
        targets = self.flow[block]
        branch = lines[-1][-1]
        if not _is_reference(branch) and len(lines) > 1:  # the last line may be a delay slot
            branch = lines[-2][-1]
        kinds = [PLAIN] * len(targets)
        if len(targets) == 2 and _is_reference(branch) and branch[0] == "b":
            kinds = [TAKEN if self.address(t) == branch[1] else NOT_TAKEN for t in targets]
        return [(self.place[t], kind) for t, kind in zip(targets, kinds, strict=True)]

    def words(self, blocks: list[list]) -> str:
        """Return the searchable text of a function besides its name: strings, calls, data."""
        found = {}
        for _, lines, _ in blocks:
            for line in lines:
                for kind, *about in filter(_is_reference, line):
                    if kind in "sd":
                        found[about[1]] = True
                    elif kind in "fi":
                        found[self.names[about[0]] if kind == "f" else about[0]] = True
        return "\n".join(found)[:SEARCHED]

    def graph(self, blocks: list[list], groups: list[list[int]]) -> dict[str, Any]:
        """Draw a function; each group of blocks is a box, and the first contains the entry."""
        box = {place: g for g, group in enumerate(groups) for place in group}
        edges: dict[tuple[int, int], int] = {}
        for g, group in enumerate(groups):
            for place in group:
                for target, kind in blocks[place][2]:
                    if box[target] != g or len(group) == 1:
                        # An edge from a box of several blocks is not the branch in its last line.
                        edges.setdefault((g, box[target]), kind if len(group) == 1 else PLAIN)
        sizes = tuple(self._size(blocks, group) for group in groups)
        size, corners, lines = draw(sizes, tuple(edges))
        return {
            "size": size,
            "boxes": [
                [*corner, *wide, group]
                for corner, wide, group in zip(corners, sizes, groups, strict=True)
            ],
            "edges": [
                [*ends, kind, line] for (ends, kind), line in zip(edges.items(), lines, strict=True)
            ],
        }

    def _size(self, blocks: list[list], group: list[int]) -> tuple[int, int]:
        if len(group) > 1:
            return FOLDED, LINE + 10
        lines = blocks[group[0]][1]
        widest = max(sum(len(self.listing.shown(part)) for part in line) for line in lines)
        width = max(NARROWEST, int(BORDER + CHARACTER * widest))
        return width, LINE * (len(lines) + 1) + 8


def _is_reference(part: str | list) -> bool:
    return not isinstance(part, str)
