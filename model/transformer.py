"""The library's encoder and decoder, for use without Forescale's training."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from model import decoding
from model.arguments import (
    attention_mask,
    check_calendar,
    check_sequence,
    configuration,
    padding_mask,
    without_padding,
)
from model.config import FREQUENCY_SEES_ALL
from model.embedding import CalendarEmbedding
from model.errors import UserError
from model.init import postponed
from model.layers import DecoderLayer, EncoderLayer
from model.stack import make_layers
from model.standalone import StandaloneStack


class TransformerEncoder(StandaloneStack):
    """A transformer encoder, [B, T, input_size] -> [B, T, d_model].

    Sizes: d_model, nhead, num_kv_heads (grouped-query attention), num_layers, dim_feedforward,
    max_seq_len. Kinds:

    - att_type: standard, xformer, flash (one mathematics, other kernels), frequency (freq_modes)
    - norm_strategy: pre_norm, post_norm; use_adaptive_ln: layer, rms, adaptive, or a callable that
      makes a norm from d_model; use_final_norm
    - use_swiglu: a gated feed-forward; without it, activation is gelu, relu or swish
    - use_moe: num_experts experts, top_k for each token; add `aux_loss()` to the loss
    - share_layers: one layer's weights in all; use_gradient_checkpointing: less memory, more time
    - time_feature_sizes: number of values of each calendar feature that forward takes

    `options` are the other fields of `model.config.TransformerConfig`, which documents all, such
    as position="rotary" or attention_dropout=0.1. Raises UserError for wrong ones, and warns of
    those without effect.

        encoder = TransformerEncoder(input_size=7, d_model=64, nhead=4, att_type="flash")
        y = encoder(torch.randn(2, 96, 7))    # [2, 96, 64]
    """

    def __init__(
        self,
        input_size: int,
        d_model: int = 512,
        nhead: int = 8,
        num_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | None = None,
        att_type: str = "standard",
        norm_strategy: str = "pre_norm",
        use_adaptive_ln: str | Callable[[int], nn.Module] = "layer",
        use_swiglu: bool = True,
        use_gradient_checkpointing: bool = False,
        share_layers: bool = False,
        use_final_norm: bool = True,
        use_moe: bool = False,
        num_experts: int = 8,
        top_k: int = 2,
        num_kv_heads: int | None = None,
        max_seq_len: int = 5000,
        freq_modes: int = 32,
        time_feature_sizes: Sequence[int] = (),
        **options: Any,
    ) -> None:
        config = configuration(locals(), unused=("decoder_att_type",))
        with postponed():
            layers = make_layers(config, num_layers, lambda: EncoderLayer(config))
            super().__init__(input_size, config, layers, use_gradient_checkpointing)
            self.calendar = (
                CalendarEmbedding(time_feature_sizes, d_model) if time_feature_sizes else None
            )
        self._initialise()

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
        time_features: Tensor | None = None,
    ) -> Tensor:
        """Encode src [B, T, input_size] into [B, T, d_model].

        Masks are those of torch.nn.TransformerEncoder: mask [T, T], [B, T, T] or [B * nhead, T, T]
        is bool, True where a query may not look, or floats that are added to the scores;
        src_key_padding_mask [B, T] is bool, True on padding, or floats, -inf on padding.
        is_causal hides the future, with or without a mask. time_features [B, T, features] are whole
        numbers from 0. Raises UserError for another shape or meaning.
        """
        self._forget_auxiliary_loss()
        batch, length = check_sequence(src, "src", self.input_size, self.dtype)
        mask = attention_mask(mask, "mask", batch, self.config.nhead, length, length)
        padding = padding_mask(src_key_padding_mask, "src_key_padding_mask", batch, length)
        if is_causal and self.config.att_type == "frequency":
            raise UserError(f"is_causal: {FREQUENCY_SEES_ALL}")
        x = self.positions(self.input_projection(without_padding(src, padding)))
        if (time_features is None) != (self.calendar is None):
            raise UserError(
                "time_features: name their sizes as time_feature_sizes first"
                if self.calendar is None
                else "time_features: this encoder has time_feature_sizes and needs their values"
            )
        if self.calendar is not None and time_features is not None:
            check_calendar(time_features, self.calendar.sizes, (batch, length))
            x = x + self.calendar(time_features, 1, align="start")
        for layer in self.layers:
            x = self._run(layer, x, padding, mask, is_causal)
        return self.final_norm(x)


class TransformerDecoder(StandaloneStack):
    """A transformer decoder over a memory, [B, T, input_size] -> [B, T, output_size].

    The memory is [B, S, d_model], for example an encoder's output. The decoder is causal unless
    `is_causal` is False. The other arguments are those of `TransformerEncoder`; `decoder_att_type`
    counts more than att_type. `forward_one_step` decodes token by token.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        d_model: int = 512,
        nhead: int = 8,
        num_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | None = None,
        att_type: str = "standard",
        norm_strategy: str = "pre_norm",
        use_adaptive_ln: str | Callable[[int], nn.Module] = "layer",
        use_swiglu: bool = True,
        use_gradient_checkpointing: bool = False,
        share_layers: bool = False,
        use_final_norm: bool = True,
        use_moe: bool = False,
        num_experts: int = 8,
        top_k: int = 2,
        num_kv_heads: int | None = None,
        max_seq_len: int = 5000,
        freq_modes: int = 32,
        is_causal: bool = True,
        **options: Any,
    ) -> None:
        config = configuration(locals())
        if is_causal and config.att_type_of_decoder == "frequency":
            raise UserError(f"att_type: {FREQUENCY_SEES_ALL}")
        with postponed():
            layers = make_layers(
                config, num_layers, lambda: DecoderLayer(config, is_causal=is_causal)
            )
            super().__init__(input_size, config, layers, use_gradient_checkpointing)
            self.is_causal = is_causal
            self.output_projection = nn.Linear(d_model, output_size)
        self._initialise()

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Decode tgt [B, T, input_size] over memory [B, S, d_model] into [B, T, output_size].

        Masks are those of torch.nn.TransformerDecoder, see `TransformerEncoder.forward`: tgt_mask
        [T, T] counts beside the causal order, memory_mask is [T, S], and the padding masks are
        [B, T] and [B, S]. Whether the decoder is causal was said when it was made: tgt_is_causal
        may repeat it. Raises UserError for another shape or meaning.
        """
        self._forget_auxiliary_loss()
        batch, length = check_sequence(tgt, "tgt", self.input_size, self.dtype)
        if tgt_is_causal is not None and tgt_is_causal != self.is_causal:
            raise UserError(
                f"tgt_is_causal: this decoder was made with is_causal={self.is_causal}; make "
                "another, or leave it out"
            )
        if memory_is_causal:
            raise UserError("memory_is_causal: give the mask itself as memory_mask")
        padding = padding_mask(tgt_key_padding_mask, "tgt_key_padding_mask", batch, length)
        memory_padding = self._memory_padding(memory, memory_key_padding_mask, batch)
        heads, seen = self.config.nhead, memory.shape[1]
        tgt_mask = attention_mask(tgt_mask, "tgt_mask", batch, heads, length, length)
        memory_mask = attention_mask(memory_mask, "memory_mask", batch, heads, length, seen)
        x = self.positions(self.input_projection(without_padding(tgt, padding)))
        memory = without_padding(memory, memory_padding)
        for layer in self.layers:
            x = self._run(layer, x, memory, memory_padding, padding, tgt_mask, memory_mask)
        return self.output_projection(self.final_norm(x))

    @torch.no_grad()
    def forward_one_step(
        self,
        tgt: Tensor,
        memory: Tensor,
        incremental_state: dict[str, Any] | None = None,
        memory_key_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Decode the next token tgt [B, 1, input_size] over memory [B, S, d_model].

        Returns its output [B, 1, output_size] and the state for the next step; None or an empty
        dict starts. The output equals that of the same position in a full forward. No gradient is
        kept. Raises UserError for a state of another decoder, batch or memory; a step that fails
        leaves the state as it was.
        """
        batch, length = check_sequence(tgt, "tgt", self.input_size, self.dtype)
        if length != 1:
            raise UserError(f"tgt: one step takes one token, [B, 1, input_size]; got {length}")
        if not self.is_causal:
            raise UserError("is_causal: a decoder that sees the future cannot go step by step")
        padding = self._memory_padding(memory, memory_key_padding_mask, batch)
        state = {} if incremental_state is None else incremental_state
        decoding.check(state, len(self.layers), batch, memory.shape[1])
        visible = without_padding(memory, padding)
        start = decoding.length(state)
        with decoding.unchanged_on_error(state):
            self._check_memory(state, memory, visible)
            x = self.positions(self.input_projection(tgt), start)
            for index, layer in enumerate(self.layers):
                caches = decoding.layer_caches(state, index)
                x = layer(x, visible, padding, start=start, caches=caches)
            output = self.output_projection(self.final_norm(x))
            decoding.layer_caches(state, 0)["cross_attn"].source = weakref.ref(memory)
        return output, state

    def _check_memory(self, state: dict[str, Any], memory: Tensor, visible: Tensor) -> None:
        """Raise UserError if the state was computed from another memory.

        Keys are computed again where that is another tensor than in the step before.
        """
        cache = decoding.layer_caches(state, 0)["cross_attn"]
        if cache.length and (cache.source is None or cache.source() is not memory):
            first = cast(DecoderLayer, self.layers[0])
            key, _ = first.cross_attention.keys_and_values(visible)
            decoding.check_memory(cache, memory, key)

    def _memory_padding(self, memory: Tensor, padding: Tensor | None, batch: int) -> Tensor | None:
        """Return the memory's padding as bool; raise UserError if either has a wrong shape."""
        if memory.ndim != 3 or memory.shape[0] != batch or memory.shape[2] != self.config.d_model:
            raise UserError(
                f"memory: expected [{batch}, S, d_model={self.config.d_model}], "
                f"got {list(memory.shape)}"
            )
        return padding_mask(padding, "memory_key_padding_mask", batch, memory.shape[1])
