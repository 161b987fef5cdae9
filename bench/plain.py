"""BERT in plain PyTorch, as in the implementations that this project descends from.

Every operation is one line of PyTorch in float32: three projections, the whole matrix of attention
weights, layer normalisation and gelu by their formulas, Adam parameter by parameter. The names of
the parameters are those of `models.BertModel4Pretrain`, so that both can hold the same weights.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models


class LayerNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = (x - mean).pow(2).mean(-1, keepdim=True)
        return self.gamma * ((x - mean) / torch.sqrt(variance + 1e-12)) + self.beta


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


class Embeddings(nn.Module):
    def __init__(self, cfg: models.Config) -> None:
        super().__init__()
        self.tok_embed = nn.Embedding(cfg.vocab_size, cfg.dim)
        self.pos_embed = nn.Embedding(cfg.max_len, cfg.dim)
        self.seg_embed = nn.Embedding(cfg.n_segments, cfg.dim)
        self.norm, self.drop = LayerNorm(cfg.dim), nn.Dropout(cfg.p_drop_hidden)

    def forward(self, x: Tensor, seg: Tensor) -> Tensor:
        place = torch.arange(x.size(1), device=x.device).expand_as(x)
        return self.drop(self.norm(self.tok_embed(x) + self.pos_embed(place) + self.seg_embed(seg)))


class Attention(nn.Module):
    def __init__(self, cfg: models.Config) -> None:
        super().__init__()
        self.proj_q, self.proj_k, self.proj_v = (nn.Linear(cfg.dim, cfg.dim) for _ in range(3))
        self.drop, self.n_heads = nn.Dropout(cfg.p_drop_attn), cfg.n_heads

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            proj(x).view(*x.shape[:2], self.n_heads, -1).transpose(1, 2)
            for proj in (self.proj_q, self.proj_k, self.proj_v)
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))  # (B, H, S, S)
        scores = scores - 10000.0 * (1.0 - mask[:, None, None, :].float())
        h = self.drop(F.softmax(scores, dim=-1)) @ v
        return h.transpose(1, 2).contiguous().view_as(x)


class FeedForward(nn.Module):
    def __init__(self, cfg: models.Config) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(cfg.dim, cfg.dim_ff), nn.Linear(cfg.dim_ff, cfg.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, cfg: models.Config) -> None:
        super().__init__()
        self.attn, self.proj = Attention(cfg), nn.Linear(cfg.dim, cfg.dim)
        self.norm1, self.pwff, self.norm2 = LayerNorm(cfg.dim), FeedForward(cfg), LayerNorm(cfg.dim)
        self.drop = nn.Dropout(cfg.p_drop_hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.norm1(x + self.drop(self.proj(self.attn(x, mask))))
        return self.norm2(h + self.drop(self.pwff(h)))


class Transformer(nn.Module):
    def __init__(self, cfg: models.Config) -> None:
        super().__init__()
        self.embed = Embeddings(cfg)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))

    def forward(
        self, x: Tensor, seg: Tensor, mask: Tensor | None = None, at: Tensor | None = None
    ) -> Tensor:
        """Like `models.Transformer.forward`; without a mask, nothing is masked.

        It computes the hidden states of all positions, then selects those ``at`` some positions.
        """
        mask = torch.ones_like(x) if mask is None else mask
        h = self.embed(x, seg)
        for block in self.blocks:
            h = block(h, mask)
        return h if at is None else models.take(h, at)


class BertModel4Pretrain(nn.Module):
    def __init__(self, cfg: models.Config) -> None:
        super().__init__()
        self.transformer = Transformer(cfg)
        self.fc, self.classifier = nn.Linear(cfg.dim, cfg.dim), nn.Linear(cfg.dim, 2)
        self.linear, self.norm = nn.Linear(cfg.dim, cfg.dim), LayerNorm(cfg.dim)
        self.apply(models.init_weights)
        self.decoder = nn.Linear(cfg.dim, cfg.vocab_size, bias=False)
        self.decoder.weight = self.transformer.embed.tok_embed.weight
        self.decoder_bias = nn.Parameter(torch.zeros(cfg.vocab_size))

    def forward(
        self, input_ids: Tensor, segment_ids: Tensor, input_mask: Tensor | None, masked_pos: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `models.BertModel4Pretrain.forward`."""
        h = self.transformer(input_ids, segment_ids, input_mask)
        return self.score_tokens(h, masked_pos), self.score_next(h)

    def score_tokens(self, h: Tensor, at: Tensor) -> Tensor:
        at = at[:, :, None].expand(-1, -1, h.size(-1))
        h_masked = self.norm(gelu(self.linear(torch.gather(h, 1, at))))
        return self.decoder(h_masked) + self.decoder_bias

    def score_next(self, h: Tensor) -> Tensor:
        return self.classifier(torch.tanh(self.fc(h[:, 0])))


class Adam:
    """BertAdam in plain Python, without a schedule: one parameter after the other."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        self.named = list(model.named_parameters())
        self.state = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self.named}
        self.lr = lr

    def zero_grad(self) -> None:
        for _, p in self.named:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for name, p in self.named:
            torch.nn.utils.clip_grad_norm_(p, 1.0)
            mean, square = self.state[name]
            mean.mul_(0.9).add_(p.grad, alpha=0.1)
            square.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
            update = mean / (square.sqrt() + 1e-6)
            if not name.endswith(("bias", "gamma", "beta")):
                update += 0.01 * p
            p.add_(update, alpha=-self.lr)
