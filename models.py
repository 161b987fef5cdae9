"""BERT: the encoder that all tasks share, and its two pre-training heads.

GPUs use PyTorch's kernels. The end of this file has attention and dropout for CPUs, where PyTorch's
fused attention has neither bfloat16 products nor dropout, and its dropout draws a 64-bit random
number for each element on one core. `bench/speed_training.py` measures the gain.
"""

import dataclasses
import functools
import os
from typing import Annotated, Any, Literal

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import utils

PART = 2**20  # number of attention weights computed at a time, so that they stay in the cache
STEPS = 2**16  # dropout probabilities are rounded to multiples of 1 / STEPS
MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # bytes
Probability = Annotated[float, pydantic.Field(ge=0, lt=1)]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=utils.STRICT)
class Config:
    """The sizes of a BERT.

    Attributes
    ----------
    dim, n_layers, n_heads, dim_ff : int
        Width of the hidden states, number of blocks, number of attention heads (``dim / n_heads``
        columns each), width inside the feed-forward layers.
    p_drop_hidden, p_drop_attn : float
        Dropout of hidden states and of attention weights.
    max_len, n_segments : int
        Number of positions and of segments that have an embedding.
    init_std : float
        Standard deviation of the initial weights. BERT's 0.02 suits a width of 768; narrow models
        learn faster with more, in proportion to sqrt(768 / dim).
    positions : {"learned", "rotary"}
        BERT's embedding of each position, or queries and keys rotated by an angle that depends on
        it (Su et al., "RoFormer", 2021, https://arxiv.org/abs/2104.09864).
    vocab_size : int or None
        None if the JSON does not have it; the vocabulary file determines it (`with_vocab_size`).
    """

    dim: pydantic.PositiveInt
    n_layers: Annotated[int, pydantic.Field(ge=1, le=1000)]
    n_heads: pydantic.PositiveInt
    dim_ff: pydantic.PositiveInt
    p_drop_hidden: Probability
    p_drop_attn: Probability
    max_len: pydantic.PositiveInt
    n_segments: pydantic.PositiveInt
    init_std: pydantic.PositiveFloat = 0.02
    positions: Literal["learned", "rotary"] = "learned"
    vocab_size: pydantic.PositiveInt | None = None

    @pydantic.model_validator(mode="after")
    def _heads_share_dim(self) -> "Config":
        if self.dim % self.n_heads:
            raise ValueError(f"'dim' {self.dim} is not divisible by 'n_heads' {self.n_heads}")
        if self.positions == "rotary" and self.dim // self.n_heads % 2:
            raise ValueError("rotary 'positions' need heads ('dim' / 'n_heads') of even width")
        rows = (self.vocab_size or 0) + self.max_len + self.n_segments
        numbers = self.dim * (rows + self.n_layers * (4 * self.dim + 2 * self.dim_ff))
        if 4 * numbers > MEMORY:  # a config may come from anywhere
            raise ValueError(f"such a model has {numbers:.2g} weights, more than fit into memory")
        return self

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> "Config":
        """Read a JSON file; raise a `utils.UserError` that names the file and all faulty keys."""
        return utils.read_config(cls, path)

    def with_vocab_size(
        self, vocab_size: int, model_cfg: str | os.PathLike[str], vocab: str | os.PathLike[str]
    ) -> "Config":
        """Return this config with the vocabulary's size.

        If it has another size already, a `utils.UserError` names the files of the two.
        """
        if self.vocab_size not in (None, vocab_size):
            raise utils.UserError(
                f"{model_cfg} has vocab_size {self.vocab_size}, but {vocab} holds {vocab_size} "
                "tokens; leave vocab_size out, or give the vocabulary that belongs to the model"
            )
        return dataclasses.replace(self, vocab_size=vocab_size)


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension, with BERT's parameter names and epsilon."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        # Autocast makes float32 of it on GPUs, which would double the traffic of all that follows.
        return F.layer_norm(x, self.gamma.shape, self.gamma, self.beta, eps=1e-12).to(x.dtype)


class Embeddings(nn.Module):
    """The sum of token, position and segment embeddings, normalised."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        if cfg.vocab_size is None:
            raise ValueError("the config has no vocab_size; fill it in with with_vocab_size")
        self.tok_embed = nn.Embedding(cfg.vocab_size, cfg.dim)
        if cfg.positions == "learned":
            self.pos_embed = nn.Embedding(cfg.max_len, cfg.dim)
        self.seg_embed = nn.Embedding(cfg.n_segments, cfg.dim)
        self.norm = LayerNorm(cfg.dim)
        self.p_drop, self.max_len = cfg.p_drop_hidden, cfg.max_len

    def forward(self, x: Tensor, seg: Tensor) -> Tensor:
        """(B, S), (B, S) -> (B, S, D)"""
        length = x.size(1)
        if length > self.max_len:
            raise ValueError(f"a sequence of {length} tokens is longer than max_len {self.max_len}")
        h = self.tok_embed(x)
        if hasattr(self, "pos_embed"):
            h = h + self.pos_embed.weight[:length]  # (S, D), the same for the whole batch
        h = self.norm(h + self.seg_embed(seg))
        return dropout(h, self.p_drop if self.training else 0.0)


class MultiHeadedSelfAttention(nn.Module):
    """Scaled dot-product attention between all tokens, in H heads of width W."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.proj_q = nn.Linear(cfg.dim, cfg.dim)
        self.proj_k = nn.Linear(cfg.dim, cfg.dim)
        self.proj_v = nn.Linear(cfg.dim, cfg.dim)
        self.n_heads = cfg.n_heads
        self.p_drop = cfg.p_drop_attn
        self.rotary = cfg.positions == "rotary"

    def forward(self, x: Tensor, mask: Tensor | None, at: Tensor | None = None) -> Tensor:
        """(B, S, D), bool (B, 1, 1, S) -> (B, S, D); or (B, P, D) at positions int64 (B, P)"""
        # One product instead of three; the queries' weights include the scale of the scores.
        scale = (x.size(-1) // self.n_heads) ** -0.5
        weights = [self.proj_q.weight * scale, self.proj_k.weight, self.proj_v.weight]
        biases = [self.proj_q.bias * scale, self.proj_k.bias, self.proj_v.bias]
        q = None
        if at is not None:
            q = F.linear(take(x, at), weights.pop(0), biases.pop(0))
            q = q.unflatten(-1, (self.n_heads, -1))  # (B, P, H, W)
        # (B, S, D) -> (B, S, 3 D) -> (B, S, 3, H, W) -> (B, S, H, W) -> (B, S, D)
        qkv = F.linear(x, torch.cat(weights), torch.cat(biases))
        qkv = qkv.unflatten(-1, (len(weights), self.n_heads, -1))
        if self.rotary:
            qkv = torch.cat([rotate(qkv[:, :, :-1]), qkv[:, :, -1:]], 2)
            q = None if q is None else rotate(q, at)
        return attention(qkv, mask, self.p_drop if self.training else 0.0, q).flatten(2)


def take(x: Tensor, at: Tensor) -> Tensor:
    """float (B, S, D), positions int64 (B, P) -> (B, P, D)"""
    # Whole rows; on CPUs this takes a quarter of the time of `gather`.
    rows = at + torch.arange(len(x), device=x.device)[:, None] * x.size(1)
    return x.flatten(0, 1).index_select(0, rows.flatten()).view(*at.shape, -1)


def rotate(x: Tensor, at: Tensor | None = None) -> Tensor:
    """Rotate pairs of elements of float (B, S, ..., W) by their position times a frequency.

    The positions are 0 to S - 1, or ``at``, int64 (B, S).
    """
    half = x.size(-1) // 2
    if at is None:
        at = torch.arange(x.size(1), device=x.device)[None]
    frequency = 10000 ** (torch.arange(half, device=x.device) / -half)
    angle = at[:, :, None] * frequency  # (1 or B, S, W / 2)
    angle = angle.view(*at.shape, *[1] * (x.dim() - 3), half)
    cos, sin, (a, b) = angle.cos().to(x.dtype), angle.sin().to(x.dtype), x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class PositionWiseFeedForward(nn.Module):
    """Two linear layers with a gelu between them, applied to each position separately."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(cfg.dim, cfg.dim_ff)
        self.fc2 = nn.Linear(cfg.dim_ff, cfg.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # (B, S, D) -> (B, S, D_ff) -> (B, S, D)


class Block(nn.Module):
    """One layer of BERT: attention, then feed-forward, each added to its input and normalised."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.attn = MultiHeadedSelfAttention(cfg)
        self.proj = nn.Linear(cfg.dim, cfg.dim)
        self.norm1 = LayerNorm(cfg.dim)
        self.pwff = PositionWiseFeedForward(cfg)
        self.norm2 = LayerNorm(cfg.dim)
        self.p_drop = cfg.p_drop_hidden

    def forward(self, x: Tensor, mask: Tensor | None, at: Tensor | None = None) -> Tensor:
        """(B, S, D), bool (B, 1, 1, S) -> (B, S, D); or (B, P, D) at positions int64 (B, P)"""
        p_drop = self.p_drop if self.training else 0.0
        attended = self.proj(self.attn(x, mask, at))
        h = self.norm1(add_dropped(x if at is None else take(x, at), attended, p_drop))
        return self.norm2(add_dropped(h, self.pwff(h), p_drop))


class Transformer(nn.Module):
    """BERT's encoder; ``embed`` replaces its `Embeddings`.

    References
    ----------
    Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
    Understanding", 2019, https://arxiv.org/abs/1810.04805
    """

    def __init__(self, cfg: Config, embed: nn.Module | None = None) -> None:
        super().__init__()
        self.embed = Embeddings(cfg) if embed is None else embed
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.apply(functools.partial(init_weights, std=cfg.init_std))

    def forward(
        self, x: Tensor, seg: Tensor, mask: Tensor | None = None, at: Tensor | None = None
    ) -> Tensor:
        """Encode a batch of token sequences.

        Parameters
        ----------
        x, seg : int64 (B, S)
            Token ids and segment ids.
        mask : (B, S), optional
            1 for tokens, 0 for padding. Leave it out if there is no padding: attention is faster.
        at : int64 (B, P), optional
            The positions to return. The last block does not compute the others.

        Returns
        -------
        float (B, S, D), or (B, P, D)
            Hidden states of the last layer; those of padding are meaningless.

        Raises
        ------
        ValueError
            S is larger than ``max_len``.
        """
        if mask is not None:
            mask = mask[:, None, None, :].bool()  # (B, 1, 1, S): every head, every query
        h = self.embed(x, seg)
        if torch.is_autocast_enabled(h.device.type):  # also the blocks' inputs and sums
            h = h.to(torch.get_autocast_dtype(h.device.type))
        for block in self.blocks[:-1]:
            h = block(h, mask)
        return self.blocks[-1](h, mask, at)


class BertModel4Pretrain(nn.Module):
    """BERT with its two pre-training heads: masked tokens and next sentence."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.transformer = Transformer(cfg)
        self.fc = nn.Linear(cfg.dim, cfg.dim)
        self.classifier = nn.Linear(cfg.dim, 2)
        self.linear = nn.Linear(cfg.dim, cfg.dim)
        self.norm = LayerNorm(cfg.dim)
        self.decoder = nn.Linear(cfg.dim, cfg.vocab_size, bias=False)
        self.decoder.weight = self.transformer.embed.tok_embed.weight
        self.decoder_bias = nn.Parameter(torch.zeros(cfg.vocab_size))
        for head in (self.fc, self.classifier, self.linear):
            init_weights(head, cfg.init_std)

    def forward(
        self, input_ids: Tensor, segment_ids: Tensor, input_mask: Tensor | None, masked_pos: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score the tokens at ``masked_pos`` (B, P), and the two answers to "is B next?".

        The other inputs are those of `Transformer.forward`. Returns float (B, P, V) and (B, 2).
        """
        at = F.pad(masked_pos, (1, 0))  # [CLS] at 0, and the masked ones
        h = self.transformer(input_ids, segment_ids, input_mask, at)
        at = torch.arange(1, at.size(1), device=h.device).expand_as(masked_pos)
        return self.score_tokens(h, at), self.score_next(h)

    def score_tokens(self, h: Tensor, at: Tensor) -> Tensor:
        """float (B, S, D), positions int64 (B, P) -> logits (B, P, V)"""
        h_masked = self.norm(F.gelu(self.linear(take(h, at))))
        return self.decoder(h_masked) + self.decoder_bias

    def score_next(self, h: Tensor) -> Tensor:
        """float (B, S, D) -> logits (B, 2)"""
        return self.classifier(torch.tanh(self.fc(h[:, 0])))


def init_weights(module: nn.Module, std: float = 0.02) -> None:
    """Initialise a linear or an embedding layer as BERT does: normal weights, biases 0.

    Google's code truncates the normal distribution at two standard deviations, which reduces the
    standard deviation to 0.88 of ``std``.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def attention(qkv: Tensor, mask: Tensor | None, p_drop: float, q: Tensor | None = None) -> Tensor:
    """Dot-product attention, softmax(q k^T) v, in the fastest way on the device.

    Parameters
    ----------
    qkv : float (B, S, 3, H, W), or (B, S, 2, H, W)
        Scaled queries, keys and values; or only keys and values.
    mask : bool (B, 1, 1, S), optional
        False where a key is padding.
    p_drop : float
        Share of the attention weights that are set to 0; the others are scaled up.
    q : float (B, P, H, W), optional
        The queries if ``qkv`` does not contain them.

    Returns
    -------
    float (B, S, H, W), or (B, P, H, W)
    """
    # The compiler cannot read the dropout below, but it keeps the products, which are faster.
    if _on_cpu(qkv) if p_drop > 0 else qkv.is_cpu and qkv.dtype == torch.bfloat16:
        return _Attention.apply(qkv, mask, p_drop, q)
    *queries, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, S, W) each
    q = queries[0] if q is None else q.transpose(1, 2)
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
    """Draw dropout's factors on the CPU: 0 with probability p_drop, otherwise 1 / (1 - p_drop)."""
    numel = shape.numel()
    dropped = min(round(p_drop * STEPS), STEPS - 1)
    bits = torch.empty(-(-numel // 4), dtype=torch.int64).random_(-(2**63), None)
    keep = bits.view(torch.int16)[:numel] >= dropped - STEPS // 2
    return keep.to(dtype).mul_(STEPS / (STEPS - dropped)).view(shape)


def _on_cpu(x: Tensor) -> bool:
    return x.is_cpu and not torch.compiler.is_compiling()  # the compiler makes its own kernels


class _Attention(torch.autograd.Function):
    """The same, a few heads at a time; N counts the heads of all examples."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, mask: Tensor | None, p_drop: float, q: Tensor | None = None
    ) -> Tensor:
        batch, length, _, heads, width = qkv.shape
        qkv = qkv.permute(2, 0, 3, 1, 4).reshape(-1, batch * heads, length, width)
        ctx.packed = q is None
        q = qkv[0] if q is None else q.transpose(1, 2).reshape(batch * heads, -1, width)
        k, v = qkv[-2:]
        bias = None
        if mask is not None:  # finite, so that a row with only padding gives no NaN
            bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -1e4)
            bias = bias.expand(-1, heads, -1, -1).flatten(0, 1)  # (N, 1, S)
        out = torch.empty_like(q)
        weights = q.new_empty(len(q), q.size(1), length)
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
        ctx.save_for_backward(None if ctx.packed else q, qkv, weights, factors)
        return out.unflatten(0, (batch, heads)).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None, Tensor | None]:
        q, qkv, weights, factors = ctx.saved_tensors
        d_qkv = torch.empty_like(qkv)
        q, d_q = (qkv[0], d_qkv[0]) if ctx.packed else (q, torch.empty_like(q))
        (k, v), (d_k, d_v) = qkv[-2:], d_qkv[-2:]
        unpack = d_out.shape[0], d_out.shape[2]  # N -> B, H
        d_out = d_out.transpose(1, 2).reshape(q.shape)
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
        d_qkv = d_qkv.unflatten(1, unpack).permute(1, 3, 0, 2, 4)
        d_q = None if ctx.packed else d_q.unflatten(0, unpack).transpose(1, 2)
        return d_qkv, None, None, d_q


def _parts(weights: Tensor) -> list[slice]:
    n, queries, keys = weights.shape
    size = max(1, PART // (queries * keys))
    return [slice(start, start + size) for start in range(0, n, size)]
