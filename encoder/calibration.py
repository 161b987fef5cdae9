"""Cosines -> chances of being right, whatever number of functions is searched.

A function that is asked about is one of the names searched, or none of them. The chance of a name
is its share in a softmax over all names, by the best cosine that each has, and over none. Two
numbers say how steep that is: they are fitted on libraries that nothing was trained on.
"""

import dataclasses

import numpy as np

SCALES = np.geomspace(4, 200, 40)
NONES = np.linspace(0, 1, 41)
POOLS = (30, 100, 300, 1000)  # functions among which each is searched
STRANGERS = 0.5  # share of the functions asked about that are not there


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How a cosine counts.

    Attributes
    ----------
    scale : float
        Of cosines in the softmax.
    none : float
        The cosine of "none of these".
    """

    scale: float
    none: float

    def chances(self, cosine: np.ndarray) -> np.ndarray:
        """Return the chance of each name, float32 (Q, M) -> (Q, M); the rest is that of none."""
        e = np.exp(self.scale * (cosine - 1))
        return e / (e.sum(1, keepdims=True) + np.exp(self.scale * (self.none - 1)))


def fit(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Calibration:
    """Fit on pairs: float32 (N, D), of which row i of both is the same function in two builds.

    The likelihood of what is true is highest: of the partner where it is in the pool, of none
    where it is not.
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
            # A stranger's partner is taken out.
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
