"""BERT: the encoder that every task shares, and the two heads that pre-train it."""

import dataclasses
import functools
import os
from typing import Annotated

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import utils
from attention import add_dropped, attention, dropout

MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # bytes
Probability = Annotated[float, pydantic.Field(ge=0, lt=1)]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=utils.STRICT)
class Config:
    """The sizes of a BERT.

    Attributes
    ----------
    dim, n_layers, n_heads, dim_ff : int
        Width of the hidden states, blocks, attention heads (they share ``dim`` equally), width
        inside the feed-forward layers.
    p_drop_hidden, p_drop_attn : float
        Dropout on hidden states and on attention weights.
    max_len, n_segments : int
        Longest sequence, and number of segments, that have an embedding.
    init_std : float
        Standard deviation of the initial weights: BERT's 0.02, when the JSON leaves it out. That
        suits a width of 768; narrow models learn sooner with more, as sqrt(768 / dim).
    vocab_size : int or None
        None, when the JSON leaves it out: the vocabulary file says it (`with_vocab_size`).
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
    vocab_size: pydantic.PositiveInt | None = None

    @pydantic.model_validator(mode="after")
    def _heads_share_dim(self) -> "Config":
        if self.dim % self.n_heads:
            raise ValueError(f"'dim' {self.dim} is not divisible by 'n_heads' {self.n_heads}")
        rows = (self.vocab_size or 0) + self.max_len + self.n_segments
        numbers = self.dim * (rows + self.n_layers * (4 * self.dim + 2 * self.dim_ff))
        if 4 * numbers > MEMORY:  # a file of sizes may come from anywhere
            raise ValueError(
                f"a model of these sizes has {numbers:.2g} weights, and this machine no room for it"
            )
        return self

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> "Config":
        """Read a JSON file; every fault is one `utils.UserError` naming the file and the keys."""
        return utils.read_config(cls, path)

    def with_vocab_size(
        self,
        vocab_size: int,
        model_cfg: str | os.PathLike[str],
        vocab: str | os.PathLike[str],
    ) -> "Config":
        """Return this config with the vocabulary's size; the two paths are for the message.

        Raises
        ------
        utils.UserError
            The config names another size.
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
        return F.layer_norm(x, self.gamma.shape, self.gamma, self.beta, eps=1e-12)


class Embeddings(nn.Module):
    """The sum of token, position and segment embeddings, normalised."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        if cfg.vocab_size is None:
            raise ValueError("the config has no vocab_size; fill it in with with_vocab_size")
        self.tok_embed = nn.Embedding(cfg.vocab_size, cfg.dim)
        self.pos_embed = nn.Embedding(cfg.max_len, cfg.dim)
        self.seg_embed = nn.Embedding(cfg.n_segments, cfg.dim)
        self.norm = LayerNorm(cfg.dim)
        self.p_drop = cfg.p_drop_hidden

    def forward(self, x: Tensor, seg: Tensor) -> Tensor:
        """(B, S), (B, S) -> (B, S, D)"""
        length, longest = x.size(1), self.pos_embed.num_embeddings
        if length > longest:
            raise ValueError(f"a sequence of {length} tokens is longer than max_len {longest}")
        position = self.pos_embed.weight[:length]  # (S, D), the same for the whole batch
        h = self.norm(self.tok_embed(x) + position + self.seg_embed(seg))
        return dropout(h, self.p_drop if self.training else 0.0)


class MultiHeadedSelfAttention(nn.Module):
    """Scaled dot-product attention of every token to every token, in H heads of width W."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.proj_q = nn.Linear(cfg.dim, cfg.dim)
        self.proj_k = nn.Linear(cfg.dim, cfg.dim)
        self.proj_v = nn.Linear(cfg.dim, cfg.dim)
        self.n_heads = cfg.n_heads
        self.p_drop = cfg.p_drop_attn

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, S, D), bool (B, 1, 1, S) -> (B, S, D)"""
        # One product instead of three; the scale of the scores goes into the queries' weights.
        scale = (x.size(-1) // self.n_heads) ** -0.5
        weight = torch.cat([self.proj_q.weight * scale, self.proj_k.weight, self.proj_v.weight])
        bias = torch.cat([self.proj_q.bias * scale, self.proj_k.bias, self.proj_v.bias])
        # (B, S, D) -> (B, S, 3 D) -> (B, S, 3, H, W) -> (B, S, H, W) -> (B, S, D)
        qkv = F.linear(x, weight, bias).unflatten(-1, (3, self.n_heads, -1))
        return attention(qkv, mask, self.p_drop if self.training else 0.0).flatten(2)


class PositionWiseFeedForward(nn.Module):
    """Two linear layers with a gelu between, applied to each position by itself."""

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

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        p_drop = self.p_drop if self.training else 0.0
        h = self.norm1(add_dropped(x, self.proj(self.attn(x, mask)), p_drop))
        return self.norm2(add_dropped(h, self.pwff(h), p_drop))


class Transformer(nn.Module):
    """BERT's encoder.

    References
    ----------
    Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
    Understanding", 2019, https://arxiv.org/abs/1810.04805
    """

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.embed = Embeddings(cfg)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.apply(functools.partial(init_weights, std=cfg.init_std))

    def forward(self, x: Tensor, seg: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode a batch of token sequences.

        Parameters
        ----------
        x, seg : int64 (B, S)
            Token ids and segment ids.
        mask : (B, S), optional
            1 for tokens, 0 for padding. Without padding leave it out: attention is faster then.

        Returns
        -------
        float (B, S, D)
            Hidden states of the last layer. Those of padding mean nothing.

        Raises
        ------
        ValueError
            S is larger than ``max_len``.
        """
        if mask is not None:
            mask = mask[:, None, None, :].bool()  # (B, 1, 1, S): every head, every query
        h = self.embed(x, seg)
        if torch.is_autocast_enabled(h.device.type):  # the blocks' inputs and sums, too
            h = h.to(torch.get_autocast_dtype(h.device.type))
        for block in self.blocks:
            h = block(h, mask)
        return h


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
        """Score the tokens at the masked positions, and the two answers to "is B next?".

        Parameters
        ----------
        input_ids, segment_ids, input_mask
            As in `Transformer.forward`.
        masked_pos : int64 (B, P)
            Positions to predict; the head is computed there only.

        Returns
        -------
        logits_lm : float (B, P, V)
        logits_clsf : float (B, 2)
        """
        h = self.transformer(input_ids, segment_ids, input_mask)  # (B, S, D)
        logits_clsf = self.classifier(torch.tanh(self.fc(h[:, 0])))
        at = masked_pos[:, :, None].expand(-1, -1, h.size(-1))  # (B, P) -> (B, P, D)
        h_masked = self.norm(F.gelu(self.linear(h.gather(1, at))))
        return self.decoder(h_masked) + self.decoder_bias, logits_clsf


def init_weights(module: nn.Module, std: float = 0.02) -> None:
    """Initialise a linear or an embedding layer as BERT does: normal of 0.02, biases 0.

    Google's code cuts the normal at two standard deviations, Hugging Face's does not; nor do we,
    so that the deviation is the one that is named and not 0.88 of it.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
