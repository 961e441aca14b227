"""The periods of a window, and the values one period before each of its points.

Patches that do not divide a period make it hard for a network to repeat it; a channel that holds
the value one period ago gives it for nothing. Periods are found in the window's own context by its
autocorrelation (Box & Jenkins 1970), so nothing later is seen.

Shapes: R rows, L context points, H future points, K periods.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.running_max import running_max

SHORTEST = 2
"""The shortest period, in points."""

STRONG = 0.5
"""Autocorrelation from which a repeat counts as a period: trends and walks have weaker ones, and
are forecast better by their last value."""

ALIKE = 0.95
"""Share of the strongest autocorrelation from which a shorter repeat is meant: the multiples of a
period repeat as well as it does, but for noise."""

LEAST_ERROR = 0.01
"""Least seasonal error of a row, in the units of its context's deviation."""

STEPS = 10_000
"""Autocorrelations are compared in so many steps: rounding, which differs between kernels, decides
nothing."""


@torch.no_grad()
def find_periods(context: Tensor, count: int) -> Tensor:
    """Return the strongest periods of contexts [R, L], NaN where missing: [R, count], int64.

    Where a row has fewer, the rest are 1. A period is at most half of what lies behind the first
    point that is not missing.
    """
    length = context.shape[1]
    if length < 2 * SHORTEST:
        return torch.ones(context.shape[0], count, dtype=torch.int64, device=context.device)
    span = length - (~context.isnan()).to(torch.uint8).argmax(1, keepdim=True)
    lags = torch.arange(SHORTEST, length // 2 + 1, device=context.device)
    strength = _autocorrelation(_without_trend(context))
    before, middle, after = (
        strength[:, SHORTEST + shift : SHORTEST + shift + len(lags)] for shift in (-1, 0, 1)
    )
    is_peak = (middle > before) & (middle >= after) & (middle > STRONG) & (2 * lags <= span)
    steps = (middle * STEPS).round()
    found = []
    for _ in range(count):
        peaks = steps.where(is_peak, -1.0)
        alike = is_peak & (peaks >= ALIKE * peaks.amax(1, keepdim=True))
        shortest = alike.to(torch.uint8).argmax(1, keepdim=True)
        period = lags[shortest].where(alike.gather(1, shortest), 1)
        found.append(period)
        # A further period is another one: neither about as long nor a multiple of it.
        share = lags / period
        is_multiple = (share > 1.5) & ((share - share.round()).abs() <= 0.1)
        is_peak = is_peak & ~is_multiple & ((share <= 0.6) | (share > 1.5))
    return torch.cat(found, 1)


def _without_trend(context: Tensor) -> Tensor:
    """Return rows less their line of least squares, NaN where missing."""
    valid = ~context.isnan()
    count = valid.sum(1, keepdim=True).clamp(min=1)
    time = torch.arange(context.shape[1], device=context.device, dtype=context.dtype)
    time = time / context.shape[1]
    centre = (time * valid).sum(1, keepdim=True) / count
    mean = context.nan_to_num().sum(1, keepdim=True) / count
    times, values = time - centre, context - mean
    spread = (times.square() * valid).sum(1, keepdim=True)
    slope = (times * values.nan_to_num()).sum(1, keepdim=True) / spread.clamp(min=1e-12)
    return values - slope * times


def _autocorrelation(rows: Tensor) -> Tensor:
    """Return the autocorrelation of rows [R, L] by lag [R, L], -1 where too few points meet."""
    length = rows.shape[1]
    valid = (~rows.isnan()).to(rows.dtype)
    products = _correlated(rows.nan_to_num())
    pairs = _correlated(valid).round()
    variance = products[:, :1] / pairs[:, :1].clamp(min=1)
    lags = torch.arange(length, device=rows.device)
    enough = pairs >= lags.clamp(min=8)
    strength = products / pairs.clamp(min=1) / variance.clamp(min=1e-12)
    return strength.where(enough, -1.0)


def _correlated(rows: Tensor) -> Tensor:
    """Return the sums of products of points so many lags apart, [R, L]."""
    length = rows.shape[1]
    power = torch.fft.rfft(rows, 2 * length).abs().square()
    return torch.fft.irfft(power, 2 * length)[:, :length]


def one_period_ago(context: Tensor, periods: Tensor, horizon: int) -> Tensor:
    """Return the values one period before each point of context and future: [R, L + H, K].

    Of a future point it is that of the last whole period of the context, the seasonal naive
    forecast. A missing value is the one before it, and 0 where there is none before.
    """
    length = context.shape[1]
    place = torch.arange(length, device=context.device)
    last = running_max(place.where(~context.isnan(), -1))
    filled = context.nan_to_num().gather(1, last.clamp(min=0)).where(last >= 0, 0.0)
    period = periods.unsqueeze(1)  # [R, 1, K]
    past = place.view(1, -1, 1) - period
    ahead = torch.arange(horizon, device=context.device).view(1, -1, 1)
    future = length + ahead - period * (ahead // period + 1)
    source = torch.cat([past, future], 1)
    values = filled.gather(1, source.clamp(min=0).flatten(1)).view(source.shape)
    return values.where(source >= 0, 0.0)


def has_before(context: Tensor, periods: Tensor) -> Tensor:
    """Return which points of contexts [R, L] are known and have one of the `periods` [R] before."""
    valid = ~context.isnan()
    first = valid.to(torch.uint8).argmax(1, keepdim=True)
    place = torch.arange(context.shape[1], device=context.device)
    return valid & (place >= first + periods.unsqueeze(1))


def seasonal_error(distance: Tensor, known: Tensor) -> Tensor:
    """Return the mean absolute error of seasonal naive within contexts, [R, 1].

    It is MASE's scale (Hyndman & Koehler 2006): distance [R, L] of points from those one period
    ago, over those that are `known`. Where none is, the error is 1.
    """
    count = known.sum(1, keepdim=True)
    total = distance.abs().where(known, 0.0).sum(1, keepdim=True)
    return (total / count.clamp(min=1)).clamp(min=LEAST_ERROR).where(count > 0, 1.0)
