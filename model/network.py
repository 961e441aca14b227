"""What is trained: scaling, patches, encoder and decoder, head.

`TimeSeriesTransformer.layers()` is a list and `forward` a loop over it, so a pipeline stage is a
slice of that list. Between layers travels one float tensor, the memory and the decoder's states
joined along time, and the memory's validity mask.

Shapes: B samples, L context points, H future points, C channels, F covariates, R rows that the
transformer sees (B * C when channels are independent, else B), M context patches, N future
patches, P points per patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from model.config import ModelConfig, SeriesShape
from model.embedding import sinusoidal, to_patches
from model.init import Init
from model.losses import POINT_LOSSES, sample_mean
from model.moe import MixtureOfExperts
from model.recompute import recomputed
from model.transformer import DecoderLayer, EncoderLayer, TransformerDecoder, TransformerEncoder

State = tuple[Tensor, Tensor]
"""Joined states [R, M + N, d_model] and the memory's validity [R, M] bool."""


@dataclass(frozen=True)
class Layer:
    """One element of the network: the smallest thing that a pipeline stage can hold."""

    name: str
    modules: tuple[str, ...]
    """Global names of the modules whose parameters it uses."""
    run: Callable[[State], State | Tensor]


class ChannelEmbedding(nn.Module):
    """A learned vector for each channel."""

    def __init__(self, channels: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, d_model))

    def initial(self) -> dict[str, Init]:
        return {"weight": Init(std=0.02)}

    def forward(self, rows: int) -> Tensor:
        """-> [rows, 1, d_model], the channels repeated for each sample."""
        return self.weight.repeat(rows // self.weight.shape[0], 1).unsqueeze(1)


def instance_statistics(context: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each window's context, [B, 1, C] each.

    Missing points are left out. A window without valid points gets 0 and 1, a constant one its
    level and a deviation of 1e-3.
    """
    valid = ~context.isnan()
    count = valid.sum(1, keepdim=True)
    known = context.nan_to_num()
    mean = known.sum(1, keepdim=True) / count.clamp(min=1)
    variance = ((known - mean).square() * valid).sum(1, keepdim=True) / count.clamp(min=1)
    deviation = (variance + 1e-6).sqrt()
    return mean, deviation.where(count > 0, 1.0)


class TimeSeriesTransformer(nn.Module):
    """Forecasts H points of C channels from L points and from covariates known in advance."""

    def __init__(self, config: ModelConfig, shape: SeriesShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.memory_patches, self.future_patches = shape.patches(config.patch_length)
        self.row_channels = 1 if config.channels == "independent" else shape.channels
        covariates = config.patch_length * shape.covariates
        values = config.patch_length * self.row_channels
        self.encoder = TransformerEncoder(2 * values + covariates, config)
        # A future patch is told its covariates and which of its points are asked for.
        asked = config.patch_length + covariates
        self.decoder = TransformerDecoder(asked, values, config, config.decoder_layers)
        self.channel_embedding = (
            ChannelEmbedding(shape.channels, config.d_model) if config.channel_embedding else None
        )
        self.checkpoint_blocks = False
        """Recompute each transformer layer in the backward pass instead of keeping activations."""

    @property
    def tokens_per_sample(self) -> int:
        """Context patches times the series channels that enter the network."""
        rows = self.shape.channels if self.config.channels == "independent" else 1
        return self.memory_patches * rows

    def layers(self) -> list[Layer]:
        embedding = ["encoder.input_projection", "decoder.input_projection"]
        if self.channel_embedding is not None:
            embedding.append("channel_embedding")
        return [
            Layer("embedding", tuple(embedding), self._embed),
            *self._blocks("encoder", self.encoder.layers, self._encode),
            Layer("encoder.final_norm", ("encoder.final_norm",), self._end_memory),
            *self._blocks("decoder", self.decoder.layers, self._decode),
            Layer("head", ("decoder.final_norm", "decoder.output_projection"), self._answer),
        ]

    def _blocks(
        self, stack: str, layers: nn.ModuleList, run: Callable[[nn.Module, State], State]
    ) -> Iterator[Layer]:
        for index, layer in enumerate(layers):
            name = f"{stack}.layers.{index}"
            yield Layer(name, (name,), partial(run, layer))

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """(context [B, L, C] with NaN where missing, covariates [B, L + H, F]) -> [B, H, C].

        The answer is in instance-normalised units; `forecast` scales it back.
        """
        state: State | Tensor = inputs
        for layer in self.layers():
            state = layer.run(cast(State, state))
        return cast(Tensor, state)

    def forecast(self, output: Tensor, context: Tensor) -> Tensor:
        """The network's output in the units of its context, [B, H, C]."""
        if not self.config.instance_norm:
            return output
        mean, deviation = instance_statistics(context)
        return output * deviation + mean

    def loss(self, output: Tensor, labels: tuple[Tensor, Tensor]) -> Tensor:
        """labels: target [B, H, C] with NaN where missing, and the context [B, L, C]."""
        target, context = labels
        valid = ~target.isnan()
        error = self.forecast(output, context) - target.nan_to_num()
        return sample_mean(POINT_LOSSES[self.config.loss](error), valid)

    def mixtures(self) -> dict[str, MixtureOfExperts]:
        """The mixture-of-experts layers by their global names."""
        return {name: m for name, m in self.named_modules() if isinstance(m, MixtureOfExperts)}

    # The layers' functions, in the order in which data flows.

    def _rows(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [R, T, C / (R / B)]."""
        if self.row_channels == self.shape.channels:
            return x
        return x.transpose(1, 2).flatten(0, 1).unsqueeze(-1)

    def _embed(self, inputs: State) -> State:
        context, covariates = inputs
        length, patch = self.shape.context_length, self.config.patch_length
        if self.config.instance_norm:
            mean, deviation = instance_statistics(context)
            context = (context - mean) / deviation
        values = self._rows(context)
        valid = (~values.isnan()).to(values.dtype)
        past = to_patches(torch.cat([values.nan_to_num(), valid], -1), patch, align="end")
        known = covariates.repeat_interleave(len(values) // len(context), dim=0)
        past_known = to_patches(known[:, :length], patch, align="end")
        asked = known.new_ones(len(known), self.shape.prediction_length, 1)
        future_known = to_patches(torch.cat([known[:, length:], asked], -1), patch, align="start")
        memory_mask = to_patches(valid, patch, align="end").any(-1)

        dtype = self.encoder.input_projection.weight.dtype
        memory = self.encoder.input_projection(torch.cat([past, past_known], -1).to(dtype))
        future = self.decoder.input_projection(future_known.to(dtype))
        states = torch.cat([memory, future], 1)
        states = states + sinusoidal(0, states.shape[1], states.shape[2], states.device).to(dtype)
        if self.channel_embedding is not None:
            states = states + self.channel_embedding(len(states))
        return states, memory_mask

    def _split(self, states: Tensor) -> tuple[Tensor, Tensor]:
        return states[:, : self.memory_patches], states[:, self.memory_patches :]

    def _encode(self, layer: nn.Module, state: State) -> State:
        states, mask = state
        memory, future = self._split(states)
        return torch.cat([self._block(cast(EncoderLayer, layer), memory, mask), future], 1), mask

    def _end_memory(self, state: State) -> State:
        states, mask = state
        memory, future = self._split(states)
        return torch.cat([self.encoder.final_norm(memory), future], 1), mask

    def _decode(self, layer: nn.Module, state: State) -> State:
        states, mask = state
        memory, future = self._split(states)
        # All that the decoder is given is known in advance: no order has to be kept among it.
        future = self._block(cast(DecoderLayer, layer), future, memory, mask, False)
        return torch.cat([memory, future], 1), mask

    def _block(self, layer: nn.Module, *arguments: object) -> Tensor:
        if self.checkpoint_blocks and torch.is_grad_enabled():
            return cast(Tensor, recomputed(layer, *arguments))
        return cast(Tensor, layer(*arguments))

    def _answer(self, state: State) -> Tensor:
        _, future = self._split(state[0])
        answer = self.decoder.output_projection(self.decoder.final_norm(future)).float()
        points = answer.unflatten(-1, (self.config.patch_length, self.row_channels)).flatten(1, 2)
        points = points[:, : self.shape.prediction_length]
        if self.row_channels == self.shape.channels:
            return points
        return points.squeeze(-1).unflatten(0, (-1, self.shape.channels)).transpose(1, 2)
