"""Decide whether matched blocks are really the same.

Matching compares code without its addresses. This module compares the addresses: a call is the same
if it calls the partner or the same import; a jump, if it leads to the block's partner; a reference
to data, if it is the same text, the same constants, or a variable that other functions use in the
same places.
"""

import numpy as np

from binary.analysis import CALL as CALL_EDGE
from features.extract import Features
from features.normalised import numbered
from features.places import CODE, DATA, IMPORT, INSIDE, UNKNOWN
from matching.candidates import Candidates
from matching.functions import Matches, assign
from matching.kinds import forks_of, marks_of

DEPTH = 4  # number of pointers that are followed from data to data
SHIFT_BONUS = 0.4  # votes for two variables if they moved as far as most others
VARIABLE = 64  # maximum distance in bytes between variables that count as neighbours


class Judge:
    """Compares what operands in two binaries refer to, given the matches.

    Parameters
    ----------
    codes : (Features, Features)
    functions, blocks : Matches
    alike : list of int64 (F,)
        For each binary, a number for each function. Functions with the same number have the same
        code and surroundings; to call one instead of another is not a change.
    """

    def __init__(
        self,
        codes: tuple[Features, Features],
        functions: Matches,
        blocks: Matches,
        alike: list[np.ndarray],
    ) -> None:
        self.codes, self.blocks, self.alike = codes, blocks, alike
        self.places = codes[0].places, codes[1].places
        self.function = [code.analysis.function for code in codes]
        self.partner = np.full(codes[0].functions, -1)
        self.partner[functions.a] = functions.b
        self.block_partner = np.full(codes[0].analysis.code_blocks, -1)
        self.block_partner[blocks.a] = blocks.b
        self.entry = [_entries(code) for code in codes]
        self.imports = numbered(*(places.names for places in self.places))
        self.form = numbered(*(code.forms for code in codes))
        self.known: dict[tuple[int, int], bool] = {}
        self.processor = codes[0].analysis.processor
        self.marks = [marks_of(code) for code in codes]
        self.forks = [forks_of(code) for code in codes]
        self.back = np.full(codes[1].functions, -1)
        self.back[functions.b] = functions.a

    def same_blocks(self) -> np.ndarray:
        """Return which of the matched blocks are the same, bool (n,)."""
        a, b = self.blocks.a, self.blocks.b
        same = self.form[0][a] == self.form[1][b]
        counts = [np.diff(p.offsets)[i] for p, i in zip(self.places, (a, b), strict=True)]
        same &= counts[0] == counts[1]
        pairs = np.flatnonzero(same)
        count = counts[0][pairs]
        of = np.repeat(pairs, count)
        nth = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
        r = self.places[0].offsets[a[of]] + nth
        s = self.places[1].offsets[b[of]] + nth
        agree = self.same_references(r, s)
        same[of[~agree]] = False
        return same & self._same_flow()

    def same_references(self, r: np.ndarray, s: np.ndarray) -> np.ndarray:
        """Return whether references r of the first and s of the second are the same, bool (n,)."""
        first, second = self.places
        kinds = first.kind[r], second.kind[s]
        x, y = first.target[r], second.target[s]
        alike = kinds[0] == kinds[1]
        agree = np.zeros(len(r), bool)
        for kind, judge in (
            (IMPORT, lambda i: self.imports[0][x[i]] == self.imports[1][y[i]]),
            (CODE, lambda i: self._same_code(first.block[r[i]], x[i], y[i])),
            (INSIDE, lambda i: self._same_inside(x[i], y[i])),
            (UNKNOWN, lambda i: x[i] == y[i]),
            (DATA, lambda i: self._same_data(r[i], s[i])),
        ):
            chosen = np.flatnonzero(alike & (kinds[0] == kind))
            if len(chosen):
                agree[chosen] = judge(chosen)
        return agree

    def name_of(self, side: int, f: int) -> tuple[str, int]:
        """Return an identifier that a function and its partner share."""
        if side == 0:
            return ("function", f) if self.partner[f] >= 0 else ("old", f)
        return ("function", int(self.back[f])) if self.back[f] >= 0 else ("new", f)

    # ------------------------------------------------------------------------------ code

    def _same_code(self, source: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Compare blocks x and y, to which blocks ``source`` of the first refer (-1: data does)."""
        f, g = self.function[0][x], self.function[1][y]
        inside = (source >= 0) & (self.function[0][np.maximum(source, 0)] == f)
        entries = self.entry[0][x] & self.entry[1][y]
        called = entries & ((self.partner[f] == g) | (self.alike[0][f] == self.alike[1][g]))
        return np.where(inside | ~entries, self.block_partner[x] == y, called)

    def _same_inside(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Compare addresses inside of blocks."""
        at = [
            np.maximum(np.searchsorted(p.blocks, address, side="right") - 1, 0)
            for p, address in zip(self.places, (x, y), strict=True)
        ]
        offset = [
            address - p.blocks[i] for p, address, i in zip(self.places, (x, y), at, strict=True)
        ]
        return (self.block_partner[at[0]] == at[1]) & (offset[0] == offset[1])

    def _same_flow(self) -> np.ndarray:
        """Return which matched blocks have matched successors inside the function, bool (n,)."""
        edges = []
        for code, function in zip(self.codes, self.function, strict=True):
            analysis = code.analysis
            found = analysis.edges[analysis.kind != CALL_EDGE].astype(np.int64)
            found = found[(found < analysis.code_blocks).all(1)]
            edges.append(found[function[found[:, 0]] == function[found[:, 1]]])
        # An edge to a block without a partner does not count: only that block differs.
        n = self.codes[1].analysis.code_blocks
        back = np.full(n, -1)
        back[self.blocks.b] = self.blocks.a
        mapped = self.block_partner[edges[0]]
        old = mapped[:, 0] * n + mapped[:, 1]
        new = edges[1][:, 0] * n + edges[1][:, 1]
        lost = (mapped >= 0).all(1) & ~np.isin(old, new)
        added = (back[edges[1]] >= 0).all(1) & ~np.isin(new, old)
        bad = np.zeros(self.codes[0].analysis.code_blocks, bool)
        bad[edges[0][lost, 0]] = True
        bad[back[edges[1][added, 0]]] = True
        return ~bad[self.blocks.a]

    # ------------------------------------------------------------------------------ data

    def _same_data(self, r: np.ndarray, s: np.ndarray) -> np.ndarray:
        """Compare data to which operands refer: constants by content, variables by their users."""
        first, second = self.places
        x, y = first.target[r], second.target[s]
        pairs, which = np.unique(np.stack([x, y], 1), axis=0, return_inverse=True)
        which = which.ravel()
        content = np.array([self.same_content(a, b) for a, b in pairs.tolist()], bool)
        constant = self._constant(0, pairs[:, 0]) & self._constant(1, pairs[:, 1])
        variables = np.flatnonzero(content & ~constant)
        users = self.function[0][first.block[r]]
        matched = np.zeros(len(pairs), bool)
        matched[variables] = self._match_variables(pairs[variables], variables, which, users)
        return (content & (constant | matched))[which]

    def _constant(self, side: int, addresses: np.ndarray) -> np.ndarray:
        places = self.places[side]
        section = places.section_of(addresses)
        return (section >= 0) & places.analysis.data_constant[section]

    def _match_variables(
        self, pairs: np.ndarray, numbers: np.ndarray, which: np.ndarray, users: np.ndarray
    ) -> np.ndarray:
        """Match variables one to one, by how many functions use both in the same place.

        Parameters
        ----------
        pairs : int64 (k, 2)
            Addresses of variables that some function uses in the same place.
        numbers : int64 (k,)
            A number for each pair.
        which, users : int64 (n,)
            For each reference, the number of its pair, and the function that contains it.
        """
        if not len(pairs):
            return np.zeros(0, bool)
        uses = np.unique(np.stack([which, users], 1), axis=0)[:, 0]
        votes = np.bincount(uses, minlength=numbers.max() + 1)[numbers].astype(float)
        shift = pairs[:, 1] - pairs[:, 0]
        _, of, count = np.unique(shift, return_inverse=True, return_counts=True)
        votes += SHIFT_BONUS * count[of] / len(pairs)
        sides = [np.unique(pairs[:, side], return_inverse=True) for side in (0, 1)]
        a, b = sides[0][1].ravel(), sides[1][1].ravel()
        shape = len(sides[0][0]), len(sides[1][0])
        found = assign(
            Candidates(a, b, shape, np.empty((len(a), 0), np.float32)),
            votes / (votes.max() + 1),
            0.0,
        )
        chosen = np.isin(a * shape[1] + b, found.a * shape[1] + found.b)
        return chosen & ~self._out_of_line(pairs, chosen)

    @staticmethod
    def _out_of_line(pairs: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Return which variables did not move as far as their neighbours on both sides."""
        order = np.flatnonzero(chosen)  # the pairs are sorted
        old, new = pairs[order].T
        shift = new - old
        odd = np.zeros(len(pairs), bool)
        if len(order) > 2:
            between = (shift[:-2] == shift[2:]) & (shift[1:-1] != shift[:-2])
            near = old[2:] - old[:-2] <= 2 * VARIABLE
            within = (new[1:-1] > new[:-2]) & (new[1:-1] < new[2:])
            odd[order[1:-1][between & near & within]] = True
        return odd

    def same_content(self, x: int, y: int, depth: int = 0) -> bool:
        """Compare the data at two addresses, up to the next address to which something refers."""
        if (x, y) in self.known:
            return self.known[x, y]
        self.known[x, y] = True  # a pointer back to here is the same if the rest is
        first, second = self.places
        (one, constant), (other, also) = first.content(x), second.content(y)
        same = constant == also
        if same and (one or other):
            same = self._same_bytes(x, y, one, other, depth)
        self.known[x, y] = same
        return same

    def _same_bytes(self, x: int, y: int, one: bytes, other: bytes, depth: int) -> bool:
        texts = self.places[0].text(x), self.places[1].text(y)
        if texts[0] is not None and texts[0] == texts[1]:
            n = len(texts[0]) + 1
            rest = one[n:] if len(one) < len(other) else other[n:]
            if not rest.strip(b"\0"):
                return True  # padding
        return self._only_pointers(x, y, one, other, depth)

    def _only_pointers(self, x: int, y: int, one: bytes, other: bytes, depth: int) -> bool:
        """Whether two contents differ only in pointers, and the pointers are the same."""
        n = min(len(one), len(other))
        sizes = [places.word.itemsize for places in self.places]
        distances = self._same_distances(x, y, one[:n], other[:n])
        if distances is not None:
            return distances
        if sizes[0] != sizes[1] and one[:n] == other[:n]:
            return True
        skip = -x % sizes[0]
        if skip != -y % sizes[1] or n < max(sizes):
            return one[:n] == other[:n]
        count = min((len(c) - skip) // size for c, size in zip((one, other), sizes, strict=True))
        whole = [skip + count * size for size in sizes]
        if one[:skip] != other[:skip]:
            return False
        if sizes[0] == sizes[1] and one[whole[0] : n] != other[whole[1] : n]:
            return False  # between 32 and 64 bits, the rest is not comparable
        words = [
            np.frombuffer(c[skip:end], p.word).astype(np.int64)
            for c, end, p in zip((one, other), whole, self.places, strict=True)
        ]
        resolved = [p.resolve(w) for p, w in zip(self.places, words, strict=True)]
        pointer = (resolved[0][0] != UNKNOWN) & (resolved[1][0] == resolved[0][0])
        for i in np.flatnonzero(pointer).tolist():
            kind = resolved[0][0][i]
            p, q = int(resolved[0][1][i]), int(resolved[1][1][i])
            if kind == DATA and depth >= DEPTH:
                continue
            if kind == DATA:
                same = self.same_content(p, q, depth + 1)
            elif kind == IMPORT:
                same = self.imports[0][p] == self.imports[1][q]
            elif kind == CODE:
                same = bool(self._same_code(np.array([-1]), np.array([p]), np.array([q]))[0])
            else:
                same = bool(self._same_inside(np.array([p]), np.array([q]))[0])
            if not same:
                return False
        return bool((pointer | (words[0] == words[1])).all())

    def _same_distances(self, x: int, y: int, one: bytes, other: bytes) -> bool | None:
        """Compare contents as tables of distances to code (a switch) or texts; None if they differ.

        Distances are relative to the table itself or to the global offset table.
        """
        known = [{step.itemsize: step for step in places.steps} for places in self.places]
        for size in sorted(known[0].keys() & known[1].keys(), reverse=True):
            types = [steps[size] for steps in known]
            skip = -x % size
            if skip != -y % size or len(one) - skip < size:
                continue
            steps = [
                np.frombuffer(c[skip : len(c) - (len(c) - skip) % size], t).astype(np.int64)
                for c, t in zip((one, other), types, strict=True)
            ]
            same = self._same_steps(x, y, steps)
            if same is not None:
                return same
        return None

    def _same_steps(self, x: int, y: int, steps: list[np.ndarray]) -> bool | None:
        for bases in ((x, y), (self.places[0].offset_table, self.places[1].offset_table)):
            ends = []
            for places, base, step in zip(self.places, bases, steps, strict=True):
                end = base + step
                ends.append(end & 0xFFFFFFFF if places.word.itemsize == 4 else end)
            blocks = [p.block_at(end) for p, end in zip(self.places, ends, strict=True)]
            n = self._length(blocks)
            if 3 < n < len(steps[0]) and (blocks[0][n] >= 0) != (blocks[1][n] >= 0):
                return False
            if n and (n == len(steps[0]) or n > 3):  # other data may follow
                return bool(self._same_code(np.full(n, -1), blocks[0][:n], blocks[1][:n]).all())
        if len(steps[0]) < 2:
            return None
        same = True
        for one, other in zip(*(side.tolist() for side in steps), strict=True):
            texts = self.places[0].whole_text(x + one), self.places[1].whole_text(y + other)
            if None in texts:  # stop here: what is no such table may be long
                return None
            same &= texts[0] == texts[1]
        return same

    @staticmethod
    def _length(blocks: list[np.ndarray]) -> int:
        """Return how many of the first entries lead to blocks in both tables."""
        end = np.flatnonzero((blocks[0] < 0) | (blocks[1] < 0))
        return int(end[0]) if len(end) else len(blocks[0])


def _entries(code: Features) -> np.ndarray:
    """Return which blocks are the entries of functions, bool (B,)."""
    analysis = code.analysis
    at = np.searchsorted(
        analysis.address[: analysis.code_blocks], analysis.function_address[: code.functions]
    )
    entry = np.zeros(analysis.code_blocks, bool)
    entry[np.minimum(at, analysis.code_blocks - 1)] = True
    return entry
