"""Match the basic blocks of two binaries whose functions are matched."""

from collections import Counter

import numpy as np
import scipy.sparse

from binary.analysis import CALL, Analysis
from features.extract import Features
from features.normalised import IDENTICAL_SIZE, numbered
from features.tfidf import normalise, weigh
from matching.functions import Matches

# How much each kind of word says about a block.
BLOCK_WEIGHTS = {"token": 1.0, "gram": 0.5, "number": 1.0, "field": 1.0, "name": 2.0}
CALL_WEIGHT = 2.0  # weight of a call of a matched function
NEIGHBOURS = 2.0  # weight of matched predecessors and successors, against a block's own similarity
PLACE = 0.05  # weight of its position in the function
DEPTH = 0.1  # weight of its distances from the entry and from the exits
SAME = 0.1  # weight of being the same code
CELLS = 1 << 24  # pairs of blocks to compare at a time: 128 MiB in each of some tables
BLOCK_ROUNDS = 12
SHARPNESS = 24.0
BLOCK_THRESHOLD = 0.2
INLINED_THRESHOLD = 0.5
INLINED_AMONG = 4096  # a function is not searched for among more blocks: a hub may have very many


def match_blocks(first: Features, second: Features, functions: Matches) -> Matches:
    """Match the code blocks of two binaries whose functions are matched.

    Blocks of functions without a partner may match where a compiler inlined the function: in the
    partners of its callers. What is left there matches if it is the same code, and the only
    such block.
    """
    words = _weighed_blocks(first, second, functions)
    edges = [_flow(code.analysis) for code in (first, second)]
    forms = numbered(first.forms, second.forms)
    none = np.zeros(0, np.int64)
    found: list[tuple[np.ndarray, ...]] = []
    for f, g in zip(functions.a.tolist(), functions.b.tolist(), strict=True):
        a, b = first.blocks[f], second.blocks[g]
        if np.array_equal(forms[0][a], forms[1][b]):  # the same code from beginning to end
            found.append((a, b, np.ones(len(a), np.float32)))
            continue
        found.append(_match(a, b, words, forms, edges, BLOCK_THRESHOLD))
    forward = dict(zip(functions.a.tolist(), functions.b.tolist(), strict=True))
    back = {b: a for a, b in forward.items()}
    ways = (first, second, forward), (second, first, back)
    for side, (code, other, partner) in enumerate(ways):
        function = other.analysis.function[: other.analysis.code_blocks]
        free = np.ones(len(function), bool)
        free[np.concatenate([none, *(pair[1 - side] for pair in found)])] = False
        left = np.bincount(function[free], minlength=other.functions)
        callers = code.calls.T.tocsr()
        for f in range(code.functions):
            if f in partner:
                continue
            hosts = sorted({partner[c] for c in callers[f].indices.tolist() if c in partner})
            if not 0 < left[hosts].sum() <= INLINED_AMONG:
                continue
            places = np.concatenate([other.blocks[host] for host in hosts])
            places = places[free[places]]
            a, b = (places, code.blocks[f]) if side else (code.blocks[f], places)
            match = _match(a, b, words, forms, edges, INLINED_THRESHOLD)
            free[match[1 - side]] = False
            left -= np.bincount(function[match[1 - side]], minlength=other.functions)
            found.append(match)
    found.append(_left_over(first, second, functions, found))
    columns = [np.concatenate([part[i] for part in found]) for i in range(3)]
    order = np.argsort(columns[0], kind="stable")
    a, b, score = (column[order] for column in columns)
    return Matches(a.astype(np.int64), b.astype(np.int64), score.astype(np.float32))


def _left_over(
    first: Features, second: Features, functions: Matches, found: list
) -> tuple[np.ndarray, ...]:
    """In functions without a partner, match identical blocks that are unique in both binaries."""
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


def _weighed_blocks(
    first: Features, second: Features, functions: Matches
) -> list[scipy.sparse.csr_matrix]:
    """Return rows of length 1 for the blocks: their words, and the matched functions they call."""
    parts: list[list] = [[], []]
    calls = []
    for code, matched in ((first, functions.a), (second, functions.b)):
        number = np.full(code.functions, -1)
        number[matched] = np.arange(len(matched))
        analysis = code.analysis
        source, target = analysis.edges[analysis.kind == CALL].T
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
        pair = weigh(words[0][kind], words[1][kind], lengths=False)
        for side in (0, 1):
            parts[side].append(pair[side] * weight)
    rows = [normalise(scipy.sparse.hstack(part, "csr")) for part in parts]
    # Keep only the columns that occur: the cost of a product grows with their number.
    used = np.unique(np.concatenate([m.indices for m in rows]))
    return [
        scipy.sparse.csr_matrix(
            (m.data, np.searchsorted(used, m.indices), m.indptr), (m.shape[0], len(used))
        )
        for m in rows
    ]


def _flow(analysis: Analysis) -> scipy.sparse.csr_matrix:
    """Return edges inside functions, csr float32 (B, B): jumps, fall-throughs, over calls."""
    n = analysis.code_blocks
    source, target = analysis.edges[analysis.kind != CALL].T
    inside = (source < n) & (target < n)
    inside[inside] = analysis.function[source[inside]] == analysis.function[target[inside]]
    ones = np.ones(np.count_nonzero(inside), np.float32)
    return scipy.sparse.csr_matrix((ones, (source[inside], target[inside])), (n, n))


def _match(
    a: np.ndarray, b: np.ndarray, words: list, forms: list, edges: list, threshold: float
) -> tuple[np.ndarray, ...]:
    """Match the blocks a of the first binary with the blocks b of the second."""
    from scipy.optimize import linear_sum_assignment  # here, because the import takes half a second

    if not (len(a) and len(b)):
        return a[:0], b[:0], np.zeros(0, np.float32)
    if len(a) * len(b) > CELLS:
        i, j = _cut(forms[0][a], forms[1][b])
        halves = [
            _match(*part, words, forms, edges, threshold)
            for part in ((a[:i], b[:j]), (a[i:], b[j:]))
        ]
        return tuple(np.concatenate(columns) for columns in zip(*halves, strict=True))
    own = (words[0][a] @ words[1][b].T).toarray()
    place = np.abs(np.linspace(0, 1, len(a))[:, None] - np.linspace(0, 1, len(b)))
    same = forms[0][a][:, None] == forms[1][b]
    own = own + SAME * same - PLACE * place
    behind = _within(edges[0], a), _within(edges[1], b)
    before = [m.T.tocsr() for m in behind]
    for depth in zip(*map(_depths, behind, before), strict=True):
        own -= DEPTH * np.abs(np.subtract.outer(*depth))
    # Between look-alike blocks, prefer the one with a similar number of neighbours.
    degree = sum(np.add.outer(_degrees(x), _degrees(y)) / 2 for x, y in (behind, before))
    weight = NEIGHBOURS * (degree > 0)
    total, degree = 1 + weight, np.maximum(degree, 1)
    score = own
    for _ in range(BLOCK_ROUNDS):  # in place, because new arrays take as long as their contents
        e = score - score.max(initial=0)
        e *= SHARPNESS
        np.exp(e, out=e)
        share = e / np.maximum(e.sum(1, keepdims=True), 1e-9)
        e /= np.maximum(e.sum(0), 1e-9)
        share *= e
        np.sqrt(share, out=share)
        score = sum(x @ (y @ share.T).T for x, y in (behind, before))
        score *= weight
        score /= degree
        score += own
        score /= total
    i, j = linear_sum_assignment(score, maximize=True)
    kept = score[i, j] >= threshold
    i, j = i[kept], j[kept]
    return a[i], b[j], np.clip(score[i, j], 0, 1)


def _cut(x: np.ndarray, y: np.ndarray) -> tuple[int, int]:
    """Choose where to cut two long functions in half, given the normalised code of their blocks.

    It is near the middle of both, if possible at a block that is unique in each.
    """
    once = []
    for forms in (x, y):
        form, at, times = np.unique(forms, return_index=True, return_counts=True)
        once.append((form[times == 1], at[times == 1]))
    (form_x, at_x), (form_y, at_y) = once
    _, i, j = np.intersect1d(form_x, form_y, assume_unique=True, return_indices=True)
    share_x, share_y = at_x[i] / len(x), at_y[j] / len(y)
    away = np.abs(share_x - 0.5) + np.abs(share_y - 0.5)
    if not len(away) or away.min() > 0.5:
        return len(x) // 2, len(y) // 2
    best = int(np.argmin(away))
    return int(at_x[i[best]]), int(at_y[j[best]])


def _depths(behind: scipy.sparse.csr_matrix, before: scipy.sparse.csr_matrix) -> list[np.ndarray]:
    """Return the distances of each block from the first one and from the exits, 0..1."""
    last = np.flatnonzero(_degrees(behind) == 0)
    if not len(last):  # an endless loop
        last = np.array([behind.shape[0] - 1])
    found = []
    for edges, start in ((behind, [0]), (before, last.tolist())):
        distance = _distances(edges, start)
        furthest = distance.max()
        found.append(np.where(distance < 0, furthest, distance) / max(furthest, 1))
    return found


def _distances(edges: scipy.sparse.csr_matrix, start: list[int]) -> np.ndarray:
    """Return each block's distance from the nearest of ``start``, -1 if it cannot be reached.

    For functions of usual size this takes a fraction of the time of SciPy's functions.
    """
    offsets, target = edges.indptr.tolist(), edges.indices.tolist()
    distance = [-1] * edges.shape[0]
    for block in start:
        distance[block] = 0
    reached = list(start)
    for block in reached:  # which grows meanwhile
        for other in target[offsets[block] : offsets[block + 1]]:
            if distance[other] < 0:
                distance[other] = distance[block] + 1
                reached.append(other)
    return np.array(distance)


def _degrees(edges: scipy.sparse.csr_matrix) -> np.ndarray:
    return np.diff(edges.indptr)


def _within(edges: scipy.sparse.csr_matrix, blocks: np.ndarray) -> scipy.sparse.csr_matrix:
    """Return ``edges[blocks][:, blocks]``, ten times faster than SciPy."""
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
