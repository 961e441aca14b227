"""The network up to its first transformer layer: what it is made of, and the tokens of a window.

Shapes and letters as in `network`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.config import AttentionType
from model.embedding import CalendarEmbedding, ChannelEmbedding, RoleEmbedding
from model.layers import DecoderLayer, EncoderLayer, VariateLayer
from model.network_config import ModelConfig, SeriesShape
from model.patches import Align
from model.projection import make_projection
from model.running_scale import following, running_scale, whole_patches
from model.sequential import LayerState
from model.stack import Stack, make_layers
from model.window_features import WindowFeatures

Inputs = tuple[Tensor, ...]
"""What the first layer takes: context [B, L, V] with NaN where missing, covariates [B, L + H, F],
and for a decoder the future as far as it is known [B, H, V], NaN beyond. Where tokens ask for the
future, which points are asked for [B, H], 1 or 0, may come third; by default all are."""


class TokenNetwork(nn.Module):
    """The stacks of a network, and what makes tokens of windows."""

    def __init__(self, config: ModelConfig, shape: SeriesShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        lengths = shape.context_length, shape.prediction_length
        self.memory_patches, self.future_patches = config.patches(*lengths)
        """Patches of the longest context, and of the future."""
        self.features = WindowFeatures(config, shape)
        self.row_channels = self.features.row_channels
        self.rows_per_sample = self.features.rows_per_sample
        self.encoder: Stack | None = None
        self.decoder: Stack | None = None
        if config.architecture != "decoder":
            layers = self._alternating(config.att_type, lambda: EncoderLayer(config))
            self.encoder = Stack(self._projection(self.features.size), config, layers)
        if config.architecture == "decoder":
            layers = self._alternating(config.att_type_of_decoder, self._causal_layer)
            self.decoder = Stack(self._projection(self.features.size), config, layers)
        if config.architecture == "encoder_decoder":
            layers = make_layers(config, config.decoder_layers, self._query_layer)
            self.decoder = Stack(self._projection(self.features.query_size), config, layers)
        self.query_projection = (
            self._projection(self.features.query_size) if config.has_token_head else None
        )
        self.channel_embedding = (
            ChannelEmbedding(self.features.variates, config.d_model)
            if config.channel_embedding
            else None
        )
        read = self.features.variates - shape.channels
        self.reads_past = read > 0
        """Whether there are channels that are read and not forecast."""
        self.role_embedding = (
            RoleEmbedding(shape.channels, read, config.d_model)
            if self.reads_past and self.row_channels == 1
            else None
        )
        self.calendar_embedding = (
            CalendarEmbedding(shape.calendar, config.d_model) if shape.calendar else None
        )

    def _projection(self, numbers: int) -> nn.Module:
        return make_projection(self.config, numbers, self.config.d_model)

    def _alternating(self, att_type: AttentionType, make: Callable[[], nn.Module]) -> nn.ModuleList:
        """Return the layers of a stack that reads values: some of them attend to other variates."""
        config = self.config
        layers = make_layers(config, config.num_layers, make)
        for index in config.variate_layers:
            layers[index] = VariateLayer(config, att_type, self.rows_per_sample)
        return layers

    def _causal_layer(self) -> EncoderLayer:
        return EncoderLayer(self.config, self.config.att_type_of_decoder, is_causal=True)

    def _query_layer(self) -> DecoderLayer:
        # All that the query decoder reads is known in advance, so it needs no causal order.
        return DecoderLayer(self.config, is_causal=False, on_one_axis=True)

    def _tokens(
        self,
        stack: Stack,
        features: Tensor,
        start: int,
        calendar: Tensor | None,
        projection: nn.Module | None = None,
    ) -> Tensor:
        """Project features and add positions from `start` on, calendar, channel and role."""
        projection = projection or stack.input_projection
        dtype = next(projection.parameters()).dtype
        tokens = stack.positions(projection(features.to(dtype)), start)
        if calendar is not None:
            tokens = tokens + calendar
        if self.channel_embedding is not None:
            tokens = tokens + self.channel_embedding(tokens.shape[0])
        if self.role_embedding is not None:
            tokens = tokens + self.role_embedding(tokens.shape[0])
        return tokens

    def _known(self, covariates: Tensor, length: int, align: Align) -> tuple[Tensor, Tensor | None]:
        """Return what is known in advance of the patches of a context of `length`, or a future's.

        That is numbers [R, patches, P * numbers], and calendar vectors [R, patches, d_model] where
        calendar features are embedded.
        """
        numbers, dates = self.features.known(covariates, length, align)
        if self.calendar_embedding is None:
            return numbers, None
        patch = self.config.patch_length if align == "end" else self.config.future_patch_length
        return numbers, self.calendar_embedding(dates, patch, align=align)

    def _embed_context(self, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the tokens of an encoder: the context's patches; and their padding.

        Third come the values one period before the future's points, where there are periods.
        """
        context, covariates = inputs[:2]
        units = self.features.scale(context).entered(context)
        values, padding = self.features.values(units, align="end")
        known, calendar = self._known(covariates, context.shape[1], align="end")
        features, ahead = [values, known], None
        if self.config.periods:
            before, ahead = self.features.one_period_ago(units)
            features.append(before)
        assert self.encoder is not None
        # The first future patch has one position, however long the context is.
        start = self.memory_patches - padding.shape[1]
        tokens = self._tokens(self.encoder, torch.cat(features, -1), start, calendar)
        return tokens, padding, ahead

    def _asked(self, inputs: Inputs, ahead: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return the features of tokens that ask for the future, calendar vectors, padding.

        A token holds its patch's covariates, which of its points are forecast, and what was one
        period before.
        """
        context, covariates = inputs[:2]
        asked = (
            inputs[2]
            if len(inputs) > 2
            else covariates.new_ones(context.shape[0], self.shape.prediction_length)
        )
        flags, not_asked = self.features.asked(asked)
        known, calendar = self._known(covariates, context.shape[1], align="start")
        features = [known, flags]
        if ahead is not None:
            by_point = ahead.unflatten(-1, (flags.shape[-1], -1))
            features.append((by_point * flags.unsqueeze(-1)).flatten(2))
        return torch.cat(features, -1), calendar, not_asked

    def embed_asked(self, inputs: Inputs) -> LayerState:
        """Return the tokens of an encoder with a token head: the context's and the future's."""
        tokens, padding, ahead = self._embed_context(inputs)
        features, calendar, not_asked = self._asked(inputs, ahead)
        assert self.encoder is not None
        start = self.memory_patches
        future = self._tokens(self.encoder, features, start, calendar, self.query_projection)
        return torch.cat([tokens, future], 1), self._with_future(padding, not_asked)

    def embed_known(self, inputs: Inputs) -> LayerState:
        """Return the tokens of an encoder alone: the context's patches, and the future's.

        The latter hold what is known in advance, and no values; there are none where nothing is.
        """
        tokens, padding, ahead = self._embed_context(inputs)
        if not self.shape.is_future_known:
            return tokens, padding
        known, calendar = self._known(inputs[1], inputs[0].shape[1], align="start")
        values = known.new_zeros(*known.shape[:2], 2 * self.config.patch_length * self.row_channels)
        features = [values, known] if ahead is None else [values, known, ahead]
        assert self.encoder is not None
        future = self._tokens(self.encoder, torch.cat(features, -1), self.memory_patches, calendar)
        not_asked = padding.new_zeros(padding.shape[0], self.future_patches)
        return torch.cat([tokens, future], 1), self._with_future(padding, not_asked)

    def _with_future(self, padding: Tensor, not_asked: Tensor) -> Tensor:
        """Return the padding of a context's and a future's tokens [R, M + N]."""
        if self.config.channels == "grouped":  # a channel without a past is as none to the others
            not_asked = not_asked | padding.all(1, keepdim=True)
        return torch.cat([padding, not_asked], 1)

    def embed_both(self, inputs: Inputs) -> LayerState:
        """Return the tokens of an encoder, and beside them the queries of a query decoder."""
        memory, padding, ahead = self._embed_context(inputs)
        features, calendar, _ = self._asked(inputs, ahead)
        assert self.decoder is not None
        future = self._tokens(self.decoder, features, self.memory_patches, calendar)
        return torch.cat([memory, future], 1), padding

    def embed_running(self, inputs: Inputs) -> LayerState:
        """Return the tokens of a decoder that scores all positions: the context's patches.

        Each is scaled by what has been seen up to its end, and holds what is known in advance of
        the points that it forecasts.
        """
        context, covariates = inputs[:2]
        patch, ahead = self.config.patch_length, self.config.future_patch_length
        scale, _ = running_scale(context, patch, is_squashed=self.config.arcsinh)
        values = whole_patches(context, patch).unflatten(1, (-1, patch))
        patches, padding = self.features.values(scale.entered(values).flatten(1, 2), align="end")
        count = patches.shape[1]
        known = whole_patches(covariates[:, : context.shape[1]], patch)
        known = torch.cat([known, covariates[:, context.shape[1] :]], 1)
        known = following(known, count, patch, ahead).nan_to_num().flatten(1, 2)
        numbers, calendar = self._known(known, 0, align="start")
        assert self.decoder is not None
        start = self.memory_patches - count
        tokens = self._tokens(self.decoder, torch.cat([patches, numbers], -1), start, calendar)
        return tokens, padding

    def embed_sequence(self, inputs: Inputs) -> LayerState:
        """Return the tokens of a decoder: patches of the context and of the known future."""
        context, covariates, future = inputs
        scale, length = self.features.scale(context), context.shape[1]
        past, past_padding = self.features.values(scale.entered(context), align="end")
        following, following_padding = self.features.values(scale.entered(future), align="start")
        past_known, past_calendar = self._known(covariates, length, align="end")
        future_known, future_calendar = self._known(covariates, length, align="start")
        # A token holds a patch's values and the covariates of the next one, which it forecasts.
        values = torch.cat([past, following[:, :-1]], 1)
        known = torch.cat([past_known[:, 1:], future_known], 1)
        calendar = None
        if past_calendar is not None and future_calendar is not None:
            calendar = torch.cat([past_calendar[:, 1:], future_calendar], 1)
        assert self.decoder is not None
        start = self.memory_patches - past.shape[1]
        tokens = self._tokens(self.decoder, torch.cat([values, known], -1), start, calendar)
        return tokens, torch.cat([past_padding, following_padding[:, :-1]], 1)
