"""The transformer: layers around a residual stream, an encoder and a decoder of them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from model.attention import CrossAttention, SelfAttention
from model.config import TransformerConfig
from model.feedforward import make_feed_forward
from model.moe import MixtureOfExperts
from model.norm import make_norm


class BaseTransformerLayer(nn.Module):
    """The norm strategy, dropout and residual around each sub-layer, and the feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm_strategy == "pre_norm"
        self.dropout = nn.Dropout(config.dropout)
        self.feed_forward_norm = make_norm(config)
        self.feed_forward: nn.Module = (
            MixtureOfExperts(config) if config.use_moe else make_feed_forward(config)
        )

    def residual(self, x: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(sublayer(norm(x)))
        return norm(x + self.dropout(sublayer(x)))

    def feed_forward_block(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if isinstance(self.feed_forward, MixtureOfExperts):
            mixture = self.feed_forward
            return self.residual(x, self.feed_forward_norm, lambda h: mixture(h, mask))
        return self.residual(x, self.feed_forward_norm, self.feed_forward)


class EncoderLayer(BaseTransformerLayer):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.self_attention_norm = make_norm(config)
        self.self_attention = SelfAttention(config)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, T, d_model]; mask [B, T] bool, False on padding."""
        x = self.residual(x, self.self_attention_norm, lambda h: self.self_attention(h, mask))
        return self.feed_forward_block(x, mask)


class DecoderLayer(BaseTransformerLayer):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.self_attention_norm = make_norm(config)
        self.self_attention = SelfAttention(config)
        self.cross_attention_norm = make_norm(config)
        self.cross_attention = CrossAttention(config)

    def forward(
        self, x: Tensor, memory: Tensor, memory_mask: Tensor | None = None, is_causal: bool = True
    ) -> Tensor:
        """x [B, T, d_model]; memory [B, S, d_model]; memory_mask [B, S] bool."""
        x = self.residual(
            x, self.self_attention_norm, lambda h: self.self_attention(h, is_causal=is_causal)
        )
        x = self.residual(
            x, self.cross_attention_norm, lambda h: self.cross_attention(h, memory, memory_mask)
        )
        return self.feed_forward_block(x, None)


class _Stack(nn.Module):
    """An input projection, layers, a final norm."""

    def __init__(self, input_size: int, config: TransformerConfig, layers: list[nn.Module]) -> None:
        super().__init__()
        self.input_projection = nn.Linear(input_size, config.d_model)
        self.layers = nn.ModuleList(layers)
        self.final_norm = make_norm(config) if config.use_final_norm else nn.Identity()


class TransformerEncoder(_Stack):
    """[B, T, input_size] -> [B, T, d_model]."""

    def __init__(self, input_size: int, config: TransformerConfig) -> None:
        super().__init__(
            input_size, config, [EncoderLayer(config) for _ in range(config.num_layers)]
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.input_projection(x)
        for layer in self.layers:
            x = layer(x, mask)
        return self.final_norm(x)


class TransformerDecoder(_Stack):
    """[B, T, input_size] and a memory [B, S, d_model] -> [B, T, output_size]."""

    def __init__(
        self, input_size: int, output_size: int, config: TransformerConfig, num_layers: int
    ) -> None:
        super().__init__(input_size, config, [DecoderLayer(config) for _ in range(num_layers)])
        self.output_projection = nn.Linear(config.d_model, output_size)

    def forward(
        self, x: Tensor, memory: Tensor, memory_mask: Tensor | None = None, is_causal: bool = True
    ) -> Tensor:
        x = self.input_projection(x)
        for layer in self.layers:
            x = layer(x, memory, memory_mask, is_causal)
        return self.output_projection(self.final_norm(x))
