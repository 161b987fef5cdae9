"""The contrastive loss of the encoder and of tasks that compare texts: InfoNCE."""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(x: Tensor, y: Tensor, scale: float, partner: Tensor, alike: Tensor) -> Tensor:
    """Return the loss of finding each vector's partner among others (nats).

    Parameters
    ----------
    x : float (n, D)
        Vectors of length 1.
    y : float (m, D)
        The vectors to choose from.
    scale : float
        Factor of cosines: one over the temperature.
    partner : int64 (n,)
        The row of ``y`` that is nearest if all is well.
    alike : bool (n, m)
        Vectors that are no negative examples. Partners are never left out.

    Returns
    -------
    float32 (n,)

    References
    ----------
    van den Oord et al., "Contrastive Predictive Coding", 2018, https://arxiv.org/abs/1807.03748
    """
    # In half precision, cosines would be too coarse.
    with torch.autocast(x.device.type, enabled=False):
        logits = scale * x.float() @ y.float().T
    left_out = alike.scatter(1, partner[:, None], False)
    return F.cross_entropy(logits.masked_fill(left_out, -1e4), partner, reduction="none")
