"""Where did a function without a partner go? Likely into its callers.

A compiler that inlines a function leaves its strings, its calls of imports and its numbers in its
callers, and often whole blocks. So a function that is in one binary alone is likely inlined in the
partner of a caller that has gained most of these.
"""

import numpy as np

from features.extract import Features
from features.tfidf import inverse_frequency
from matching.functions import Matches

WORDS = "name", "number"  # strings and imports, and numbers
MOST_CALLERS = 20  # that are looked at: what very many call is seldom inlined into each
GAINED = 0.6  # share of a function's words, weighted by rarity, that a caller's partner has gained
ENOUGH = 4.0  # weight of words below which they prove nothing: about one rare word
BLOCKS = 0.5  # share of a function's blocks that have partners in the caller's
FEWEST = 2  # such blocks


def likely_inlined(
    codes: tuple[Features, Features], functions: Matches, blocks: Matches, side: int
) -> dict[int, list[int]]:
    """Return function without a partner -> functions of the other binary that likely hold it.

    Parameters
    ----------
    functions, blocks : Matches
        Of OLD and NEW.
    side : int
        Which binary's functions are looked for: 0 is OLD, 1 is NEW.
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
        """Whether ``p`` has most words of ``f`` that its partner ``caller`` has not."""
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
