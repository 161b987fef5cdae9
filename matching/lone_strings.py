"""Find functions with strings that the other program does not contain.

With another compiler, or at another level, nearly every function differs. But no compiler invents
a string. It may copy one in pieces, merge it with the end of another, or move it into a caller;
all of these are found in the other program. So a function whose string is nowhere in the other
program was probably edited.
"""

import bisect
import itertools
import math
import re
from collections.abc import Iterator
from typing import Literal

import numpy as np

from features.extract import NUMBER, Features
from features.places import DATA, Places

SHORTEST, LONGEST = 4, 1000  # lengths of strings that count, in bytes
MOST = 2  # further strings of a function add nothing
DOUBT = 0.1  # added to the expected number, which few functions of a small program estimate
NAME = re.compile(rb"[A-Za-z_]\w+")
PIECES = (16, 8, 4)  # sizes in bytes of the pieces in which compilers copy a string


class LoneStrings:
    """The strings of functions that the other program does not contain.

    Parameters
    ----------
    codes : (Features, Features)
    pairs : int64 (n, 2)
        The matched functions.

    Attributes
    ----------
    strings, lone : list of list of set of bytes
        For each program and function: its strings, and those that the other program lacks.
    """

    def __init__(self, codes: tuple[Features, Features], pairs: np.ndarray) -> None:
        found = [_strings(code, _Contents(other)) for code, other in (codes, codes[::-1])]
        self.strings, self.lone = map(list, zip(*found, strict=True))
        self.totals = []  # numbers of lone strings and of strings of all matched functions
        for side in (0, 1):
            counts = np.array([self._counts(side, f) for f in pairs[:, side]]).reshape(-1, 2)
            self.totals.append(counts.sum(0).tolist())

    def _counts(self, side: int, f: int) -> tuple[int, int]:
        return min(len(self.lone[side][f]), MOST), len(self.strings[side][f])

    def kinds(self, pair: tuple[int, int]) -> list[str]:
        """Return the kinds of change that a pair's strings show, see `matching.kinds`."""
        names = "string removed", "string added"
        return [name for name, lone, f in zip(names, self.lone, pair, strict=True) if lone[f]]

    def surprise(self, pair: tuple[int, int]) -> float:
        """Return how unusual a pair's lone strings are in this comparison, in bits; 0 for none.

        For each program it is log2(1 + n / m): the function has n lone strings, and m are expected
        among as many strings as it has, going by all other pairs.
        """
        bits = 0.0
        for side, f in enumerate(pair):
            n, count = self._counts(side, f)
            found, total = self.totals[side]
            expected = count * (found - n + 0.5) / (total - count + 10)
            bits += math.log2(1 + n / (expected + DOUBT))
        return bits


def _strings(code: Features, other: "_Contents") -> tuple[list[set[bytes]], list[set[bytes]]]:
    """Return each function's strings, and those that the other program does not contain."""
    places, function = code.places, code.analysis.function
    every: list[set[bytes]] = [set() for _ in range(code.functions)]
    lone: list[set[bytes]] = [set() for _ in range(code.functions)]
    texts = dict(_texts(places))
    missing: dict[bytes, bool] = {}
    for r in np.flatnonzero(places.kind == DATA).tolist():
        target, f = int(places.target[r]), int(function[places.block[r]])
        if (text := texts.get(target)) is None:
            continue
        if text not in missing:
            missing[text] = text not in other and not _ends_in(text, target, places, other)
        every[f].add(text)
        if missing[text]:
            lone[f].add(text)
    return every, lone


def _ends_in(text: bytes, address: int, places: Places, other: "_Contents") -> bool:
    """Whether a text is data and a text behind it, to which something refers, of the other."""
    first, last = np.searchsorted(places.boundaries, (address + 1, address + len(text)))
    inner = places.boundaries[first:last] - address
    return any(text[i:] in other.whole for i in inner.tolist())


class _Contents:
    """The texts that a program contains, whole, as the end of another, or in pieces."""

    def __init__(self, code: Features) -> None:
        analysis, places = code.analysis, code.places
        self.whole = {piece for section in analysis.data for piece in section.split(b"\0")}
        # Go's texts follow each other without a NUL.
        self.joined = [] if places.terminated else analysis.data
        self.whole.update(text for _, text in (_texts(places) if self.joined else ()))
        self.whole |= {name for text in self.whole if (name := _name_in(text))}
        self.reversed = sorted(text[::-1] for text in self.whole)
        self.order: Literal["big", "little"] = "big" if places.word.str[0] == ">" else "little"
        numbers = (n for line in code.lines.texts for n in NUMBER.findall(line))
        self.numbers = {int(n, 16 if b"x" in n else 10) for n in numbers}
        self.vectors = set(_vectors(places))

    def __contains__(self, text: bytes) -> bool:
        if self._ends_with(text) or self._copies(text):
            return True
        name = _name_in(text)
        return bool(name and self._ends_with(name)) or any(text in data for data in self.joined)

    def _ends_with(self, text: bytes) -> bool:
        """Whether a text of the program is this one, or ends with it."""
        end = text[::-1]
        at = bisect.bisect_left(self.reversed, end)
        return at < len(self.reversed) and self.reversed[at].startswith(end)

    def _copies(self, text: bytes) -> bool:
        """Whether all pieces of a text are numbers in instructions, or constants.

        The last piece may overlap the one before, and a rest that is smaller than a piece may be
        missing.
        """
        whole, done = text + b"\0", 0
        while len(text) - done >= PIECES[-1]:
            for size, end in itertools.product(PIECES, (done, len(whole), len(text))):
                begin = end - size if done and end > done else done
                if begin <= done and self._piece(whole[begin : begin + size], size):
                    done = begin + size
                    break
            else:
                return False
        return True

    def _piece(self, piece: bytes, size: int) -> bool:
        if len(piece) < size:
            return False
        return piece in self.vectors or int.from_bytes(piece, self.order) in self.numbers


def _name_in(signature: bytes) -> bytes | None:
    """Return the name of a function in its signature; None if the text is none.

    assert() of clang names a function by its signature, that of gcc by its name.
    """
    if not signature.endswith(b")") or b"%" in signature:
        return None
    before = signature.partition(b"(")[0].replace(b"*", b" ")
    kind, _, name = before.rpartition(b" ")
    return name if kind and NAME.fullmatch(name) else None


def _texts(places: Places) -> Iterator[tuple[int, bytes]]:
    """Yield the addresses to which instructions refer, and the texts there."""
    for address, section, begin in _targets(places):
        # The length is bounded first: hostile code may refer to each byte of a long text.
        ends = places.analysis.data[section].find(b"\0", begin, begin + LONGEST)
        if places.terminated and ends < begin + SHORTEST:
            continue
        text = places.text(address)
        if text is None or not SHORTEST <= len(text) < LONGEST:
            continue
        if any(chr(c).isalnum() for c in text):
            yield address, text


def _vectors(places: Places) -> Iterator[bytes]:
    """Yield the bytes at the addresses to which instructions refer."""
    for _, section, begin in _targets(places):
        yield bytes(places.analysis.data[section][begin : begin + PIECES[0]])


def _targets(places: Places) -> Iterator[tuple[int, int, int]]:
    """Yield the addresses of data to which instructions refer, their sections, and where there."""
    addresses = np.unique(places.target[places.kind == DATA])
    sections = places.section_of(addresses)
    begins = addresses - places.start[sections]
    yield from zip(addresses.tolist(), sections.tolist(), begins.tolist(), strict=True)
