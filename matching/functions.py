"""Match the functions of two binaries, one to one."""

import dataclasses

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from features.extract import Features
from matching.anchors import anchored_pairs, pairs_by_texts, with_anchors
from matching.candidates import Candidates, find_candidates, plausible, softmax_both_ways
from matching.evidence import ROUNDS, Evidence
from matching.identical import identical_pairs
from matching.model import Model

FUNCTION_THRESHOLD = 0.3
SAME_FUNCTION = 2.0  # added to the logit of functions with the same code, to prefer them


@dataclasses.dataclass
class Matches:
    """Pairs, sorted by a: a, b int64 (n,), score float32 (n,) in 0..1."""

    a: np.ndarray
    b: np.ndarray
    score: np.ndarray


def match_functions(
    first: Features,
    second: Features,
    model: Model,
    anchors: np.ndarray | None = None,
    threshold: float = FUNCTION_THRESHOLD,
) -> Matches:
    """Match the functions of two binaries.

    Parameters
    ----------
    model : Model
    anchors : int (k, 2), optional
        Known pairs; each function at most once.
    threshold : float
        Pairs with a lower score are not matched.
    """
    outlines = first.outline, second.outline
    given = np.zeros((0, 2), np.int64) if anchors is None else anchors
    certain = pairs_by_texts((first, second), given)
    known, _ = identical_pairs(outlines, certain)
    differ = [outlines[0].code[a] != outlines[1].code[b] for a, b in given.tolist()]
    different = given[np.array(differ, bool)]
    candidates = find_candidates(first, second, model.encoder, known, different)
    anchored = anchored_pairs(candidates, known)
    evidence = Evidence(first, second)
    found = match_candidates(candidates, evidence, model, anchored, threshold)
    pairs, _ = identical_pairs(outlines, np.stack([found.a, found.b], 1), small=True)
    score = dict(zip(found.a.tolist(), found.score.tolist(), strict=True))
    scores = np.array([score.get(a, 1.0) for a in pairs[:, 0].tolist()], np.float32)
    return Matches(pairs[:, 0], pairs[:, 1], scores)


def match_candidates(
    candidates: Candidates,
    evidence: Evidence,
    model: Model,
    anchored: np.ndarray,
    threshold: float = FUNCTION_THRESHOLD,
    rounds: int = ROUNDS,
) -> Matches:
    """Score candidates, some of which are known to be true, and choose pairs one to one."""
    similarity = with_anchors(model.similarity(candidates.measures), candidates, anchored)
    kept = plausible(candidates, similarity)
    candidates, similarity, anchored = candidates.only(kept), similarity[kept], anchored[kept]

    def network(columns: np.ndarray) -> np.ndarray:
        return with_anchors(model.neighbours(columns), candidates, anchored)

    logit = evidence.rounds(candidates, similarity, network, rounds)
    logit = logit + SAME_FUNCTION * evidence.same_code(candidates)
    share_a, share_b = softmax_both_ways(candidates, logit)
    return assign(candidates, np.sqrt(share_a * share_b), threshold)


def assign(candidates: Candidates, score: np.ndarray, threshold: float) -> Matches:
    """Choose pairs, one to one, with the highest sum of scores above the threshold."""
    kept = np.flatnonzero(score >= threshold)
    a, b, score = candidates.a[kept], candidates.b[kept], score[kept]
    n, m = candidates.shape
    # Each a may also stay unmatched, with a score of 0. Costs are above 0, since 0 means no edge.
    alone = np.arange(n)
    price = np.concatenate([2 - score, np.full(n, 2)])
    ends = np.concatenate([a, alone]), np.concatenate([b, m + alone])
    graph = scipy.sparse.csr_matrix((price, ends), (n, m + n))
    i, j = min_weight_full_bipartite_matching(graph)
    chosen = np.searchsorted(a * m + b, (i.astype(np.int64) * m + j)[j < m])
    return Matches(a[chosen], b[chosen], score[chosen])
