"""The network that is trained: scaling, patches, encoder and decoder, head.

`TimeSeriesTransformer.layers()` is a list and `forward` a loop over it, so a pipeline stage is a
slice of that list. Layers hand on one float tensor (in an encoder_decoder the memory and the
decoder's states, joined along time) and the padding of the tokens that are attended to.

Shapes: B samples, L context points, H future points, C channels, F covariates, R rows that the
transformer computes (B * C where channels are independent, else B), c channels of a row, M context
patches, N future patches, P points per patch, S tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import Attention
from model.config import ModelConfig, SeriesShape
from model.embedding import CalendarEmbedding, ChannelEmbedding
from model.instance_norm import instance_statistics
from model.layers import DecoderLayer, EncoderLayer
from model.losses import sample_mean
from model.moe import MixtureOfExperts
from model.outputs import make_output
from model.patches import Align, to_patches, value_patches
from model.recompute import Recompute
from model.sequential import Layer, LayerState
from model.stack import Stack, make_layers, run_layer

Inputs = tuple[Tensor, ...]
"""What the first layer takes: context [B, L, C] with NaN where missing, covariates [B, L + H, F],
and for a decoder the future as far as it is known [B, H, C], NaN beyond."""


class TimeSeriesTransformer(nn.Module):
    """Forecasts H points of C channels from L points and from covariates known in advance."""

    def __init__(self, config: ModelConfig, shape: SeriesShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        lengths = shape.context_length, shape.prediction_length
        self.memory_patches, self.future_patches = config.patches(*lengths)
        self.sequence_length = config.sequence_length(*lengths, shape.is_future_known)
        """Tokens that each row holds between two layers."""
        self.row_channels = 1 if config.channels == "independent" else shape.channels
        self.rows_per_sample = shape.channels // self.row_channels
        self.output = make_output(config)
        values = 2 * config.patch_length * self.row_channels
        known = config.patch_length * shape.covariates
        self.encoder: Stack | None = None
        self.decoder: Stack | None = None
        if config.architecture != "decoder":
            layers = make_layers(config, config.num_layers, lambda: EncoderLayer(config))
            self.encoder = Stack(values + known, config, layers)
        if config.architecture == "decoder":
            layers = make_layers(config, config.num_layers, self._causal_layer)
            self.decoder = Stack(values + known, config, layers)
        if config.architecture == "encoder_decoder":
            layers = make_layers(config, config.decoder_layers, self._query_layer)
            self.decoder = Stack(config.patch_length + known, config, layers)
        flattened = config.architecture == "encoder"
        inputs = config.d_model * (self.memory_patches if flattened else 1)
        points = shape.prediction_length if flattened else config.patch_length
        self.head = nn.Linear(inputs, points * self.row_channels * self.output.size)
        self.channel_embedding = (
            ChannelEmbedding(shape.channels, config.d_model) if config.channel_embedding else None
        )
        self.calendar_embedding = (
            CalendarEmbedding(shape.calendar, config.d_model) if shape.calendar else None
        )
        for mixture in self.mixtures().values():
            mixture.attached_scale = 1.0
        self.recompute: Recompute = "none"
        """What of each transformer layer the backward pass computes again."""

    def _causal_layer(self) -> EncoderLayer:
        return EncoderLayer(self.config, self.config.att_type_of_decoder, is_causal=True)

    def _query_layer(self) -> DecoderLayer:
        # All that the query decoder reads is known in advance, so it needs no causal order.
        return DecoderLayer(self.config, is_causal=False, on_one_axis=True)

    @property
    def tokens_per_sample(self) -> int:
        """Context patches times the series channels that enter the network."""
        return self.memory_patches * self.rows_per_sample

    @property
    def passes(self) -> int:
        """Forward passes that a forecast takes: a decoder forecasts one patch in each."""
        return self.future_patches if self.config.architecture == "decoder" else 1

    def layers(self) -> list[Layer]:
        """Return the network as a list: embedding, transformer layers, head."""
        memory, future, tokens = self.memory_patches, self.future_patches, self.sequence_length
        if self.config.architecture == "encoder":
            return [
                self._embedding(self._embed_known, encoder=tokens),
                *self._blocks("encoder", self._encode, tokens, tokens),
                Layer("head", ("encoder.final_norm", "head"), self._head_at_once, (memory, 1)),
            ]
        if self.config.architecture == "decoder":
            return [
                self._embedding(self._embed_sequence, decoder=tokens),
                *self._blocks("decoder", self._encode, tokens, tokens),
                Layer("head", ("decoder.final_norm", "head"), self._head_next, (future, future)),
            ]
        return [
            self._embedding(self._embed_both, encoder=memory, decoder=future),
            *self._blocks("encoder", self._encode_memory, memory, memory),
            Layer("memory", ("encoder.final_norm",), self._end_memory, (memory,)),
            *self._blocks("decoder", self._decode, future, memory),
            Layer("head", ("decoder.final_norm", "head"), self._head_queries, (future, future)),
        ]

    def _embedding(self, run: Callable[[Inputs], LayerState], **stacks: int) -> Layer:
        """Return the first layer; `stacks` gives the tokens of each stack by its name."""
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
        self,
        name: str,
        run: Callable[[nn.Module, LayerState], LayerState],
        tokens: int,
        memory: int,
    ) -> Iterator[Layer]:
        """Yield the transformer layers of the stack called `name`."""
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
        """Return [B, H, C, output size] in instance-normalised units; `forecast` scales it."""
        state: LayerState | Tensor | Inputs = inputs
        for layer in self.layers():
            state = layer.run(state)
        return cast(Tensor, state)

    def scaled(self, raw: Tensor, context: Tensor) -> Tensor:
        """Return what `forward` returned in the units of its context, [B, H, C, output size]."""
        return self.output.scaled(raw, *self._statistics(context))

    def forecast(self, raw: Tensor, context: Tensor) -> Tensor:
        """Return the point forecast [B, H, C] in the units of its context."""
        return self.output.point(self.scaled(raw, context))

    def loss(self, raw: Tensor, labels: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean over samples of each sample's mean loss, a scalar.

        labels: target [B, H, C] with NaN where missing, and the context [B, L, C].
        """
        target, context = labels
        per_point = self.output.loss(self.scaled(raw, context), target.nan_to_num())
        return sample_mean(per_point, ~target.isnan())

    def inputs(self, context: Tensor, covariates: Tensor, future: Tensor) -> Inputs:
        """Return what the first layer takes.

        `future` [B, H, C] holds values as far as they are known, NaN beyond.
        """
        if self.config.architecture == "decoder":
            return context, covariates, future
        return context, covariates

    def mixtures(self) -> dict[str, MixtureOfExperts]:
        """Return the mixture-of-experts layers by their global names."""
        return {name: m for name, m in self.named_modules() if isinstance(m, MixtureOfExperts)}

    def kernels(self) -> dict[str, str]:
        """Return the attention kernels of the last forward, and why they were chosen.

        Keys name att_type and place, such as "flash in decoder.cross_attention": all layers of a
        stack are alike.
        """
        chosen: dict[str, str] = {}
        for name, module in self.named_modules():
            if isinstance(module, Attention) and module.kernel is not None:
                stack, *_, kind = name.split(".")
                chosen[f"{module.att_type} in {stack}.{kind}"] = module.kernel
        return chosen

    # The computations of the layers, in the order in which data flows.

    def _statistics(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation to normalise by, [B, 1, C]; 0 and 1 without instance_norm."""
        if self.config.instance_norm:
            return instance_statistics(context)
        return torch.zeros_like(context[:, :1]), torch.ones_like(context[:, :1])

    def _values(self, x: Tensor, align: Align) -> tuple[Tensor, Tensor]:
        """Return patches of x [B, T, C] with flags [R, patches, 2 P c], padding [R, patches]."""
        if self.rows_per_sample > 1:
            x = x.transpose(1, 2).flatten(0, 1).unsqueeze(-1)
        return value_patches(x, self.config.patch_length, align=align)

    def _known(self, covariates: Tensor, align: Align) -> tuple[Tensor, Tensor | None]:
        """Return what is known in advance of the context's ("end") or the future's patches.

        covariates [B, L + H, F] -> numbers [R, patches, P * numbers], and calendar vectors
        [R, patches, d_model] where calendar features are embedded.
        """
        patch, length = self.config.patch_length, self.shape.context_length
        covariates = covariates[:, :length] if align == "end" else covariates[:, length:]
        covariates = covariates.repeat_interleave(self.rows_per_sample, dim=0)
        numbers, dates = covariates.split([self.shape.covariates, len(self.shape.calendar)], -1)
        calendar = self.calendar_embedding
        vectors = None if calendar is None else calendar(dates, patch, align=align)
        return to_patches(numbers, patch, align=align), vectors

    def _tokens(
        self, stack: Stack, features: Tensor, start: int, calendar: Tensor | None
    ) -> Tensor:
        """Project features and add positions from `start` on, calendar and channel."""
        projection = stack.input_projection
        tokens = stack.positions(projection(features.to(projection.weight.dtype)), start)
        if calendar is not None:
            tokens = tokens + calendar
        if self.channel_embedding is not None:
            tokens = tokens + self.channel_embedding(len(tokens))
        return tokens

    def _embed_context(self, inputs: Inputs) -> LayerState:
        """Return the tokens of an encoder: the context's patches."""
        context, covariates = inputs
        mean, deviation = self._statistics(context)
        values, padding = self._values((context - mean) / deviation, align="end")
        known, calendar = self._known(covariates, align="end")
        assert self.encoder is not None
        return self._tokens(self.encoder, torch.cat([values, known], -1), 0, calendar), padding

    def _embed_known(self, inputs: Inputs) -> LayerState:
        """Return the tokens of an encoder alone: the context's patches, and the future's.

        The latter hold what is known in advance, and no values; there are none where nothing is.
        """
        tokens, padding = self._embed_context(inputs)
        if not self.shape.is_future_known:
            return tokens, padding
        known, calendar = self._known(inputs[1], align="start")
        values = known.new_zeros(*known.shape[:2], 2 * self.config.patch_length * self.row_channels)
        assert self.encoder is not None
        features = torch.cat([values, known], -1)
        future = self._tokens(self.encoder, features, self.memory_patches, calendar)
        return torch.cat([tokens, future], 1), F.pad(padding, (0, self.future_patches))

    def _embed_both(self, inputs: Inputs) -> LayerState:
        """Return the tokens of an encoder, and beside them the queries of a query decoder."""
        memory, padding = self._embed_context(inputs)
        known, calendar = self._known(inputs[1], align="start")
        # A query holds its patch's covariates and which of its points are forecast.
        queried = known.new_ones(len(known), self.shape.prediction_length, 1)
        queried = to_patches(queried, self.config.patch_length, align="start")
        assert self.decoder is not None
        features = torch.cat([known, queried], -1)
        future = self._tokens(self.decoder, features, self.memory_patches, calendar)
        return torch.cat([memory, future], 1), padding

    def _embed_sequence(self, inputs: Inputs) -> LayerState:
        """Return the tokens of a decoder: patches of the context and of the known future."""
        context, covariates, future = inputs
        mean, deviation = self._statistics(context)
        past, past_padding = self._values((context - mean) / deviation, align="end")
        following, following_padding = self._values((future - mean) / deviation, align="start")
        past_known, past_calendar = self._known(covariates, align="end")
        future_known, future_calendar = self._known(covariates, align="start")
        # A token holds a patch's values and the covariates of the next one, which it forecasts.
        values = torch.cat([past, following[:, :-1]], 1)
        known = torch.cat([past_known[:, 1:], future_known], 1)
        calendar = None
        if past_calendar is not None and future_calendar is not None:
            calendar = torch.cat([past_calendar[:, 1:], future_calendar], 1)
        assert self.decoder is not None
        tokens = self._tokens(self.decoder, torch.cat([values, known], -1), 0, calendar)
        return tokens, torch.cat([past_padding, following_padding[:, :-1]], 1)

    def _block(self, layer: nn.Module, *arguments: object, **options: object) -> Tensor:
        return run_layer(layer, *arguments, recompute=self.recompute, **options)

    def _mask(self, padding: Tensor) -> Tensor | None:
        """Return the padding, or None where no point can be missing: kernels need no mask then."""
        return padding if self.shape.missing else None

    def _encode(self, layer: nn.Module, state: LayerState) -> LayerState:
        states, padding = state
        return self._block(layer, states, self._mask(padding)), padding

    def _split(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return memory [R, M, d_model] and the decoder's states [R, N, d_model]."""
        return states[:, : self.memory_patches], states[:, self.memory_patches :]

    def _encode_memory(self, layer: nn.Module, state: LayerState) -> LayerState:
        memory, future = self._split(state[0])
        return torch.cat([self._block(layer, memory, self._mask(state[1])), future], 1), state[1]

    def _end_memory(self, state: LayerState) -> LayerState:
        memory, future = self._split(state[0])
        assert self.encoder is not None
        return torch.cat([self.encoder.final_norm(memory), future], 1), state[1]

    def _decode(self, layer: nn.Module, state: LayerState) -> LayerState:
        memory, future = self._split(state[0])
        padding = self._mask(state[1])
        future = self._block(layer, future, memory, padding, start=self.memory_patches)
        return torch.cat([memory, future], 1), state[1]

    def _head_at_once(self, state: LayerState) -> Tensor:
        """Forecast the whole future from all context tokens (encoder)."""
        assert self.encoder is not None
        context, _ = self._split(state[0])
        return self._project(self.encoder.final_norm(context).flatten(1).unsqueeze(1))

    def _head_next(self, state: LayerState) -> Tensor:
        """Forecast each future patch from the token before it (decoder)."""
        assert self.decoder is not None
        return self._project(self.decoder.final_norm(state[0][:, self.memory_patches - 1 :]))

    def _head_queries(self, state: LayerState) -> Tensor:
        """Forecast each future patch from its query (encoder_decoder)."""
        assert self.decoder is not None
        return self._project(self.decoder.final_norm(self._split(state[0])[1]))

    def _project(self, states: Tensor) -> Tensor:
        """Apply the head to states [R, projections, d]; return [B, H, C, output size]."""
        numbers = self.head(states).float()
        points = numbers.unflatten(-1, (-1, self.row_channels, self.output.size)).flatten(1, 2)
        points = points[:, : self.shape.prediction_length]
        if self.rows_per_sample == 1:
            return points
        return points.squeeze(2).unflatten(0, (-1, self.shape.channels)).transpose(1, 2)
