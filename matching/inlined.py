"""Find functions without a partner that were probably inlined into their callers.

When a compiler inlines a function, its strings, calls of imports and numbers appear in its callers,
and often whole blocks. So a function that is in only one binary was probably inlined in the partner
of a caller if that partner has gained most of these.
"""

import numpy as np

from features.extract import Features
from features.tfidf import inverse_frequency
from matching.functions import Matches

WORDS = "name", "number"  # strings and imports, and numbers
MOST_CALLERS = 20  # functions with more callers are rarely inlined into all of them
GAINED = 0.6  # share of a function's words, weighted by rarity, that a caller's partner has gained
ENOUGH = 4.0  # words with a lower total weight (about one rare word) are no evidence
BLOCKS = 0.5  # share of a function's blocks with partners in the caller's partner
FEWEST = 2  # minimum number of such blocks


def likely_inlined(
    codes: tuple[Features, Features], functions: Matches, blocks: Matches, side: int
) -> dict[int, list[int]]:
    """Return function without a partner -> functions of the other binary that may contain it.

    Parameters
    ----------
    functions, blocks : Matches
        Matches of OLD and NEW.
    side : int
        The binary of the functions without a partner: 0 is OLD, 1 is NEW.
    """
    mine, other = codes[side], codes[1 - side]
    ends = [functions.a, functions.b]
    partner = dict(zip(ends[side].tolist(), ends[1 - side].tolist(), strict=True))
    ends = [blocks.a, blocks.b]
    within = np.stack(
        [
            code.analysis.function[end]
            for code, end in zip((mine, other), (ends[side], ends[1 - side]), strict=True)
        ],
        1,
    )
    pairs, count = np.unique(within, axis=0, return_counts=True)
    shared = {tuple(pair): n for pair, n in zip(pairs.tolist(), count.tolist(), strict=True)}
    gained = _Gained(mine, other)
    callers = mine.calls.T.tocsr()
    found = {}
    for f in sorted(set(range(mine.functions)) - partner.keys()):
        calling = callers.indices[callers.indptr[f] : callers.indptr[f + 1]].tolist()[:MOST_CALLERS]
        into = []
        for caller in calling:
            p = partner.get(caller)
            if p is None:
                continue
            n = shared.get((f, p), 0)
            if (n >= FEWEST and n >= BLOCKS * len(mine.blocks[f])) or gained.most(f, caller, p):
                into.append(p)
        if into:
            found[f] = sorted(set(into))
    return found


class _Gained:
    """Tells whether a function has gained the words of another over its partner."""

    def __init__(self, mine: Features, other: Features) -> None:
        self.words = [[code.words[kind] for kind in WORDS] for code in (mine, other)]
        self.rarity = [
            inverse_frequency(a, b) for a, b in zip(self.words[0], self.words[1], strict=True)
        ]

    def most(self, f: int, caller: int, p: int) -> bool:
        """Whether ``p`` has most of the words of ``f`` that its partner ``caller`` lacks."""
        total = gained = 0.0
        for rarity, mine, other in zip(self.rarity, *self.words, strict=True):
            wanted = mine[f]
            if not wanted.nnz:
                continue
            more = np.minimum(
                1, np.maximum(0, (other[p] - mine[caller])[:, wanted.indices].toarray().ravel())
            )
            weight = rarity[wanted.indices]
            total += float(weight.sum())
            gained += float(weight @ more)
        return total >= ENOUGH and gained >= GAINED * total
