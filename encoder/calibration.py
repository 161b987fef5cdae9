"""From the cosines of a query to the chance that a name is right, for any number of candidates.

The query has one of the candidates' names, or none of them. The chance of a name is its share of a
softmax over all names and "none of these"; a name counts with the best cosine of its functions. The
softmax has two parameters, which are fitted on libraries that nothing was trained on.
"""

import dataclasses

import numpy as np

SCALES = np.geomspace(4, 200, 40)
NONES = np.linspace(0, 1, 41)
POOLS = (30, 100, 300, 1000)  # numbers of candidates to fit on
STRANGERS = 0.5  # share of the queries whose partner is not among the candidates


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The parameters of the softmax.

    Attributes
    ----------
    scale : float
        Factor of the cosines; the larger, the more the best candidate stands out.
    none : float
        The cosine that "none of these" counts with.
    """

    scale: float
    none: float

    def chances(self, cosine: np.ndarray) -> np.ndarray:
        """Return the chance of each of M names; the rest, up to 1, is that of "none of these".

        Parameters
        ----------
        cosine : float32 (Q, M)
            For each of Q queries, the best cosine of each name.

        Returns
        -------
        float32 (Q, M)
        """
        e = np.exp(self.scale * (cosine - 1))
        return e / (e.sum(1, keepdims=True) + np.exp(self.scale * (self.none - 1)))


def fit(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Calibration:
    """Find the parameters with the highest likelihood, by trying a grid of them.

    Parameters
    ----------
    x, y : float32 (N, D)
        Vectors of length 1; row i of both is the same function in two builds.
    seed : int
        Decides which functions of ``y`` are candidates, and which queries have no partner there.

    Returns
    -------
    Calibration
        With fewer functions than the smallest of POOLS, a default.
    """
    rng = np.random.default_rng(seed)
    n = len(x)
    there = rng.random(n) >= STRANGERS
    best, found = -np.inf, Calibration(20.0, 0.8)
    pools = []
    for size in POOLS:
        if size < n:
            columns = rng.permutation(n)[:size]
            asked = np.concatenate([columns[there[columns]], np.flatnonzero(~there)])[:size]
            cosine = x[asked] @ y[columns].T
            own = there[asked]
            # A query without a partner: its true partner does not count.
            same = asked[:, None] == columns
            cosine[same & ~own[:, None]] = -1
            pools.append((cosine, np.where(own, same.argmax(1), -1)))
    for scale in SCALES:
        for none in NONES:
            e0 = scale * (none - 1)
            total = 0.0
            for cosine, partner in pools:
                log_sum = np.log(np.exp(scale * (cosine - 1)).sum(1) + np.exp(e0))
                at = np.maximum(partner, 0)
                right = np.where(partner >= 0, scale * (cosine[np.arange(len(at)), at] - 1), e0)
                total += float((right - log_sum).mean())
            if pools and total > best:
                best, found = total, Calibration(float(scale), float(none))
    return found
