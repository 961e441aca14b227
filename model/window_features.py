"""What tokens are made of: a window's values, those one period before, what is known in advance.

Shapes as in `network`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.network_config import ModelConfig, SeriesShape
from model.patches import Align, to_patches, value_patches
from model.periods import find_periods, one_period_ago
from model.window_scale import WindowScale, instance_statistics


class WindowFeatures:
    """Cuts windows into patches of numbers. It has no weights."""

    def __init__(self, config: ModelConfig, shape: SeriesShape) -> None:
        self._config, self._shape = config, shape
        self.row_channels = 1 if config.channels == "independent" else shape.channels
        self.rows_per_sample = shape.channels // self.row_channels
        self.scores_window_units = config.instance_norm and (
            config.loss_units == "window"
            or config.scores_all_positions
            or (config.loss_units is None and shape.many_series)
        )
        """Whether losses are in units of each window's own deviation."""
        own = (2 + config.periods) * self.row_channels
        self.size = config.patch_length * own + config.known_patch_length * shape.covariates
        """Numbers of a patch of the context, with what is known of it or of what it forecasts."""
        asked = 1 + config.periods * self.row_channels + shape.covariates
        self.query_size = config.future_patch_length * asked
        """Numbers of a patch of the future that is asked for."""

    def scale(self, context: Tensor) -> WindowScale:
        """Return how a window with the context [B, L, C] is scaled."""
        config = self._config
        if config.instance_norm:
            relative = self.scores_window_units
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

        units [B, L, C] of the context -> [R, M, P * c * periods], [R, N, P * c * periods].
        """
        before = self._one_period_ago(units)
        if self.rows_per_sample > 1:
            before = before.transpose(1, 2).flatten(0, 1)  # [R, L + H, periods]
        else:
            before = before.flatten(2)
        length = units.shape[1]
        past = to_patches(before[:, :length], self._patch_length("end"), align="end")
        return past, to_patches(before[:, length:], self._patch_length("start"), align="start")

    def level(self, context: Tensor, scale: WindowScale) -> Tensor | None:
        """Return what a forecast is added to, [B, H, C]: seasonal naive; None without periods."""
        if not self._config.periods:
            return None
        before = self._one_period_ago(scale.entered(context))
        return before[:, context.shape[1] :, :, 0]

    def _one_period_ago(self, units: Tensor) -> Tensor:
        """Return [B, L + H, C, periods]."""
        channels = units.shape[2]
        rows = units.transpose(1, 2).flatten(0, 1)
        periods = find_periods(rows, self._config.periods)
        before = one_period_ago(rows, periods, self._shape.prediction_length)
        return before.unflatten(0, (-1, channels)).transpose(1, 2)

    def _rows(self, x: Tensor) -> Tensor:
        """Return x [B, T, C] as rows [R, T, c]."""
        if self.rows_per_sample == 1:
            return x
        return x.transpose(1, 2).flatten(0, 1).unsqueeze(-1)

    def _patch_length(self, align: Align) -> int:
        return self._config.patch_length if align == "end" else self._config.future_patch_length
