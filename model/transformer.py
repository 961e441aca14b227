"""The library's encoder and decoder."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
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
from model.stack import Stack, make_layers, run_layer
from model.validation import mistake


def _configuration(arguments: Mapping[str, Any], options: Mapping[str, Any]) -> TransformerConfig:
    """From a constructor's arguments, those that are fields, and further options.

    Raises UserError naming a wrong argument and the nearest right one.
    """
    fields = {name: arguments[name] for name in TransformerConfig.model_fields if name in arguments}
    try:
        return TransformerConfig(**fields, **options)
    except ValidationError as error:
        path, sentence = mistake(error)
        if sentence is None:
            near = difflib.get_close_matches(path[-1], TransformerConfig.model_fields, 1)
            names = near or TransformerConfig.model_fields
            sentence = "no such argument; " + ("did you mean " if near else "there are ")
            sentence += ", ".join(names) + ("?" if near else "")
        raise UserError(f"{'.'.join(path)}: {sentence}") from None


def _check_mask(mask: Tensor | None, name: str, shape: tuple[int, ...], meaning: str) -> None:
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != shape):
        raise UserError(
            f"{name}: expected bool {list(shape)}, True {meaning}; "
            f"got {str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}"
        )


def _check_input(x: Tensor, name: str, size: int) -> tuple[int, int]:
    """Batch and length."""
    if x.ndim != 3 or x.shape[2] != size:
        raise UserError(f"{name}: expected [B, T, input_size={size}], got {list(x.shape)}")
    return x.shape[0], x.shape[1]


def _check_calendar(values: Tensor, sizes: Sequence[int], shape: tuple[int, int]) -> None:
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
    """What lies under padding may be anything, NaN too."""
    return x if padding is None else x.masked_fill(padding.unsqueeze(-1), 0.0)


class TransformerEncoder(Stack):
    """[B, T, input_size] -> [B, T, d_model].

    Each argument is described in `TransformerConfig`, which `options` may name more fields of.
    `time_feature_sizes` gives the numbers of values of calendar features to embed.
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
        config = _configuration(locals(), options)
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
        """src [B, T, input_size]; src_key_padding_mask [B, T] bool, True on padding; mask [T, T]
        bool, True where a query may not look; time_features [B, T, features], whole numbers."""
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
    """[B, T, input_size] and a memory [B, S, d_model] -> [B, T, output_size].

    Causal unless `is_causal` is False; other arguments as for `TransformerEncoder`.
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
        config = _configuration(locals(), options)
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
        """tgt [B, T, input_size]; memory [B, S, d_model]; masks bool, True on padding [B, T] and
        [B, S], or where a query may not look [T, T], beside the causal order."""
        batch, length = _check_input(tgt, "tgt", self.input_projection.in_features)
        _check_mask(tgt_mask, "tgt_mask", (length, length), "where a query may not look")
        _check_mask(tgt_key_padding_mask, "tgt_key_padding_mask", (batch, length), "on padding")
        self._check_memory(memory, memory_key_padding_mask, batch)
        x = self.positions(self.input_projection(_without_padding(tgt, tgt_key_padding_mask)))
        memory = _without_padding(memory, memory_key_padding_mask)
        for layer in self.layers:
            x = run_layer(
                layer,
                x,
                memory,
                memory_key_padding_mask,
                tgt_key_padding_mask,
                tgt_mask,
                recompute=self.recompute,
            )
        return self.output_projection(self.final_norm(x))

    @torch.no_grad()
    def forward_one_step(
        self,
        tgt: Tensor,
        memory: Tensor,
        incremental_state: dict[str, Any] | None = None,
        memory_key_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """The next token tgt [B, 1, input_size] -> its output [B, 1, output_size] and the state.

        An empty state starts. Equal to the same position of a full causal forward. For
        inference: no gradient is kept.
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
            held = decoding.layer_state(state, index)
            x = layer(x, memory, memory_key_padding_mask, start=start, state=held)
        return self.output_projection(self.final_norm(x)), state

    def _check_memory(self, memory: Tensor, padding: Tensor | None, batch: int) -> None:
        if memory.ndim != 3 or len(memory) != batch or memory.shape[2] != self.config.d_model:
            raise UserError(
                f"memory: expected [{batch}, S, d_model={self.config.d_model}], "
                f"got {list(memory.shape)}"
            )
        _check_mask(padding, "memory_key_padding_mask", tuple(memory.shape[:2]), "on padding")


def _seed() -> int:
    """From torch's generator: torch.manual_seed decides, and no two modules start alike."""
    return int(torch.randint(2**62, (), device="cpu"))
