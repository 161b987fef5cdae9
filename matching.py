"""Which function and which block of one binary is which of the other, one to one.

Functions first: likeness alone, then rounds in which the matches found so far speak for what they
call, what calls them, and what lies beside them; and say how alike matched functions are here. Then
the blocks of matched functions, the same way over the control-flow graph; and last the blocks of
functions that a compiler inlined elsewhere.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import dijkstra, min_weight_full_bipartite_matching

import features
import preprocessing
import similarity
import variables
from features import Code
from similarity import Candidates, Model

ROUNDS = 6  # in which matches speak for their neighbours
LIKELY = 0.02  # share from which on a pair speaks
FUNCTION_THRESHOLD = 0.3
SAME_FUNCTION = 2.0  # added to the logit of two functions of the same code: twins differ in it
BESIDE = (1, 6)  # functions to each side that are a function's near and wide surroundings

# How much each kind of word says about a block.
BLOCK_WEIGHTS = {"token": 1.0, "gram": 0.5, "number": 1.0, "field": 1.0, "name": 2.0}
CALL_WEIGHT = 2.0  # of a call of a matched function
NEIGHBOURS = 2.0  # of the matches before and behind a block, against its own likeness
PLACE = 0.05  # of where in the function it lies
DEPTH = 0.1  # of how many blocks lie before it, and behind it
SAME = 0.1  # of being the same code
BLOCK_ROUNDS = 12
SHARPNESS = 24.0
BLOCK_THRESHOLD = 0.2
INLINED_THRESHOLD = 0.5
IDENTICAL_SIZE = 4  # instructions, literals and imports that make a block hardly a coincidence


@dataclasses.dataclass
class Matches:
    """Pairs, sorted by a: a, b int64 (n,), score float32 (n,) in 0..1."""

    a: np.ndarray
    b: np.ndarray
    score: np.ndarray


# ------------------------------------------------------------------------------------ functions


def match_functions(
    first: Code,
    second: Code,
    model: Model,
    anchors: np.ndarray | None = None,
    threshold: float = FUNCTION_THRESHOLD,
) -> Matches:
    """Match the functions of two binaries.

    Parameters
    ----------
    model : Model
    anchors : int (k, 2), optional
        Pairs that are known; each function at most once.
    threshold : float
        Pairs with a lower score are not matched.
    """
    candidates = similarity.find_candidates(first, second, model.encoder, anchors)
    anchored = anchored_pairs(candidates, anchors)
    return match_candidates(candidates, Surroundings(first, second), model, anchored, threshold)


def match_candidates(
    candidates: Candidates,
    surroundings: "Surroundings",
    model: Model,
    anchored: np.ndarray,
    threshold: float = FUNCTION_THRESHOLD,
    rounds: int = ROUNDS,
) -> Matches:
    """Score candidates, of which some are known to be true, and choose pairs one to one."""
    likeness = with_anchors(model.function(candidates.measures), candidates, anchored)
    kept = similarity.plausible(candidates, likeness)
    candidates, likeness, anchored = candidates.only(kept), likeness[kept], anchored[kept]

    def structure(evidence: np.ndarray) -> np.ndarray:
        return with_anchors(model.structure(evidence), candidates, anchored)

    logit = surroundings.hear(candidates, likeness, structure, rounds)
    logit = logit + SAME_FUNCTION * surroundings.same_code(candidates)
    share_a, share_b = similarity.softmax_both_ways(candidates, logit)
    return assign(candidates, np.sqrt(share_a * share_b), threshold)


def anchored_pairs(candidates: Candidates, anchors: np.ndarray | None) -> np.ndarray:
    """Return which candidates are known pairs, bool (n,)."""
    keys = candidates.a * candidates.shape[1] + candidates.b
    if anchors is None or not len(anchors):
        return np.zeros(len(keys), bool)
    return np.isin(keys, anchors[:, 0] * candidates.shape[1] + anchors[:, 1])


def with_anchors(logit: np.ndarray, candidates: Candidates, anchored: np.ndarray) -> np.ndarray:
    """Make known pairs certain, and impossible what contradicts them."""
    a, b = candidates.a[anchored], candidates.b[anchored]
    against = (np.isin(candidates.a, a) | np.isin(candidates.b, b)) & ~anchored
    return np.where(anchored, 30, np.where(against, -30, logit)).astype(np.float32)


class Surroundings:
    """Calls, variables, order of the functions of two binaries: what matches say through them."""

    def __init__(self, first: Code, second: Code) -> None:
        self.codes = first, second
        self.calls = [_rare_first(code.calls) for code in (first, second)]
        self.callers = [_rare_first(code.calls.T.tocsr()) for code in (first, second)]
        self.shared = [features.normalise(code.shared) for code in (first, second)]
        self.tables = first.tables, second.tables
        self.beside = [
            [_beside(code.functions, reach) for code in (first, second)] for reach in BESIDE
        ]

    def hear(
        self,
        candidates: Candidates,
        likeness: np.ndarray,
        structure: Callable[[np.ndarray], np.ndarray],
        rounds: int = ROUNDS,
    ) -> np.ndarray:
        """Return each candidate's logit after rounds in which those so far are evidence."""
        logit = likeness
        for _ in range(rounds):
            logit = structure(self.evidence(candidates, likeness, logit))
        return logit

    def same_code(self, candidates: Candidates) -> np.ndarray:
        """Return which candidates differ in addresses only, if not in everything; bool (n,).

        Functions of hardly any code are left out.
        """
        whole = [
            [tuple(code.forms[b] for b in inside.tolist()) for inside in code.blocks]
            for code in self.codes
        ]
        first, second = _numbered(*whole)
        enough = np.array([sum(map(len, function)) >= IDENTICAL_SIZE for function in whole[0]])
        a, b = candidates.a, candidates.b
        return (first[a] == second[b]) & enough[a]

    def evidence(
        self, candidates: Candidates, likeness: np.ndarray, logit: np.ndarray
    ) -> np.ndarray:
        """Return what speaks for each candidate, float32 (n, similarity.EVIDENCE)."""
        a, b, shape = candidates.a, candidates.b, candidates.shape
        share_a, share_b = similarity.softmax_both_ways(candidates, logit)
        share = np.sqrt(share_a * share_b)
        likely = share > LIKELY
        pairs = scipy.sparse.csr_matrix((share[likely], (a[likely], b[likely])), shape)
        columns = [likeness, logit, np.log(share_a + 1e-4), np.log(share_b + 1e-4)]
        # What is unlike tells more where all else is alike: of two builds at one level, say.
        own = candidates.measures[:, : similarity.OWN]
        typical = share[likely] @ own[likely] / max(share[likely].sum(), 1e-6)
        columns += [*(own - typical).T, *np.broadcast_to(typical, own.shape).T]
        for x, y in (self.calls, self.callers, self.shared):
            spread = (x @ pairs @ y.T).tocsr()
            columns.append(_entries(spread, a, b))
            degree_x, degree_y = np.diff(x.indptr)[a], np.diff(y.indptr)[b]
            columns += [
                (degree_x > 0) & (degree_y > 0),
                np.abs(np.log1p(degree_x) - np.log1p(degree_y)),
            ]
        for x, y in self.beside:
            spread = (x @ pairs @ y.T).tocsr()
            columns.append(_entries(spread, a, b))
        columns += variables.agreement(self.tables, (a, b, shape), share)
        return np.stack(columns, 1).astype(np.float32)


def _numbered(*sides: list[tuple]) -> list[np.ndarray]:
    """Return a number for each thing, the same for equal ones of all sides."""
    number: dict[tuple, int] = {}
    return [np.array([number.setdefault(x, len(number)) for x in side]) for side in sides]


def _entries(m: scipy.sparse.csr_matrix, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``m[a, b]``, which scipy does not flatten where there is none."""
    return np.asarray(m[a, b]).ravel() if len(a) else np.zeros(0, m.dtype)


def _rare_first(relation: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    """Weigh what few have more, each row to length 1: shared rare callees say more."""
    n = relation.shape[0]
    had = np.bincount(relation.indices, minlength=n)
    m = relation.copy()
    m.data = np.log((1 + n) / (1 + had))[m.indices].astype(np.float32)
    rows = np.repeat(np.arange(n), np.diff(m.indptr))
    length = np.sqrt(np.bincount(rows, m.data**2, n))
    m.data /= np.maximum(length, 1e-6)[rows].astype(np.float32)
    return m


def _beside(n: int, reach: int) -> scipy.sparse.csr_matrix:
    """Functions up to ``reach`` places away, in the order of their addresses."""
    steps = [d for d in range(-reach, reach + 1) if d and abs(d) < n]
    band = scipy.sparse.diags([np.ones(n - abs(d)) for d in steps], steps, (n, n), "csr")
    return (band / np.sqrt(max(len(steps), 1))).astype(np.float32)


def assign(candidates: Candidates, score: np.ndarray, threshold: float) -> Matches:
    """Choose pairs, one to one, with the highest sum of scores above the threshold."""
    kept = np.flatnonzero(score >= threshold)
    a, b, score = candidates.a[kept], candidates.b[kept], score[kept]
    n, m = candidates.shape
    # Each a may also stay alone, at the price of a score of 0. Prices lie above 0: 0 is no edge.
    alone = np.arange(n)
    price = np.concatenate([2 - score, np.full(n, 2)])
    ends = np.concatenate([a, alone]), np.concatenate([b, m + alone])
    graph = scipy.sparse.csr_matrix((price, ends), (n, m + n))
    i, j = min_weight_full_bipartite_matching(graph)
    chosen = np.searchsorted(a * m + b, (i.astype(np.int64) * m + j)[j < m])
    return Matches(a[chosen], b[chosen], score[chosen])


# --------------------------------------------------------------------------------------- blocks


def match_blocks(first: Code, second: Code, functions: Matches) -> Matches:
    """Match the code blocks of two binaries whose functions are matched.

    Blocks of functions without a partner may match where a compiler inlined the function: in the
    partners of its callers. What is left there matches if it is the same code, and the only
    such block.
    """
    words = _weighed_blocks(first, second, functions)
    edges = [_flow(code.analysis) for code in (first, second)]
    forms = _numbered(first.forms, second.forms)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for f, g in zip(functions.a.tolist(), functions.b.tolist(), strict=True):
        a, b = first.blocks[f], second.blocks[g]
        found.append(_match(a, b, words, forms, edges, BLOCK_THRESHOLD))
    partner = dict(zip(functions.a.tolist(), functions.b.tolist(), strict=True))
    back = {b: a for a, b in partner.items()}
    for here, there, to, swapped in ((first, second, partner, False), (second, first, back, True)):
        side = 1 if swapped else 0
        taken = {int(b) for pair in found for b in pair[1 - side]}
        callers = here.calls.T.tocsr()
        for f in range(here.functions):
            if f in to:
                continue
            hosts = sorted({to[c] for c in callers[f].indices.tolist() if c in to})
            free = [b for host in hosts for b in there.blocks[host].tolist() if b not in taken]
            if not free:
                continue
            inside = here.blocks[f]
            a, b = (np.array(free), inside) if swapped else (inside, np.array(free))
            match = _match(a, b, words, forms, edges, INLINED_THRESHOLD)
            taken |= set(match[1 - side].tolist())
            found.append(match)
    found.append(_left_over(first, second, functions, found))
    columns = [np.concatenate([part[i] for part in found]) for i in range(3)]
    order = np.argsort(columns[0], kind="stable")
    a, b, score = (column[order] for column in columns)
    return Matches(a.astype(np.int64), b.astype(np.int64), score.astype(np.float32))


def _left_over(
    first: Code, second: Code, functions: Matches, found: list
) -> tuple[np.ndarray, ...]:
    """Match identical blocks, each the only one in its binary, where a function has no partner."""
    sides = []
    for side, code in enumerate((first, second)):
        forms = code.forms
        times = Counter(forms)
        taken = {int(block) for part in found for block in part[side]}
        sides.append(
            {
                form: block
                for block, form in enumerate(forms)
                if times[form] == 1 and len(form) >= IDENTICAL_SIZE and block not in taken
            }
        )
    pairs = [(block, sides[1][form]) for form, block in sides[0].items() if form in sides[1]]
    a, b = np.array(pairs, np.int64).reshape(-1, 2).T
    matched = np.isin(first.analysis.function[a], functions.a)
    free = ~matched | ~np.isin(second.analysis.function[b], functions.b)
    a, b = a[free], b[free]
    return a, b, np.ones(len(a), np.float32)


def _weighed_blocks(first: Code, second: Code, functions: Matches) -> list[scipy.sparse.csr_matrix]:
    """Rows of length 1 for the blocks of both: their words, and the matched functions they call."""
    parts: list[list] = [[], []]
    calls = []
    for code, matched in ((first, functions.a), (second, functions.b)):
        number = np.full(code.functions, -1)
        number[matched] = np.arange(len(matched))
        analysis = code.analysis
        source, target = analysis.edges[analysis.kind == preprocessing.CALL].T
        inside = (source < analysis.code_blocks) & (target < analysis.code_blocks)
        source, called = source[inside], number[analysis.function[target[inside]]]
        source, called = source[called >= 0], called[called >= 0]
        ones = np.ones(len(called), np.float32)
        shape = analysis.code_blocks, max(len(matched), 1)
        calls.append(scipy.sparse.csr_matrix((ones, (source, called)), shape))
    weights = {**BLOCK_WEIGHTS, "call": CALL_WEIGHT}
    words = [
        {**code.block_words, "call": c} for code, c in zip((first, second), calls, strict=True)
    ]
    for kind, weight in weights.items():
        pair = features.weigh(words[0][kind], words[1][kind], lengths=False)
        for side in (0, 1):
            parts[side].append(pair[side] * weight)
    rows = [features.normalise(scipy.sparse.hstack(part, "csr")) for part in parts]
    # Of all columns that a hash can say, those that are there: products cost by their number.
    used = np.unique(np.concatenate([m.indices for m in rows]))
    return [
        scipy.sparse.csr_matrix(
            (m.data, np.searchsorted(used, m.indices), m.indptr), (m.shape[0], len(used))
        )
        for m in rows
    ]


def _flow(analysis: preprocessing.Analysis) -> scipy.sparse.csr_matrix:
    """Edges inside functions, csr float32 (B, B): jumps, fall-throughs, steps over calls."""
    n = analysis.code_blocks
    source, target = analysis.edges[analysis.kind != preprocessing.CALL].T
    inside = (source < n) & (target < n)
    inside[inside] = analysis.function[source[inside]] == analysis.function[target[inside]]
    ones = np.ones(np.count_nonzero(inside), np.float32)
    return scipy.sparse.csr_matrix((ones, (source[inside], target[inside])), (n, n))


def _match(a, b, words, forms, edges, threshold) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match the blocks a of the first binary with the blocks b of the second."""
    from scipy.optimize import linear_sum_assignment  # half a second, which --help can do without

    own = (words[0][a] @ words[1][b].T).toarray()
    place = np.abs(np.linspace(0, 1, len(a))[:, None] - np.linspace(0, 1, len(b)))
    same = forms[0][a][:, None] == forms[1][b]
    own = own + SAME * same - PLACE * place
    behind = _within(edges[0], a), _within(edges[1], b)
    before = [m.T.tocsr() for m in behind]
    for depth in zip(*map(_depths, behind, before), strict=True):
        own -= DEPTH * np.abs(np.subtract.outer(*depth))
    # Of twins, that one whose surroundings are as many; where few of them match, too.
    degree = sum(np.add.outer(_degrees(x), _degrees(y)) / 2 for x, y in (behind, before))
    weight = NEIGHBOURS * (degree > 0)
    score = own
    for _ in range(BLOCK_ROUNDS):
        e = np.exp(SHARPNESS * (score - score.max(initial=0)))
        share = np.sqrt(
            e / np.maximum(e.sum(1, keepdims=True), 1e-9) * (e / np.maximum(e.sum(0), 1e-9))
        )
        around = sum(x @ (y @ share.T).T for x, y in (behind, before))
        score = (own + weight * around / np.maximum(degree, 1)) / (1 + weight)
    i, j = linear_sum_assignment(score, maximize=True)
    kept = score[i, j] >= threshold
    i, j = i[kept], j[kept]
    return a[i], b[j], np.clip(score[i, j], 0, 1)


def _depths(behind: scipy.sparse.csr_matrix, before: scipy.sparse.csr_matrix) -> list[np.ndarray]:
    """How far each block is from the first one, and from those that nothing follows; 0..1."""
    last = np.flatnonzero(_degrees(behind) == 0)
    if not len(last):  # it loops for ever
        last = [behind.shape[0] - 1]
    found = []
    for edges, start in ((behind, [0]), (before, last)):
        distance = dijkstra(edges, indices=start, unweighted=True, min_only=True)
        reached = np.isfinite(distance)
        furthest = distance[reached].max()
        found.append(np.where(reached, distance, furthest) / max(furthest, 1))
    return found


def _degrees(edges: scipy.sparse.csr_matrix) -> np.ndarray:
    return np.diff(edges.indptr)


def _within(edges: scipy.sparse.csr_matrix, blocks: np.ndarray) -> scipy.sparse.csr_matrix:
    """``edges[blocks][:, blocks]``, of which scipy takes ten times as long."""
    n, count = len(blocks), np.diff(edges.indptr)[blocks]
    row = np.repeat(np.arange(n), count)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    at = edges.indptr[blocks][row] + nth
    place = np.full(edges.shape[1], -1)
    place[blocks] = np.arange(n)
    column = place[edges.indices[at]]
    inside = column >= 0
    offsets = np.append(0, np.cumsum(np.bincount(row[inside], minlength=n)))
    return scipy.sparse.csr_matrix((edges.data[at[inside]], column[inside], offsets), (n, n))
