"""Attention and dropout for CPUs: what PyTorch's own kernels do slowly there.

PyTorch's fused attention has no bfloat16 products on CPUs and none at all with dropout, and its
dropout draws one 64-bit random number per element, on one core. Both are replaced on CPUs only;
GPUs have better kernels than can be written here. `bench/pretrain.py` measures what this gains.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PART = 2**20  # attention weights that are computed at a time, so that they stay in the cache
STEPS = 2**16  # probabilities of dropout are rounded to 1 / STEPS


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p_drop: float) -> Tensor:
    """Scaled dot-product attention, by the quickest way that the device has.

    Parameters
    ----------
    q, k, v : float (B, H, S, W)
    mask : bool (B, 1, 1, S), optional
        False where a key is padding.
    p_drop : float
        Share of the attention weights that are set to 0; the others grow in turn.

    Returns
    -------
    float (B, H, S, W)
    """
    if _on_cpu(q) and (q.dtype == torch.bfloat16 or p_drop > 0):
        bias = None
        if mask is not None:  # (B, 1, 1, S) -> (B H, 1, S), finite: a row of padding makes no NaN
            bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -1e4)
            bias = bias.expand(-1, q.size(1), -1, -1).flatten(0, 1)
        # (B, H, S, W) -> (B H, S, W), in order
        return _Attention.apply(*(x.flatten(0, 1) for x in (q, k, v)), bias, p_drop).view_as(q)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p_drop)


def dropout(x: Tensor, p_drop: float) -> Tensor:
    """Set a share ``p_drop`` of ``x``'s elements to 0, and divide the others by 1 - p_drop."""
    if p_drop == 0:
        return x
    return x * kept(x.shape, p_drop, x.dtype) if _on_cpu(x) else F.dropout(x, p_drop)


def add_dropped(x: Tensor, y: Tensor, p_drop: float) -> Tensor:
    """Return ``x + dropout(y)``."""
    if p_drop and _on_cpu(x):
        return torch.addcmul(x, y, kept(y.shape, p_drop, y.dtype))
    return x + dropout(y, p_drop)


def kept(shape: torch.Size, p_drop: float, dtype: torch.dtype) -> Tensor:
    """Draw factors for dropout on the CPU: 0 with probability p_drop, else 1 / (1 - p_drop)."""
    numel = shape.numel()
    dropped = min(round(p_drop * STEPS), STEPS - 1)
    bits = torch.empty(-(-numel // 4), dtype=torch.int64).random_(-(2**63), None)
    keep = bits.view(torch.int16)[:numel] >= dropped - STEPS // 2
    return keep.to(dtype).mul_(STEPS / (STEPS - dropped)).view(shape)


def _on_cpu(x: Tensor) -> bool:
    return x.is_cpu and not torch.compiler.is_compiling()  # the compiler makes kernels of its own


class _Attention(torch.autograd.Function):
    """softmax(q k^T / sqrt(W) + bias) v, some heads at a time."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, p_drop: float
    ) -> Tensor:
        """(N, S, W) each, (N, 1, S), number -> (N, S, W)"""
        n, length, width = q.shape
        q = q * width**-0.5
        out = torch.empty_like(q)
        weights = q.new_empty(n, length, length)
        factors = q.new_empty(n, length, length) if p_drop else None
        for part in _parts(n, length):
            scores = torch.bmm(q[part], k[part].transpose(1, 2))
            if bias is not None:
                scores += bias[part]
            torch.softmax(scores, -1, out=weights[part])
            shares = weights[part]
            if factors is not None:
                factors[part] = kept(scores.shape, p_drop, scores.dtype)
                shares = torch.mul(shares, factors[part], out=scores)
            torch.bmm(shares, v[part], out=out[part])
        ctx.save_for_backward(q, k, v, weights, factors)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, factors = ctx.saved_tensors
        n, length, width = q.shape
        d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for part in _parts(n, length):
            shares = weights[part]
            d_weights = torch.bmm(d_out[part], v[part].transpose(1, 2))
            if factors is not None:
                shares = shares * factors[part]
                d_weights *= factors[part]
            torch.bmm(shares.transpose(1, 2), d_out[part], out=d_v[part])
            d_scores = torch._softmax_backward_data(d_weights, weights[part], -1, q.dtype)
            torch.bmm(d_scores, k[part], out=d_q[part])
            torch.bmm(d_scores.transpose(1, 2), q[part], out=d_k[part])
        return d_q.mul_(width**-0.5), d_k, d_v, None, None


def _parts(n: int, length: int) -> list[slice]:
    size = max(1, PART // length**2)
    return [slice(start, start + size) for start in range(0, n, size)]
