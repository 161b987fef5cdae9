"""Align two sequences in bounded time, even if hostile input repeats one element 100,000 times."""

import bisect
import difflib
import itertools
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

WHOLE = 200  # elements that difflib aligns in a tenth of a second; its time may grow with the cube

Opcode = tuple[str, int, int, int, int]


def align(old: Sequence[Hashable], new: Sequence[Hashable]) -> Iterator[Opcode]:
    """Yield what `difflib.SequenceMatcher.get_opcodes` returns, for sequences of any length.

    Sequences that are too long for difflib are cut where both have an element that occurs once in
    each, as patience diff does. Parts that are still too long are cut into pieces of one length.

    >>> list(align("abcd", "abxd"))
    [('equal', 0, 2, 0, 2), ('replace', 2, 3, 2, 3), ('equal', 3, 4, 3, 4)]

    References
    ----------
    Bram Cohen, "Patience Diff Advantages", https://bramcohen.livejournal.com/73318.html
    """
    if max(len(old), len(new)) <= WHOLE:
        yield from difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        return
    ends = [(-1, -1), *_common(old, new), (len(old), len(new))]
    for (i, j), (i_next, j_next) in itertools.pairwise(ends):
        if i >= 0:
            yield "equal", i, i + 1, j, j + 1
        longest = max(i_next - i, j_next - j) - 1
        for start in range(0, longest, WHOLE):
            a, b = (min(i + 1 + s, i_next) for s in (start, start + WHOLE))
            c, d = (min(j + 1 + s, j_next) for s in (start, start + WHOLE))
            for tag, *at in align(old[a:b], new[c:d]):
                yield tag, a + at[0], a + at[1], c + at[2], c + at[3]


def _common(old: Sequence[Hashable], new: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Return where the elements are that occur once in each, in the longest common order."""
    counts = Counter(old), Counter(new)
    place = {element: j for j, element in enumerate(new) if counts[1][element] == 1}
    pairs = [(i, place[e]) for i, e in enumerate(old) if counts[0][e] == 1 and e in place]
    # The longest increasing subsequence by patience sorting: tops[k] ends the best one of k + 1.
    tops: list[int] = []
    last: list[int] = []
    before: list[int] = []
    for at, (_, j) in enumerate(pairs):
        pile = bisect.bisect_left(tops, j)
        before.append(last[pile - 1] if pile else -1)
        tops[pile : pile + 1] = [j]
        last[pile : pile + 1] = [at]
    found = []
    at = last[-1] if last else -1
    while at >= 0:
        found.append(pairs[at])
        at = before[at]
    return found[::-1]
