"""Settings of the network that is trained, and the sizes that the data determines.

This file imports no torch, so that a configuration is checked in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, model_validator

from model.config import (
    FREQUENCY_SEES_ALL,
    LayerCount,
    Positive,
    PositiveInt,
    QuantileLevels,
    TransformerConfig,
    UnusedRules,
)

LossUnits = Literal["window", "season", "data"]
"""Units of losses."""


class ModelConfig(TransformerConfig):
    """The section `model`: settings of the network that is trained."""

    architecture: Literal["encoder", "decoder", "encoder_decoder"] = "encoder_decoder"
    """Architecture: encoder (the context's patches give the whole future at once, beside patches
    of what is known of the future, if anything is), decoder (each
    patch gives the next one, causally), or encoder_decoder (a query decoder has a query for each
    future patch). See also head."""
    num_decoder_layers: LayerCount | None = None
    """Number of decoder layers of an encoder_decoder. Default: num_layers."""
    patch_length: PositiveInt = 16
    """Number of points per patch, that is, per token; 1 makes every point a token."""
    head: Literal["flatten", "token"] = "flatten"
    """Head of an encoder: flatten forecasts the whole future from all tokens of a context of one
    length (Nie et al. 2023, PatchTST); token has a token for each future patch, with what is known
    of it, and forecasts it from there, after a context of any length (Ansari et al. 2025,
    Chronos-2)."""
    output_patch_length: PositiveInt | None = None
    """Number of points that a token of the future forecasts. Default: patch_length."""
    patch_projection: Literal["linear", "residual"] = "linear"
    """Projection of a patch's numbers to a token, and of a token to what it forecasts: linear, or
    with a hidden layer added to that (Das et al. 2024, TimesFM)."""
    channels: Literal["independent", "grouped", "mixed"] = "independent"
    """Treatment of a series' channels: independent forecasts each by itself with the same weights;
    grouped does so, too, but some layers attend to the other channels of the series at the same
    time, in place of other times; mixed puts all channels of a patch into one token. Columns that
    are known only up to the present are further channels, which are not forecast, to grouped and
    mixed ones."""
    variates_every: Annotated[int, Field(ge=2, le=10_000)] = 2
    """Of channels: grouped, one layer of so many attends to other channels; not those of a query
    decoder."""
    channel_embedding: bool = False
    """Whether a learned vector per channel is added, so that the same weights can distinguish
    channels. It needs channels: independent, and ties the weights to this set of channels."""
    instance_norm: bool = True
    """Whether each window has its context's mean subtracted and is divided by its context's
    deviation; forecasts are scaled back (Kim et al. 2022, RevIN, without its affine part)."""
    arcsinh: bool = False
    """Whether the network sees arcsinh of the normalised values, so that outliers weigh less."""
    periods: Annotated[int, Field(ge=0, le=4)] = 0
    """Number of periods that are found in each context by its autocorrelation. A token also holds
    its points' values one period before, and a forecast is what is added to the seasonal naive one
    of the first."""
    loss: Literal["mse", "mae", "huber", "quantile", "student_t"] = "mse"
    """Loss, which decides what is forecast: a point (mse, mae, huber), quantiles (pinball loss), or
    a Student-t distribution (negative log-likelihood)."""
    loss_positions: Literal["future", "all"] = "future"
    """Positions of a decoder that are scored: those that forecast the future, one patch each, or
    all of the context's, each of which forecasts the next output_patch_length points, and knows the
    scale of what came before it alone."""
    loss_units: LossUnits | None = None
    """Units of the loss: window, the context's own deviation, in which a series counts whatever its
    scale; season, the error of seasonal naive within the context, in which MASE is told and a
    nearly periodic series counts too; or data, those of the training part. Default: window for many
    series, data for one."""
    huber_delta: Positive = 1.0
    """Error at which the Huber loss changes from quadratic to linear."""
    quantile_order: Literal["cumulative", "sorted"] = "cumulative"
    """How quantiles are kept from crossing: cumulative adds positive steps to the median, sorted
    sorts the numbers of the head, which may be as close as they like from the start."""
    quantiles: QuantileLevels = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    """Quantile levels for loss: quantile, ascending; 0.5 is the point forecast."""

    @model_validator(mode="after")
    def _check_network(self) -> ModelConfig:
        if self.channel_embedding and self.channels == "mixed":
            raise ValueError(
                "channel_embedding: mixed tokens hold all channels already; "
                "use channels: independent or channel_embedding: false"
            )
        if self.channels == "grouped" and self.share_layers:
            raise ValueError(
                "channels: grouped has layers of two kinds, which share no weights; use "
                "share_layers: false"
            )
        if self.channels == "grouped" and not self.variate_layers:
            raise ValueError(
                f"variates_every: none of num_layers: {self.num_layers} would attend to other "
                f"channels; use at most {self.num_layers}, or channels: independent"
                if self.num_layers > 1
                else "channels: grouped needs num_layers: 2 at least, as its layers alternate"
            )
        if self.architecture == "decoder" and self.att_type_of_decoder == "frequency":
            raise ValueError(f"att_type: {FREQUENCY_SEES_ALL}")
        if self.loss_units == "season" and not self.periods:
            raise ValueError(
                "loss_units: season needs a period of each window; set periods: 1, or use "
                "loss_units: window"
            )
        is_own = self.loss_units in ("window", "season")
        if not self.instance_norm and (self.arcsinh or is_own):
            key = "arcsinh" if self.arcsinh else "loss_units"
            raise ValueError(f"{key}: there are no window's units with instance_norm: false")
        if self.scores_all_positions and not (self.instance_norm and self.loss_units != "data"):
            raise ValueError(
                "loss_positions: all positions are scored in units of what they have seen; it goes "
                "with instance_norm: true and loss_units: window"
            )
        if self.arcsinh and self.loss == "student_t":
            raise ValueError(
                "arcsinh: it would bend a Student-t distribution; use loss: quantile, or arcsinh: "
                "false"
            )
        if self.periods and self.architecture == "decoder":
            raise ValueError(
                "periods: they are found in a whole context, and a causal decoder sees parts; "
                "use architecture: encoder or encoder_decoder"
            )
        if sorted(set(self.quantiles)) != list(self.quantiles):
            raise ValueError(f"quantiles: {self.quantiles} must ascend without repetition")
        if 0.5 not in self.quantiles:
            raise ValueError(
                f"quantiles: {self.quantiles} lack 0.5, the point forecast that is scored"
            )
        return self

    @property
    def decoder_layers(self) -> int:
        """Number of decoder layers of an encoder_decoder."""
        return self.num_decoder_layers or self.num_layers

    @property
    def transformer_layers(self) -> int:
        """Number of transformer layers, encoder and decoder together."""
        both = self.architecture == "encoder_decoder"
        return self.num_layers + (self.decoder_layers if both else 0)

    @property
    def distinct_layers(self) -> int:
        """Number of transformer layers with weights of their own."""
        if not self.share_layers:
            return self.transformer_layers
        return 2 if self.architecture == "encoder_decoder" else 1

    @property
    def takes_fewer_channels(self) -> bool:
        """Whether series may have fewer channels than the network: those that lack are masked."""
        return self.channels == "grouped" and not self.channel_embedding

    @property
    def reads_past(self) -> bool:
        """Whether columns that are known only up to the present are read."""
        return self.channels != "independent"

    def variates(self, shape: SeriesShape) -> int:
        """Return the number of channels that are read: those to forecast, and others beside them.

        The latter are the columns that are known only up to the present.
        """
        return shape.channels + (shape.past if self.reads_past else 0)

    @property
    def variate_layers(self) -> range:
        """Layers of the stack that reads values which attend to other channels."""
        if self.channels != "grouped":
            return range(0)
        return range(self.variates_every - 1, self.num_layers, self.variates_every)

    @property
    def has_queries(self) -> bool:
        """Whether the future is asked for by tokens of its own."""
        return self.architecture == "encoder_decoder" or self.has_token_head

    @property
    def has_token_head(self) -> bool:
        """Whether an encoder forecasts from tokens of the future."""
        return self.architecture == "encoder" and self.head == "token"

    @property
    def has_flatten_head(self) -> bool:
        """Whether an encoder forecasts from all tokens of its context at once."""
        return self.architecture == "encoder" and self.head == "flatten"

    @property
    def known_patch_length(self) -> int:
        """Number of points that a token of the context holds what is known in advance of."""
        return self.future_patch_length if self.scores_all_positions else self.patch_length

    @property
    def scores_all_positions(self) -> bool:
        """Whether every token of a decoder's context is scored."""
        return self.architecture == "decoder" and self.loss_positions == "all"

    @property
    def future_patch_length(self) -> int:
        """Number of points of a future patch."""
        is_own = self.has_queries or self.scores_all_positions
        return (self.output_patch_length if is_own else None) or self.patch_length

    def patches(self, context_length: int, prediction_length: int) -> tuple[int, int]:
        """Return the numbers of context and of future patches; a partial patch counts as one.

        A decoder that scores all positions has one future patch, whatever its length.
        """
        return (
            -(-context_length // self.patch_length),
            -(-prediction_length // self.future_patch_length),
        )

    def sequence_length(
        self, context_length: int, prediction_length: int, is_future_known: bool
    ) -> int:
        """Return how many tokens each row holds between two layers.

        An encoder holds the context's patches, and the future's where anything is known of it or
        its head asks for them; an encoder_decoder holds both, and a decoder all but the last future
        patch, which is forecast and never read.
        """
        context, future = self.patches(context_length, prediction_length)
        if self.architecture == "encoder" and not (is_future_known or self.has_token_head):
            return context
        return context + future - (self.architecture == "decoder")

    def unused_rules(self) -> UnusedRules:
        architecture, loss = f"architecture: {self.architecture}", f"loss: {self.loss}"
        return (
            *super().unused_rules(),
            (self.architecture != "encoder_decoder", architecture, ("num_decoder_layers",)),
            (self.architecture == "encoder", architecture, ("decoder_att_type",)),
            (self.architecture != "encoder", architecture, ("head",)),
            (self.channels != "grouped", f"channels: {self.channels}", ("variates_every",)),
            (self.architecture != "decoder", architecture, ("loss_positions",)),
            (
                not (self.has_queries or self.scores_all_positions),
                "a patch of the future for each of its tokens",
                ("output_patch_length",),
            ),
            (self.loss != "quantile", loss, ("quantiles", "quantile_order")),
            (self.loss != "huber", loss, ("huber_delta",)),
        )


CALENDAR_SIZES = {"minute": 60, "hour": 24, "day_of_week": 7, "day_of_month": 31, "month": 12}
"""Number of values of each calendar feature that can be embedded."""


@dataclass(frozen=True)
class SeriesShape:
    """Sizes of the network that the data determines."""

    context_length: int
    """Number of points of a window's context."""
    prediction_length: int
    """Number of points that are forecast."""
    channels: int
    """Number of channels that are forecast."""
    covariates: int
    """Number of columns known in advance that are read as numbers."""
    calendar: tuple[int, ...] = ()
    """Number of values of each calendar column that is embedded; these columns come last."""
    missing: bool = True
    """Whether points may be missing. Where none is, attention needs no mask, and more kernels can
    be used."""
    many_series: bool = False
    """Whether there are many series, each with units of its own."""
    past: int = field(default=0, repr=False)
    """Number of columns that are known only up to the present, which some networks read. Not in the
    dataset's digest: that has the values."""

    @property
    def is_future_known(self) -> bool:
        """Whether anything is known in advance of the points that are forecast."""
        return bool(self.covariates or self.calendar)
