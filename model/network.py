"""What is trained: scaling, patches, encoder and decoder, head.

`TimeSeriesTransformer.layers()` is a list and `forward` a loop over it, so a pipeline stage is a
slice of that list. Between layers travel one float tensor (an encoder_decoder's holds the memory
and the decoder's states joined along time) and the padding of the tokens that are attended to.

Shapes: B samples, L context points, H future points, C channels, F covariates, R rows that the
transformer sees (B * C when channels are independent, else B), M context patches, N future
patches, P points per patch, S tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from model.attention import Attention
from model.config import ModelConfig, SeriesShape
from model.embedding import CalendarEmbedding, ChannelEmbedding, to_patches
from model.layers import DecoderLayer, EncoderLayer
from model.losses import sample_mean
from model.moe import MixtureOfExperts
from model.outputs import make_output
from model.recompute import Recompute
from model.stack import Stack, make_layers, run_layer

State = tuple[Tensor, Tensor]
"""States [R, S, d_model] and padding [R, attended tokens] bool, True on padding."""

Inputs = tuple[Tensor, ...]
"""context [B, L, C] with NaN where missing; covariates [B, L + H, F]; for a decoder also the
future as far as it is known [B, H, C], NaN beyond."""


@dataclass(frozen=True)
class Layer:
    """One element of the network: the smallest thing that a pipeline stage can hold."""

    name: str
    modules: tuple[str, ...]
    """Global names of the modules whose parameters it uses."""
    run: Callable[..., State | Tensor]
    tokens: tuple[int, ...]
    """Tokens that each of those modules computes, per row."""
    memory: int = 0
    """Tokens that its attention looks over."""
    is_block: bool = False
    """A transformer layer, rather than what goes before or after one."""


def instance_statistics(context: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each window's context, [B, 1, C] each.

    Missing points are left out. A window without valid points gets 0 and 1, a constant one its
    level and a deviation of 1e-3.
    """
    valid = ~context.isnan()
    count = valid.sum(1, keepdim=True)
    # From the first valid point on: the sum of a large level would round it away.
    level = context.gather(1, valid.to(torch.uint8).argmax(1, keepdim=True)).nan_to_num()
    known = (context - level).nan_to_num()
    shift = known.sum(1, keepdim=True) / count.clamp(min=1)
    variance = ((known - shift).square() * valid).sum(1, keepdim=True) / count.clamp(min=1)
    deviation = (variance + 1e-6).sqrt()
    return level + shift, deviation.where(count > 0, 1.0)


class TimeSeriesTransformer(nn.Module):
    """Forecasts H points of C channels from L points and from covariates known in advance."""

    def __init__(self, config: ModelConfig, shape: SeriesShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        lengths = shape.context_length, shape.prediction_length
        self.memory_patches, self.future_patches = config.patches(*lengths)
        self.sequence_length = config.sequence_length(*lengths)
        """Tokens that each row holds between two layers."""
        self.row_channels = 1 if config.channels == "independent" else shape.channels
        self.rows_per_sample = shape.channels // self.row_channels
        self.answer = make_output(config)
        numbers = config.patch_length * self.row_channels
        known = config.patch_length * shape.covariates
        self.encoder: Stack | None = None
        self.decoder: Stack | None = None
        if config.architecture != "decoder":
            layers = make_layers(config, config.num_layers, lambda: EncoderLayer(config))
            self.encoder = Stack(2 * numbers + known, config, layers)
        if config.architecture == "decoder":
            layers = make_layers(config, config.num_layers, self._causal_layer)
            self.decoder = Stack(2 * numbers + known, config, layers)
        if config.architecture == "encoder_decoder":
            layers = make_layers(config, config.decoder_layers, self._query_layer)
            self.decoder = Stack(config.patch_length + known, config, layers)
        flattened = config.architecture == "encoder"
        inputs = config.d_model * (self.memory_patches if flattened else 1)
        points = shape.prediction_length if flattened else config.patch_length
        self.head = nn.Linear(inputs, points * self.row_channels * self.answer.size)
        self.channel_embedding = (
            ChannelEmbedding(shape.channels, config.d_model) if config.channel_embedding else None
        )
        self.calendar_embedding = (
            CalendarEmbedding(shape.calendar, config.d_model) if shape.calendar else None
        )
        self.recompute: Recompute = "none"
        """What of each transformer layer the backward pass computes again."""

    def _causal_layer(self) -> EncoderLayer:
        return EncoderLayer(self.config, self.config.att_type_of_decoder, is_causal=True)

    def _query_layer(self) -> DecoderLayer:
        # All that this decoder is given is known in advance: there is no order to keep in it.
        return DecoderLayer(self.config, is_causal=False, on_one_axis=True)

    @property
    def tokens_per_sample(self) -> int:
        """Context patches times the series channels that enter the network."""
        return self.memory_patches * self.rows_per_sample

    @property
    def passes(self) -> int:
        """Forward passes that a forecast takes: a decoder gives a patch at a time."""
        return self.future_patches if self.config.architecture == "decoder" else 1

    def layers(self) -> list[Layer]:
        memory, future = self.memory_patches, self.future_patches
        if self.config.architecture == "encoder":
            return [
                self._embedding(self._embed_context, encoder=memory),
                *self._blocks("encoder", self._encode, memory, memory),
                Layer("head", ("encoder.final_norm", "head"), self._output_at_once, (memory, 1)),
            ]
        if self.config.architecture == "decoder":
            tokens = self.sequence_length
            return [
                self._embedding(self._embed_sequence, decoder=tokens),
                *self._blocks("decoder", self._encode, tokens, tokens),
                Layer("head", ("decoder.final_norm", "head"), self._output_next, (future, future)),
            ]
        return [
            self._embedding(self._embed_both, encoder=memory, decoder=future),
            *self._blocks("encoder", self._encode_memory, memory, memory),
            Layer("memory", ("encoder.final_norm",), self._end_memory, (memory,)),
            *self._blocks("decoder", self._decode, future, memory),
            Layer("head", ("decoder.final_norm", "head"), self._output_each, (future, future)),
        ]

    def _embedding(self, run: Callable[[Inputs], State], **stacks: int) -> Layer:
        """The first layer; `stacks` gives the tokens of each stack."""
        used = {
            f"{stack}.{part}": tokens
            for stack, tokens in stacks.items()
            for part in ("input_projection", "positions")
        }
        for extra in ("channel_embedding", "calendar_embedding"):
            if getattr(self, extra) is not None:
                used[extra] = 0
        return Layer("embedding", tuple(used), run, tuple(used.values()))

    def _blocks(
        self, name: str, run: Callable[[nn.Module, State], State], tokens: int, memory: int
    ) -> Iterator[Layer]:
        stack: Stack = getattr(self, name)
        for index, layer in enumerate(stack.layers):
            shared = 0 if self.config.share_layers else index
            yield Layer(
                f"{name}.layers.{index}",
                (f"{name}.layers.{shared}",),
                partial(run, layer),
                (tokens,),
                memory,
                is_block=True,
            )

    def forward(self, inputs: Inputs) -> Tensor:
        """-> [B, H, C, head size] in instance-normalised units; `forecast` scales it back."""
        state: State | Tensor | Inputs = inputs
        for layer in self.layers():
            state = layer.run(state)
        return cast(Tensor, state)

    def scaled(self, output: Tensor, context: Tensor) -> Tensor:
        """The network's output in the units of its context, [B, H, C, head size]."""
        if self.config.instance_norm:
            mean, deviation = instance_statistics(context)
        else:
            mean, deviation = torch.zeros_like(context[:, :1]), torch.ones_like(context[:, :1])
        return self.answer.scaled(output, mean, deviation)

    def forecast(self, output: Tensor, context: Tensor) -> Tensor:
        """The point forecast [B, H, C] in the units of its context."""
        return self.answer.point(self.scaled(output, context))

    def loss(self, output: Tensor, labels: tuple[Tensor, Tensor]) -> Tensor:
        """labels: target [B, H, C] with NaN where missing, and the context [B, L, C]."""
        target, context = labels
        per_point = self.answer.loss(self.scaled(output, context), target.nan_to_num())
        return sample_mean(per_point, ~target.isnan())

    def inputs(self, context: Tensor, covariates: Tensor, future: Tensor) -> Inputs:
        """What the first layer takes; `future` [B, H, C] as far as it is known, NaN beyond."""
        if self.config.architecture == "decoder":
            return context, covariates, future
        return context, covariates

    def with_patch(self, future: Tensor, forecast: Tensor, number: int) -> Tensor:
        """`future` with its patch `number` taken from `forecast`."""
        points = slice(number * self.config.patch_length, (number + 1) * self.config.patch_length)
        future = future.clone()
        future[:, points] = forecast[:, points].to(future)
        return future

    def mixtures(self) -> dict[str, MixtureOfExperts]:
        """The mixture-of-experts layers by their global names."""
        return {name: m for name, m in self.named_modules() if isinstance(m, MixtureOfExperts)}

    def kernels(self) -> dict[str, str]:
        """The kernel that the last forward took, and why: by att_type and place, such as `flash
        in decoder.cross_attention`; alike in all layers."""
        taken: dict[str, str] = {}
        for name, module in self.named_modules():
            if isinstance(module, Attention):
                stack, *_, kind = name.split(".")
                place = f"{module.att_type} in {stack}.{kind}"
                if module.att_type == "frequency":
                    taken[place] = "torch.fft"
                elif module.choice is not None:
                    taken[place] = str(module.choice)
        return taken

    # What the layers do, in the order in which data flows.

    def _rows(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [R, T, C / (R / B)]."""
        if self.rows_per_sample == 1:
            return x
        return x.transpose(1, 2).flatten(0, 1).unsqueeze(-1)

    def _normalised(self, context: Tensor, *others: Tensor) -> list[Tensor]:
        if not self.config.instance_norm:
            return [context, *others]
        mean, deviation = instance_statistics(context)
        return [(x - mean) / deviation for x in (context, *others)]

    def _values(self, x: Tensor, align: str) -> tuple[Tensor, Tensor]:
        """[B, T, C] -> patches of values and validity [R, patches, 2 P c], padding [R, patches]."""
        values = self._rows(x)
        valid = (~values.isnan()).to(values.dtype)
        both = torch.cat([values.nan_to_num(), valid], -1)
        patch = self.config.patch_length
        padding = (to_patches(valid, patch, align=align) == 0).all(-1)
        return to_patches(both, patch, align=align), padding

    def _known(self, covariates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Covariates of the context's and of the future's patches, and what calendar features
        add to all tokens [R, M + N, d_model] or 0."""
        length, patch = self.shape.context_length, self.config.patch_length
        covariates = covariates.repeat_interleave(self.rows_per_sample, dim=0)
        numbers, dates = covariates.split([self.shape.covariates, len(self.shape.calendar)], -1)
        past = to_patches(numbers[:, :length], patch, align="end")
        future = to_patches(numbers[:, length:], patch, align="start")
        if self.calendar_embedding is None:
            return past, future, covariates.new_zeros(())
        calendar = self.calendar_embedding
        vectors = [
            calendar(dates[:, :length], patch, align="end"),
            calendar(dates[:, length:], patch, align="start"),
        ]
        return past, future, torch.cat(vectors, 1)

    def _tokens(self, stack: Stack, features: Tensor, start: int, calendar: Tensor) -> Tensor:
        """Project, add positions from `start` on, calendar and channel."""
        projection = stack.input_projection
        tokens = stack.positions(projection(features.to(projection.weight.dtype)), start)
        if calendar.ndim:
            tokens = tokens + calendar
        if self.channel_embedding is not None:
            tokens = tokens + self.channel_embedding(len(tokens))
        return tokens

    def _embed_context(self, inputs: Inputs) -> State:
        context, covariates = inputs
        (context,) = self._normalised(context)
        past, padding = self._values(context, align="end")
        known, _, calendar = self._known(covariates)
        calendar = calendar[:, : self.memory_patches] if calendar.ndim else calendar
        assert self.encoder is not None
        return self._tokens(self.encoder, torch.cat([past, known], -1), 0, calendar), padding

    def _embed_both(self, inputs: Inputs) -> State:
        memory, padding = self._embed_context(inputs)
        _, known, calendar = self._known(inputs[1])
        calendar = calendar[:, self.memory_patches :] if calendar.ndim else calendar
        # A future patch is told its covariates and which of its points are asked for.
        asked = known.new_ones(len(known), self.shape.prediction_length, 1)
        asked = to_patches(asked, self.config.patch_length, align="start")
        assert self.decoder is not None
        features = torch.cat([known, asked], -1)
        future = self._tokens(self.decoder, features, self.memory_patches, calendar)
        return torch.cat([memory, future], 1), padding

    def _embed_sequence(self, inputs: Inputs) -> State:
        context, covariates, future = inputs
        context, future = self._normalised(context, future)
        past, padding = self._values(context, align="end")
        following, following_padding = self._values(future, align="start")
        known_past, known_future, calendar = self._known(covariates)
        # A token knows the covariates of the patch that it has to forecast.
        values = torch.cat([past, following[:, :-1]], 1)
        known = torch.cat([known_past[:, 1:], known_future], 1)
        calendar = calendar[:, 1:] if calendar.ndim else calendar
        assert self.decoder is not None
        tokens = self._tokens(self.decoder, torch.cat([values, known], -1), 0, calendar)
        return tokens, torch.cat([padding, following_padding[:, :-1]], 1)

    def _block(self, layer: nn.Module, *arguments: object, **options: object) -> Tensor:
        return run_layer(layer, *arguments, recompute=self.recompute, **options)

    def _mask(self, padding: Tensor) -> Tensor | None:
        return padding if self.shape.missing else None

    def _encode(self, layer: nn.Module, state: State) -> State:
        states, padding = state
        return self._block(layer, states, self._mask(padding)), padding

    def _split(self, states: Tensor) -> tuple[Tensor, Tensor]:
        return states[:, : self.memory_patches], states[:, self.memory_patches :]

    def _encode_memory(self, layer: nn.Module, state: State) -> State:
        memory, future = self._split(state[0])
        return torch.cat([self._block(layer, memory, self._mask(state[1])), future], 1), state[1]

    def _end_memory(self, state: State) -> State:
        memory, future = self._split(state[0])
        assert self.encoder is not None
        return torch.cat([self.encoder.final_norm(memory), future], 1), state[1]

    def _decode(self, layer: nn.Module, state: State) -> State:
        memory, future = self._split(state[0])
        padding = self._mask(state[1])
        future = self._block(layer, future, memory, padding, start=self.memory_patches)
        return torch.cat([memory, future], 1), state[1]

    def _output_at_once(self, state: State) -> Tensor:
        assert self.encoder is not None
        return self._answer(self.encoder.final_norm(state[0]).flatten(1).unsqueeze(1))

    def _output_next(self, state: State) -> Tensor:
        assert self.decoder is not None
        return self._answer(self.decoder.final_norm(state[0][:, self.memory_patches - 1 :]))

    def _output_each(self, state: State) -> Tensor:
        assert self.decoder is not None
        return self._answer(self.decoder.final_norm(self._split(state[0])[1]))

    def _answer(self, states: Tensor) -> Tensor:
        """[R, answers, d] -> [B, H, C, head size]."""
        numbers = self.head(states).float()
        points = numbers.unflatten(-1, (-1, self.row_channels, self.answer.size)).flatten(1, 2)
        points = points[:, : self.shape.prediction_length]
        if self.rows_per_sample == 1:
            return points
        return points.squeeze(2).unflatten(0, (-1, self.shape.channels)).transpose(1, 2)
