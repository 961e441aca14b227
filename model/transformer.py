"""The library's encoder and decoder, for use without Forescale's training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from model import decoding
from model.config import FREQUENCY_SEES_ALL, TransformerConfig
from model.embedding import CalendarEmbedding
from model.errors import UserError
from model.init import initialise
from model.layers import DecoderLayer, EncoderLayer
from model.recompute import Recompute
from model.sentences import nearest
from model.stack import Stack, make_layers, run_layer
from model.validation import mistake


class TransformerEncoder(Stack):
    """A transformer encoder, [B, T, input_size] -> [B, T, d_model].

    `TransformerConfig` documents each argument; `options` takes its other fields. With
    `use_gradient_checkpointing` the backward pass recomputes each layer. `time_feature_sizes`
    gives the number of values of each calendar feature to embed.
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
        config = _configuration(
            d_model=d_model,
            nhead=nhead,
            num_layers=num_layers,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            activation=activation,
            att_type=att_type,
            norm_strategy=norm_strategy,
            use_adaptive_ln=use_adaptive_ln,
            use_swiglu=use_swiglu,
            share_layers=share_layers,
            use_final_norm=use_final_norm,
            use_moe=use_moe,
            num_experts=num_experts,
            top_k=top_k,
            num_kv_heads=num_kv_heads,
            max_seq_len=max_seq_len,
            freq_modes=freq_modes,
            **options,
        )
        layers = make_layers(config, num_layers, lambda: EncoderLayer(config))
        super().__init__(input_size, config, layers)
        self.recompute: Recompute = "block" if use_gradient_checkpointing else "none"
        self.calendar = (
            CalendarEmbedding(time_feature_sizes, d_model) if time_feature_sizes else None
        )
        initialise(self, _seed())

    def forward(
        self,
        src: Tensor,
        src_key_padding_mask: Tensor | None = None,
        mask: Tensor | None = None,
        time_features: Tensor | None = None,
    ) -> Tensor:
        """Encode src [B, T, input_size] into [B, T, d_model].

        src_key_padding_mask [B, T] bool is True on padding, mask [T, T] bool is True where a key
        is hidden from a query; time_features [B, T, features] are whole numbers from 0.
        """
        batch, length = _check_input(src, "src", self.input_projection.in_features)
        _check_mask(src_key_padding_mask, "src_key_padding_mask", (batch, length), "on padding")
        _check_mask(mask, "mask", (length, length), "where a query may not look")
        x = self.positions(self.input_projection(_without_padding(src, src_key_padding_mask)))
        if (time_features is None) != (self.calendar is None):
            raise UserError(
                "time_features: name their sizes as time_feature_sizes first"
                if self.calendar is None
                else "time_features: this encoder has time_feature_sizes and needs their values"
            )
        if self.calendar is not None and time_features is not None:
            _check_calendar(time_features, self.calendar.sizes, (batch, length))
            x = x + self.calendar(time_features, 1, align="start")
        for layer in self.layers:
            x = run_layer(layer, x, src_key_padding_mask, mask, recompute=self.recompute)
        return self.final_norm(x)


class TransformerDecoder(Stack):
    """A transformer decoder over a memory, [B, T, input_size] -> [B, T, output_size].

    The memory is [B, S, d_model], for example an encoder's output. The decoder is causal unless
    `is_causal` is False. The other arguments are those of `TransformerEncoder`.
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
        config = _configuration(
            d_model=d_model,
            nhead=nhead,
            num_layers=num_layers,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            activation=activation,
            att_type=att_type,
            norm_strategy=norm_strategy,
            use_adaptive_ln=use_adaptive_ln,
            use_swiglu=use_swiglu,
            share_layers=share_layers,
            use_final_norm=use_final_norm,
            use_moe=use_moe,
            num_experts=num_experts,
            top_k=top_k,
            num_kv_heads=num_kv_heads,
            max_seq_len=max_seq_len,
            freq_modes=freq_modes,
            **options,
        )
        if is_causal and config.att_type_of_decoder == "frequency":
            raise UserError(f"att_type: {FREQUENCY_SEES_ALL}")
        layers = make_layers(config, num_layers, lambda: DecoderLayer(config, is_causal=is_causal))
        super().__init__(input_size, config, layers)
        self.recompute: Recompute = "block" if use_gradient_checkpointing else "none"
        self.output_projection = nn.Linear(d_model, output_size)
        initialise(self, _seed())

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Decode tgt [B, T, input_size] over memory [B, S, d_model] into [B, T, output_size].

        tgt_key_padding_mask [B, T] and memory_key_padding_mask [B, S] bool are True on padding;
        tgt_mask [T, T] bool is True where a key is hidden from a query, and is applied together
        with the causal mask.
        """
        batch, length = _check_input(tgt, "tgt", self.input_projection.in_features)
        _check_mask(tgt_mask, "tgt_mask", (length, length), "where a query may not look")
        _check_mask(tgt_key_padding_mask, "tgt_key_padding_mask", (batch, length), "on padding")
        self._check_memory(memory, memory_key_padding_mask, batch)
        x = self.positions(self.input_projection(_without_padding(tgt, tgt_key_padding_mask)))
        memory = _without_padding(memory, memory_key_padding_mask)
        masks = memory_key_padding_mask, tgt_key_padding_mask, tgt_mask
        for layer in self.layers:
            x = run_layer(layer, x, memory, *masks, recompute=self.recompute)
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
        kept.
        """
        batch, length = _check_input(tgt, "tgt", self.input_projection.in_features)
        if length != 1:
            raise UserError(f"tgt: one step takes one token, [B, 1, input_size]; got {length}")
        if not all(layer.is_causal for layer in self.layers):
            raise UserError("is_causal: a decoder that sees the future cannot go step by step")
        self._check_memory(memory, memory_key_padding_mask, batch)
        state = {} if incremental_state is None else incremental_state
        decoding.check(state, len(self.layers), memory)
        memory = _without_padding(memory, memory_key_padding_mask)
        start = decoding.length(state)
        x = self.positions(self.input_projection(tgt), start)
        for index, layer in enumerate(self.layers):
            caches = decoding.layer_caches(state, index)
            x = layer(x, memory, memory_key_padding_mask, start=start, caches=caches)
        return self.output_projection(self.final_norm(x)), state

    def _check_memory(self, memory: Tensor, padding: Tensor | None, batch: int) -> None:
        """Raise UserError if memory or its mask has the wrong shape."""
        if memory.ndim != 3 or len(memory) != batch or memory.shape[2] != self.config.d_model:
            raise UserError(
                f"memory: expected [{batch}, S, d_model={self.config.d_model}], "
                f"got {list(memory.shape)}"
            )
        _check_mask(padding, "memory_key_padding_mask", tuple(memory.shape[:2]), "on padding")


def _configuration(**fields: Any) -> TransformerConfig:
    """Return the configuration with these fields.

    Raises UserError for a wrong one, with its name and what it can be.
    """
    try:
        return TransformerConfig(**fields)
    except ValidationError as error:
        path, sentence = mistake(error)
        if sentence is None:
            near = nearest(path[-1], TransformerConfig.model_fields)
            known = ", ".join(TransformerConfig.model_fields)
            sentence = "no such argument; "
            sentence += f"did you mean {near}?" if near else f"there are {known}"
        raise UserError(f"{'.'.join(path)}: {sentence}") from None


def _seed() -> int:
    """Draw a seed from torch's generator.

    So torch.manual_seed makes weights repeatable, and no two modules start alike.
    """
    return int(torch.randint(2**62, (), device="cpu"))


def _check_mask(mask: Tensor | None, name: str, shape: tuple[int, ...], meaning: str) -> None:
    """Raise UserError if the argument `name` is no bool mask of this shape."""
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != shape):
        raise UserError(
            f"{name}: expected bool {list(shape)}, True {meaning}; "
            f"got {str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}"
        )


def _check_input(x: Tensor, name: str, size: int) -> tuple[int, int]:
    """Return batch size and length of x; raise UserError if it is not [B, T, size]."""
    if x.ndim != 3 or x.shape[2] != size:
        raise UserError(f"{name}: expected [B, T, input_size={size}], got {list(x.shape)}")
    return x.shape[0], x.shape[1]


def _check_calendar(values: Tensor, sizes: Sequence[int], shape: tuple[int, int]) -> None:
    """Raise UserError if `values` are no calendar features of these sizes."""
    if tuple(values.shape) != (*shape, len(sizes)):
        raise UserError(
            f"time_features: expected [B, T, features] = {[*shape, len(sizes)]}, "
            f"got {list(values.shape)}"
        )
    for feature, size in zip(values.unbind(-1), sizes, strict=True):
        if bool(((feature < 0) | (feature >= size) | (feature != feature.floor())).any()):
            raise UserError(
                f"time_features: a feature of size {size} takes whole numbers 0 to {size - 1}; "
                f"found {float(feature.min()):g} to {float(feature.max()):g}"
            )


def _without_padding(x: Tensor, padding: Tensor | None) -> Tensor:
    """Return x with zeros under the padding, where users may have anything, even NaN."""
    return x if padding is None else x.masked_fill(padding.unsqueeze(-1), 0.0)
