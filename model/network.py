"""The network that is trained: scaling, patches, encoder and decoder, head.

`TimeSeriesTransformer.layers()` is a list and `forward` a loop over it, so a pipeline stage is a
slice of that list. Layers hand on one float tensor (in an encoder_decoder the memory and the
decoder's states, joined along time) and the padding of the tokens that are attended to.

Shapes: B samples, L context points, H future points, C channels to forecast, V channels to read
(those, and columns that are known only up to the present), F covariates, R rows that the
transformer computes (B where channels are mixed, else B * V), c channels of a row, M context
patches, N future patches, P points per patch, S tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import Attention
from model.losses import sample_mean
from model.moe import MixtureOfExperts
from model.network_config import ModelConfig, SeriesShape
from model.outputs import make_output
from model.projection import make_projection
from model.recompute import Recompute
from model.running_scale import following, running_scale, whole_patches
from model.sequential import Layer, LayerState
from model.stack import Stack, run_layer
from model.tokens import Inputs, TokenNetwork


class TimeSeriesTransformer(TokenNetwork):
    """Forecasts H points of C channels from L points and from covariates known in advance."""

    def __init__(self, config: ModelConfig, shape: SeriesShape) -> None:
        super().__init__(config, shape)
        lengths = shape.context_length, shape.prediction_length
        self.sequence_length = config.sequence_length(*lengths, shape.is_future_known)
        """Tokens that each row holds between two layers, where the context is the longest."""
        self.output = make_output(config)
        is_flat = config.has_flatten_head
        inputs = config.d_model * (self.memory_patches if is_flat else 1)
        points = shape.prediction_length if is_flat else config.future_patch_length
        self._head_channels = shape.channels if config.channels == "mixed" else 1
        """Channels that the head forecasts from a row's token."""
        numbers = points * self._head_channels * self.output.size
        # With periods a forecast is what is added to seasonal naive, and starts near that.
        self.head = make_projection(config, inputs, numbers, is_small=config.periods > 0)
        for mixture in self.mixtures().values():
            mixture.attached_scale = 1.0
        self.recompute: Recompute = "none"
        """What of each transformer layer the backward pass computes again."""

    @property
    def tokens_per_sample(self) -> int:
        """Context patches times the series channels that enter the network."""
        return self.memory_patches * self.rows_per_sample

    @property
    def passes(self) -> int:
        """Forward passes that a forecast takes: a decoder forecasts one patch in each."""
        one_by_one = self.config.architecture == "decoder" and not self.config.scores_all_positions
        return self.future_patches if one_by_one else 1

    def layers(self) -> list[Layer]:
        """Return the network as a list: embedding, transformer layers, head."""
        memory, future, tokens = self.memory_patches, self.future_patches, self.sequence_length
        if self.config.has_token_head:
            return [
                self._embedding(self.embed_asked, encoder=memory, query_projection=future),
                *self._blocks("encoder", self._encode, tokens, tokens),
                Layer("head", ("encoder.final_norm", "head"), self._head_asked, (future, future)),
            ]
        if self.config.architecture == "encoder":
            return [
                self._embedding(self.embed_known, encoder=tokens),
                *self._blocks("encoder", self._encode, tokens, tokens),
                Layer("head", ("encoder.final_norm", "head"), self._head_at_once, (memory, 1)),
            ]
        if self.config.scores_all_positions:
            return [
                self._embedding(self.embed_running, decoder=memory),
                *self._blocks("decoder", self._encode, memory, memory),
                Layer("head", ("decoder.final_norm", "head"), self._head_running, (memory, memory)),
            ]
        if self.config.architecture == "decoder":
            return [
                self._embedding(self.embed_sequence, decoder=tokens),
                *self._blocks("decoder", self._encode, tokens, tokens),
                Layer("head", ("decoder.final_norm", "head"), self._head_next, (future, future)),
            ]
        return [
            self._embedding(self.embed_both, encoder=memory, decoder=future),
            *self._blocks("encoder", self._encode_memory, memory, memory),
            Layer("memory", ("encoder.final_norm",), self._end_memory, (memory,)),
            *self._blocks("decoder", self._decode, future, memory),
            Layer("head", ("decoder.final_norm", "head"), self._head_queries, (future, future)),
        ]

    def _embedding(self, run: Callable[[Inputs], LayerState], **stacks: int) -> Layer:
        """Return the first layer; `stacks` gives the tokens of each stack, or projection."""
        used = {"query_projection": stacks.pop("query_projection")} if self.query_projection else {}
        used |= {
            f"{stack}.{part}": tokens
            for stack, tokens in stacks.items()
            for part in ("input_projection", "positions")
        }
        for extra in ("channel_embedding", "role_embedding", "calendar_embedding"):
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
        """Return the head's numbers [B, H, C, output size]; `forecast` and `loss` take them.

        In training a decoder that scores all positions returns those of each, [B, M, T, C, output
        size], of the T points after it.
        """
        state: LayerState | Tensor | Inputs = inputs
        for layer in self.layers():
            state = layer.run(state)
        return cast(Tensor, state)

    def scaled(self, raw: Tensor, context: Tensor) -> Tensor:
        """Return what `forward` returned in the units of its context, [B, H, C, output size].

        The context is [B, L, C], or with what else is read [B, L, V].
        """
        context = self._forecast_alone(context)
        scale, forecast = self.features.scale(context), self.output.shaped(raw)
        start = self.features.seasonal_naive(context, scale)
        if start is not None:
            forecast = self.output.scaled(forecast, start)
        return self.output.scaled(forecast, scale)

    def forecast(self, raw: Tensor, context: Tensor) -> Tensor:
        """Return the point forecast [B, H, C] in the units of its context."""
        return self.output.point(self.scaled(raw, context))

    def predicted(self, raw: Tensor, context: Tensor) -> Tensor:
        """Return the point forecast and quantiles [B, H, C, 1 + levels], in the context's units."""
        scaled = self.scaled(raw, context)
        point = self.output.point(scaled).unsqueeze(-1)
        return torch.cat([point, self.output.quantiles(scaled)], -1)

    def loss(self, raw: Tensor, labels: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean over samples of each sample's mean loss, a scalar.

        labels: target [B, H, C] with NaN where missing, and the context as `scaled` takes it.
        """
        target, context = labels[0], self._forecast_alone(labels[1])
        if raw.ndim == 5:
            return self._loss_at_all_positions(raw, target, context)
        if self.features.loss_units == "data":
            forecast = self.scaled(raw, context)
        else:
            scale, forecast = self.features.scale(context), self.output.shaped(raw)
            start, target = self.features.seasonal_naive(context, scale), scale.entered(target)
            if start is not None and self.features.loss_units == "season":
                target = start.entered(target)
            elif start is not None:
                forecast = self.output.scaled(forecast, start)
        per_point = self.output.loss(forecast, target.nan_to_num())
        return sample_mean(per_point, ~target.isnan())

    def _forecast_alone(self, context: Tensor) -> Tensor:
        """Return the channels of a context that are forecast, [B, L, C]."""
        return context[..., : self.shape.channels]

    def _loss_at_all_positions(self, raw: Tensor, target: Tensor, context: Tensor) -> Tensor:
        patch, (positions, ahead) = self.config.patch_length, raw.shape[1:3]
        scale, has_seen = running_scale(context, patch, is_squashed=self.config.arcsinh)
        points = torch.cat([whole_patches(context, patch), target], 1)
        wanted = scale.entered(following(points, positions, patch, ahead))
        per_point = self.output.loss(self.output.shaped(raw), wanted.nan_to_num())
        return sample_mean(per_point, ~wanted.isnan() & has_seen)

    def inputs(
        self, context: Tensor, covariates: Tensor, future: Tensor, asked: Tensor | None = None
    ) -> Inputs:
        """Return what the first layer takes.

        The context [B, L, V] may have more channels than the network reads. `future` [B, H, C]
        holds values as far as they are known, NaN beyond. `asked` [B, H] is 1 where a point is to
        be forecast, by default everywhere.
        """
        variates = self.features.variates
        context = context[..., :variates]
        if self.config.architecture == "decoder" and not self.config.scores_all_positions:
            beside = (0, variates - self.shape.channels)
            return context, covariates, F.pad(future, beside, value=math.nan)
        if asked is None or not self.config.has_queries:
            return context, covariates
        return context, covariates, asked

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

    def _block(self, layer: nn.Module, *arguments: object, **options: object) -> Tensor:
        return run_layer(layer, *arguments, recompute=self.recompute, **options)

    def _mask(self, padding: Tensor) -> Tensor | None:
        """Return the padding, or None where no point can be missing: kernels need no mask then."""
        return padding if self.shape.missing or self.reads_past else None

    def _encode(self, layer: nn.Module, state: LayerState) -> LayerState:
        states, padding = state
        return self._block(layer, states, self._mask(padding)), padding

    def _split(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states of the context [R, M, d_model] and of the future [R, N, d_model]."""
        memory = states.shape[1] - self.future_patches
        return states[:, :memory], states[:, memory:]

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
        # Positions that attention rotates by are counted from the context's first patch.
        future = self._block(layer, future, memory, padding, start=memory.shape[1])
        return torch.cat([memory, future], 1), state[1]

    def _head_at_once(self, state: LayerState) -> Tensor:
        """Forecast the whole future from all context tokens (encoder)."""
        assert self.encoder is not None
        context = state[0][:, : self.memory_patches]
        return self._project(self.encoder.final_norm(context).flatten(1).unsqueeze(1))

    def _head_asked(self, state: LayerState) -> Tensor:
        """Forecast each future patch from its token (encoder with a token head)."""
        assert self.encoder is not None
        return self._project(self.encoder.final_norm(self._split(state[0])[1]))

    def _head_next(self, state: LayerState) -> Tensor:
        """Forecast each future patch from the token before it (decoder)."""
        assert self.decoder is not None
        return self._project(self.decoder.final_norm(state[0][:, -self.future_patches :]))

    def _head_running(self, state: LayerState) -> Tensor:
        """Forecast from the last token, or in training from each (decoder, all positions)."""
        assert self.decoder is not None
        states = state[0] if self.training else state[0][:, -1:]
        numbers = self.head(self.decoder.final_norm(states)).float()
        points = numbers.unflatten(-1, (-1, self._head_channels, self.output.size))
        if self.rows_per_sample > 1:  # [R, positions, T, 1, size]
            points = points.squeeze(3).unflatten(0, (-1, self.rows_per_sample)).movedim(1, 3)
            points = points[:, :, :, : self.shape.channels]
        return points if self.training else points[:, 0, : self.shape.prediction_length]

    def _head_queries(self, state: LayerState) -> Tensor:
        """Forecast each future patch from its query (encoder_decoder)."""
        assert self.decoder is not None
        return self._project(self.decoder.final_norm(self._split(state[0])[1]))

    def _project(self, states: Tensor) -> Tensor:
        """Apply the head to states [R, projections, d]; return [B, H, C, output size]."""
        numbers = self.head(states).float()
        points = numbers.unflatten(-1, (-1, self._head_channels, self.output.size)).flatten(1, 2)
        points = points[:, : self.shape.prediction_length]
        if self.rows_per_sample == 1:
            return points
        points = points.squeeze(2).unflatten(0, (-1, self.rows_per_sample)).transpose(1, 2)
        return points[:, :, : self.shape.channels]
