"""Transformer layers: sub-layers around a residual stream."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.attention import CrossAttention, SelfAttention, merge_masks
from model.config import AttentionType, TransformerConfig
from model.decoding import KeyValueCache
from model.feedforward import make_feed_forward
from model.moe import MixtureOfExperts
from model.norm import make_norm


class DropPath(nn.Module):
    """Skips a sub-layer for some samples in training (Huang et al. 2016, stochastic depth)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Set whole samples of x [B, ...] to zero and scale the others to keep the mean."""
        if not self.training or self.probability == 0.0:
            return x
        kept = torch.rand(len(x), *(1 for _ in x.shape[1:]), device=x.device) >= self.probability
        return x * kept / (1 - self.probability)


class BaseTransformerLayer(nn.Module):
    """Base of the layers: norm strategy, dropout and residual connection, and the feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm_strategy == "pre_norm"
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = DropPath(config.drop_path)
        self.feed_forward_norm = make_norm(config)
        self.feed_forward: nn.Module = (
            MixtureOfExperts(config) if config.use_moe else make_feed_forward(config)
        )

    @property
    def ends_with_product(self) -> bool:
        """Whether the output is the input plus a matrix product, which no backward pass needs.

        Dropout after the product makes a repetition of the layer go on beyond it.
        """
        drops = self.training and (self.dropout.p or self.drop_path.probability)
        return self.pre_norm and not drops and not isinstance(self.feed_forward, MixtureOfExperts)

    def residual(self, x: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Return x + f(norm(x)) with pre-norm, norm(x + f(x)) with post-norm."""
        if self.pre_norm:
            return x + self.drop_path(self.dropout(sublayer(norm(x))))
        return norm(x + self.drop_path(self.dropout(sublayer(x))))

    def feed_forward_block(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Apply the feed-forward sub-layer to x [B, T, d_model].

        Experts leave the padding [B, T] out of their balance loss and statistics.
        """
        if isinstance(self.feed_forward, MixtureOfExperts):
            experts = self.feed_forward
            return self.residual(x, self.feed_forward_norm, lambda h: experts(h, padding))
        return self.residual(x, self.feed_forward_norm, self.feed_forward)


class EncoderLayer(BaseTransformerLayer):
    """Self-attention, causal if `is_causal`, then feed-forward."""

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
        self,
        x: Tensor,
        padding: Tensor | None = None,
        attention_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        start: int = 0,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Apply the layer to x [B, T, d_model] at positions start, start + 1, ...

        padding [B, T] bool is True on padding; attention_mask as for `merge_masks`. It is causal
        where the layer or the call is. With the cache of step-by-step decoding, T is 1.
        """
        mask = merge_masks(padding, attention_mask)
        is_causal = (self.is_causal or is_causal) and cache is None

        def attend(h: Tensor) -> Tensor:
            return self.self_attention(h, mask, is_causal, start=start, cache=cache)

        x = self.residual(x, self.self_attention_norm, attend)
        return self.feed_forward_block(x, padding)


class VariateLayer(BaseTransformerLayer):
    """Attention among the variates of a sample at each token, then feed-forward.

    Variates have no order, so no position enters, and any number of them can be given (Woo et al.
    2024, Moirai; Cohen et al. 2024, Toto; Ansari et al. 2025, Chronos-2).
    """

    def __init__(self, config: TransformerConfig, att_type: AttentionType, variates: int) -> None:
        super().__init__(config)
        self.variates = variates
        """Consecutive rows that are one sample's."""
        self.variate_attention_norm = make_norm(config)
        # Frequencies are those of time.
        att_type = "flash" if att_type == "frequency" else att_type
        self.variate_attention = SelfAttention(config, att_type)
        self.variate_attention.rotary = False

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Apply the layer to x [B * variates, T, d_model].

        padding [B * variates, T] bool is True on tokens that the others do not attend to.
        """
        mask = None if padding is None else merge_masks(self._exchanged(padding, self.variates))
        tokens = x.shape[1]

        def attend(h: Tensor) -> Tensor:
            among = self.variate_attention(self._exchanged(h, self.variates), mask)
            return self._exchanged(among, tokens)

        x = self.residual(x, self.variate_attention_norm, attend)
        return self.feed_forward_block(x, padding)

    @staticmethod
    def _exchanged(x: Tensor, count: int) -> Tensor:
        """Return x [B * count, n, ...] as [B * n, count, ...]."""
        return x.unflatten(0, (-1, count)).transpose(1, 2).flatten(0, 1)


class DecoderLayer(BaseTransformerLayer):
    """Self-attention, cross-attention to the memory, then feed-forward."""

    def __init__(
        self, config: TransformerConfig, *, is_causal: bool = True, on_one_axis: bool = False
    ) -> None:
        super().__init__(config)
        self.is_causal = is_causal
        self.self_attention_norm = make_norm(config)
        self.self_attention = SelfAttention(config, config.att_type_of_decoder)
        self.cross_attention_norm = make_norm(config)
        att_type = config.att_type_of_decoder
        self.cross_attention = CrossAttention(config, att_type, on_one_axis=on_one_axis)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        memory_padding: Tensor | None = None,
        padding: Tensor | None = None,
        attention_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        *,
        start: int = 0,
        caches: dict[str, KeyValueCache] | None = None,
    ) -> Tensor:
        """Apply the layer to x [B, T, d_model] at positions start, start + 1, ...

        memory [B, S, d_model]; memory_padding [B, S] and padding [B, T] bool, True on padding;
        attention_mask, among the T, and memory_mask, over the S, as for `merge_masks`. With the
        caches of step-by-step decoding, T is 1.
        """
        mask = merge_masks(padding, attention_mask)
        memory_mask = merge_masks(memory_padding, memory_mask)
        is_causal = self.is_causal and caches is None
        own = None if caches is None else caches["self_attn"]
        cross = None if caches is None else caches["cross_attn"]

        def attend(h: Tensor) -> Tensor:
            return self.self_attention(h, mask, is_causal, start=start, cache=own)

        def attend_to_memory(h: Tensor) -> Tensor:
            return self.cross_attention(h, memory, memory_mask, start=start, cache=cross)

        x = self.residual(x, self.self_attention_norm, attend)
        x = self.residual(x, self.cross_attention_norm, attend_to_memory)
        return self.feed_forward_block(x, padding)
