"""What tokens are made of: a window's values, those one period before, what is known in advance.

Shapes as in `network`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from model.network_config import LossUnits, ModelConfig, SeriesShape
from model.patches import Align, to_patches, value_patches
from model.periods import find_periods, has_before, one_period_ago, seasonal_error
from model.window_scale import WindowScale, instance_statistics


class WindowFeatures:
    """Cuts windows into patches of numbers. It has no weights."""

    def __init__(self, config: ModelConfig, shape: SeriesShape) -> None:
        self._config, self._shape = config, shape
        self.variates = config.variates(shape)
        self.row_channels = self.variates if config.channels == "mixed" else 1
        self.rows_per_sample = self.variates // self.row_channels
        is_window = config.scores_all_positions or (config.loss_units is None and shape.many_series)
        self.loss_units: LossUnits = "data"
        """Units of losses."""
        if config.instance_norm:
            self.loss_units = config.loss_units or ("window" if is_window else "data")
        self._seasonal_numbers = config.periods + (2 if self.loss_units == "season" else 0)
        """Numbers of a point that tell of one period before it."""
        own = (2 + self._seasonal_numbers) * self.row_channels
        self.size = config.patch_length * own + config.known_patch_length * shape.covariates
        """Numbers of a patch of the context, with what is known of it or of what it forecasts."""
        asked = 1 + self._seasonal_numbers * self.row_channels + shape.covariates
        self.query_size = config.future_patch_length * asked
        """Numbers of a patch of the future that is asked for."""

    def scale(self, context: Tensor) -> WindowScale:
        """Return how a window with the context [B, L, C] is scaled."""
        config = self._config
        if config.instance_norm:
            relative = self.loss_units != "data"
            statistics = instance_statistics(context, is_relative=relative)
            return WindowScale(*statistics, is_squashed=config.arcsinh)
        return WindowScale(torch.zeros_like(context[:, :1]), torch.ones_like(context[:, :1]))

    def values(self, units: Tensor, align: Align) -> tuple[Tensor, Tensor]:
        """Return patches of units [B, T, C] and flags [R, patches, 2 P c], and their padding."""
        return value_patches(self._rows(units), self._patch_length(align), align=align)

    def known(self, covariates: Tensor, length: int, align: Align) -> tuple[Tensor, Tensor]:
        """Return what is known in advance of the context's ("end") or the future's points.

        covariates [B, L + H, F], L = `length` -> numbers [R, patches, P * numbers], and calendar
        features [R, T, K].
        """
        covariates = covariates[:, :length] if align == "end" else covariates[:, length:]
        covariates = covariates.repeat_interleave(self.rows_per_sample, dim=0)
        sizes = [self._shape.covariates, len(self._shape.calendar)]
        numbers, dates = covariates.split(sizes, -1)
        return to_patches(numbers, self._patch_length(align), align=align), dates

    def asked(self, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Return patches of flags [R, N, P] of asked points [B, H], and padding [R, N]."""
        flags = asked.repeat_interleave(self.rows_per_sample, dim=0).unsqueeze(-1)
        patches = to_patches(flags, self._config.future_patch_length, align="start")
        return patches, (patches == 0).all(-1)

    def one_period_ago(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """Return patches of the values one period before points of context and future.

        units [B, L, C] of the context -> [R, M, P * c * n], [R, N, P * c * n]: of each point the n
        numbers are the values one of the periods before. With losses in seasonal units two more are
        its distance from the first of them in these units, and their logarithm.
        """
        length = units.shape[1]
        before, distance, known, error = self._seasonal(units)
        if self.loss_units == "season":
            future = (0, 0, 0, self._shape.prediction_length)
            distance = F.pad((distance / error).where(known, 0.0).asinh(), future)
            size = error.log() * F.pad((~units.isnan()).to(error.dtype), future, value=1.0)
            before = torch.cat([before, distance.unsqueeze(-1), size.unsqueeze(-1)], -1)
        if self.rows_per_sample > 1:
            before = before.transpose(1, 2).flatten(0, 1)  # [R, L + H, n]
        else:
            before = before.flatten(2)
        past = to_patches(before[:, :length], self._patch_length("end"), align="end")
        return past, to_patches(before[:, length:], self._patch_length("start"), align="start")

    def seasonal_naive(self, context: Tensor, scale: WindowScale) -> WindowScale | None:
        """Return what the head's numbers are added to; None without periods.

        That is the seasonal naive forecast [B, H, C]. With losses in seasonal units the numbers are
        multiples of its error within the context, [B, 1, C].
        """
        if not self._config.periods:
            return None
        before, _, _, error = self._seasonal(scale.entered(context))
        if self.loss_units != "season":
            error = torch.ones_like(error)
        return WindowScale(before[:, context.shape[1] :, :, 0], error)

    def _seasonal(self, units: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what is known of one period before each point of units [B, L, C].

        That is the values of then, also before points of the future [B, L + H, C, periods], and of
        the first period the distance from them and where it is known [B, L, C], and its mean
        [B, 1, C].
        """
        length, channels = units.shape[1:]
        rows = units.transpose(1, 2).flatten(0, 1)
        periods = find_periods(rows, self._config.periods)
        before = one_period_ago(rows, periods, self._shape.prediction_length)
        distance, known = rows - before[:, :length, 0], has_before(rows, periods[:, 0])
        each = (before, distance, known, seasonal_error(distance, known))
        values, far, where, error = (x.unflatten(0, (-1, channels)).transpose(1, 2) for x in each)
        return values, far, where, error

    def _rows(self, x: Tensor) -> Tensor:
        """Return x [B, T, C] as rows [R, T, c]."""
        if self.rows_per_sample == 1:
            return x
        return x.transpose(1, 2).flatten(0, 1).unsqueeze(-1)

    def _patch_length(self, align: Align) -> int:
        return self._config.patch_length if align == "end" else self._config.future_patch_length
