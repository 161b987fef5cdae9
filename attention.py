"""Attention and dropout for CPUs: what PyTorch's own kernels do slowly there.

PyTorch's fused attention has no bfloat16 products on CPUs and none at all with dropout, and its
dropout draws one 64-bit random number per element, on one core. Both are replaced on CPUs only;
GPUs have better kernels than can be written here. `bench/speed_training.py` measures the gain.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PART = 2**20  # attention weights that are computed at a time, so that they stay in the cache
STEPS = 2**16  # probabilities of dropout are rounded to 1 / STEPS


def attention(qkv: Tensor, mask: Tensor | None, p_drop: float) -> Tensor:
    """Dot-product attention, by the quickest way that the device has: softmax(q k^T) v.

    Parameters
    ----------
    qkv : float (B, S, 3, H, W)
        Queries, which are scaled already, keys and values.
    mask : bool (B, 1, 1, S), optional
        False where a key is padding.
    p_drop : float
        Share of the attention weights that are set to 0; the others grow in turn.

    Returns
    -------
    float (B, S, H, W)
    """
    if _on_cpu(qkv) and (qkv.dtype == torch.bfloat16 or p_drop > 0):
        return _Attention.apply(qkv, mask, p_drop)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, S, W) each
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p_drop, scale=1.0)
    return out.transpose(1, 2)


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
    """The same, some heads at a time; N is all heads of all examples."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, mask: Tensor | None, p_drop: float) -> Tensor:
        """(B, S, 3, H, W), (B, 1, 1, S), number -> (B, S, H, W)"""
        batch, length, _, heads, width = qkv.shape
        qkv = qkv.permute(2, 0, 3, 1, 4).reshape(3, batch * heads, length, width)
        q, k, v = qkv
        bias = None
        if mask is not None:  # finite, so that a row of padding makes no NaN
            bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -1e4)
            bias = bias.expand(-1, heads, -1, -1).flatten(0, 1)  # (N, 1, S)
        out = torch.empty_like(q)
        weights = q.new_empty(len(q), length, length)
        factors = torch.empty_like(weights) if p_drop else None
        for part in _parts(weights):
            scores = torch.bmm(q[part], k[part].transpose(1, 2))
            if bias is not None:
                scores += bias[part]
            shares = torch.softmax(scores, -1, out=weights[part])
            if factors is not None:
                factors[part] = kept(scores.shape, p_drop, scores.dtype)
                shares = torch.mul(shares, factors[part], out=scores)
            torch.bmm(shares, v[part], out=out[part])
        ctx.save_for_backward(qkv, weights, factors)
        return out.view(batch, heads, length, width).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None]:
        qkv, weights, factors = ctx.saved_tensors
        (q, k, v), (batch, length, heads, width) = qkv, d_out.shape
        d_out = d_out.transpose(1, 2).reshape(q.shape)
        d_q, d_k, d_v = d_qkv = torch.empty_like(qkv)
        for part in _parts(weights):
            shares = weights[part]
            d_weights = torch.bmm(d_out[part], v[part].transpose(1, 2))
            if factors is not None:
                shares = shares * factors[part]
                d_weights *= factors[part]
            torch.bmm(shares.transpose(1, 2), d_out[part], out=d_v[part])
            d_scores = torch._softmax_backward_data(d_weights, weights[part], -1, q.dtype)
            torch.bmm(d_scores, k[part], out=d_q[part])
            torch.bmm(d_scores.transpose(1, 2), q[part], out=d_k[part])
        return d_qkv.view(3, batch, heads, length, width).permute(1, 3, 0, 2, 4), None, None


def _parts(weights: Tensor) -> list[slice]:
    n, length, _ = weights.shape
    size = max(1, PART // length**2)
    return [slice(start, start + size) for start in range(0, n, size)]
