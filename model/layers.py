"""The transformer's layers: sub-layers around a residual stream."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.attention import CrossAttention, SelfAttention, may_see
from model.config import AttentionType, TransformerConfig
from model.decoding import KeyValue
from model.feedforward import make_feed_forward
from model.moe import MixtureOfExperts
from model.norm import make_norm


class DropPath(nn.Module):
    """Skip the sub-layer for some samples in training (Huang et al. 2016)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x
        kept = torch.rand(len(x), *(1 for _ in x.shape[1:]), device=x.device) >= self.probability
        return x * kept / (1 - self.probability)


class BaseTransformerLayer(nn.Module):
    """The norm strategy, dropout and residual around each sub-layer, and the feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm_strategy == "pre_norm"
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = DropPath(config.drop_path)
        self.feed_forward_norm = make_norm(config)
        self.feed_forward: nn.Module = (
            MixtureOfExperts(config) if config.use_moe else make_feed_forward(config)
        )

    def residual(self, x: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Pre-norm: x + f(norm(x)). Post-norm: norm(x + f(x))."""
        if self.pre_norm:
            return x + self.drop_path(self.dropout(sublayer(norm(x))))
        return norm(x + self.drop_path(self.dropout(sublayer(x))))

    def feed_forward_block(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Dense, or experts whose balance loss and statistics leave padding out."""
        if isinstance(self.feed_forward, MixtureOfExperts):
            experts = self.feed_forward
            return self.residual(x, self.feed_forward_norm, lambda h: experts(h, padding))
        return self.residual(x, self.feed_forward_norm, self.feed_forward)


class EncoderLayer(BaseTransformerLayer):
    """Self-attention, then feed-forward; causal where told so."""

    def __init__(
        self,
        config: TransformerConfig,
        att_type: AttentionType | None = None,
        *,
        is_causal: bool = False,
    ) -> None:
        super().__init__(config)
        self.is_causal = is_causal
        self.self_attention_norm = make_norm(config)
        self.self_attention = SelfAttention(config, att_type)

    def forward(
        self, x: Tensor, padding: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """x [B, T, d_model]; padding [B, T] bool, True on padding; attention_mask [T, T] or
        [B, T, T] bool, True where a query may not look."""
        mask = may_see(padding, attention_mask)
        x = self.residual(
            x, self.self_attention_norm, lambda h: self.self_attention(h, mask, self.is_causal)
        )
        return self.feed_forward_block(x, padding)


class DecoderLayer(BaseTransformerLayer):
    """Self-attention, attention over the memory, then feed-forward."""

    def __init__(
        self, config: TransformerConfig, *, is_causal: bool = True, on_one_axis: bool = False
    ) -> None:
        super().__init__(config)
        self.is_causal = is_causal
        self.self_attention_norm = make_norm(config)
        self.self_attention = SelfAttention(config, config.att_type_of_decoder)
        self.cross_attention_norm = make_norm(config)
        self.cross_attention = CrossAttention(
            config, config.att_type_of_decoder, on_one_axis=on_one_axis
        )

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        memory_padding: Tensor | None = None,
        padding: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        start: int = 0,
        state: dict[str, KeyValue] | None = None,
    ) -> Tensor:
        """x [B, T, d_model] at positions start, start + 1, ...; memory [B, S, d_model];
        memory_padding [B, S] and padding [B, T] bool, True on padding. With a state, T is 1."""
        mask, memory_mask = may_see(padding, attention_mask), may_see(memory_padding)
        own, cross = (None, None) if state is None else (state["self_attn"], state["cross_attn"])
        is_causal = self.is_causal and state is None
        x = self.residual(
            x,
            self.self_attention_norm,
            lambda h: self.self_attention(h, mask, is_causal, start=start, cache=own),
        )
        x = self.residual(
            x,
            self.cross_attention_norm,
            lambda h: self.cross_attention(h, memory, memory_mask, start=start, cache=cross),
        )
        return self.feed_forward_block(x, padding)
