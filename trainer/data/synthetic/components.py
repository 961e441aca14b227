"""Series of parts that people name: trend, seasons, changes, outliers, demand now and then.

Univariate ones follow the structure of ForecastPFN (Dooley et al. 2023): trend x seasons x noise,
with changes of level and slope, and outliers, added here. `coupled` lets latent series drive
several channels at lags, and `intermittent` is Croston's model (1972) with seasonal chances.
"""

from __future__ import annotations

import numpy as np

from trainer.data.arrays import Doubles

PERIODS = (4, 5, 7, 12, 24, 30, 48, 52, 96, 144, 168, 288, 336, 365)
"""Periods in points."""


def structured(rng: np.random.Generator, length: int) -> Doubles:
    """Return a series [T] of trend, seasons, changes, outliers and noise."""
    seasons = season(rng, length)
    base = trend(rng, length)
    is_sum = rng.random() < 0.5
    series = base + seasons if is_sum else base * (1 + 0.5 * np.tanh(seasons))
    series = series + noise(rng, length) * 10 ** rng.uniform(-2, 0)
    if rng.random() < 0.3:
        series = with_outliers(series, rng)
    scale = 10 ** rng.uniform(-2, 4)
    return np.asarray(scale * (series + rng.normal() * rng.integers(0, 3)))


def trend(rng: np.random.Generator, length: int) -> Doubles:
    """Return a trend [T]: straight pieces, growth that saturates, or exponential."""
    time = np.linspace(0.0, 1.0, length)
    kind = rng.integers(4)
    if kind == 0:
        return np.full(length, rng.normal())
    if kind == 1:
        return np.asarray(np.exp(rng.normal(0, 1.5) * time))
    if kind == 2:
        middle, steep = rng.uniform(0.1, 0.9), rng.uniform(3, 30)
        return np.asarray(2 / (1 + np.exp(-steep * (time - middle))) * rng.choice([-1, 1]))
    knots = np.sort(np.concatenate([[0.0, 1.0], rng.random(rng.integers(0, 5))]))
    level = np.cumsum(np.concatenate([[0.0], rng.normal(0, 2, len(knots) - 1) * np.diff(knots)]))
    series = np.interp(time, knots, level)
    if rng.random() < 0.3:  # the level jumps
        series = series + rng.normal() * (time > rng.random())
    return np.asarray(series)


def season(rng: np.random.Generator, length: int) -> Doubles:
    """Return the sum [T] of up to three seasons with harmonics, whose size may change."""
    time = np.arange(length)
    total = np.zeros(length)
    fitting = [period for period in PERIODS if 2 * period <= length] or [max(2, length // 2)]
    for period in rng.choice(fitting, size=rng.integers(0, 4)):
        harmonics = np.arange(1, 1 + rng.integers(1, 7))
        weight = rng.normal(size=(2, len(harmonics))) / harmonics
        phase = 2 * np.pi * np.outer(time, harmonics) / period
        wave = np.sin(phase) @ weight[0] + np.cos(phase) @ weight[1]
        growth = 1 + rng.uniform(-0.8, 0.8) * np.linspace(-1, 1, length) * (rng.random() < 0.3)
        total += growth * wave * 10 ** rng.uniform(-1, 0.3)
    return total


def noise(rng: np.random.Generator, length: int) -> Doubles:
    """Return noise [T] that depends on itself a step before, and may be louder at times."""
    shocks = rng.standard_t(5, length) if rng.random() < 0.3 else rng.standard_normal(length)
    memory = rng.uniform(0, 0.95) * (rng.random() < 0.5)
    if memory > 0:
        powers = memory ** np.arange(min(length, 200))
        size = 2 * length
        spectrum = np.fft.rfft(shocks, size) * np.fft.rfft(powers, size)
        shocks = np.fft.irfft(spectrum, size)[:length] * np.sqrt(1 - memory**2)
    if rng.random() < 0.2:
        shocks = shocks * np.exp(season(rng, length).clip(-2, 2))
    return np.asarray(shocks)


def with_outliers(series: Doubles, rng: np.random.Generator) -> Doubles:
    """Return a series with some values far outside."""
    count = rng.integers(1, 2 + len(series) // 100)
    at = rng.integers(len(series), size=count)
    spread = series.std() + 1e-3
    answer = series.copy()
    answer[at] += spread * rng.uniform(3, 12, count) * rng.choice([-1, 1], count)
    return answer


def intermittent(rng: np.random.Generator, length: int) -> Doubles:
    """Return demand [T] that is 0 at most points, and comes by chances that have seasons."""
    chance = np.clip(rng.beta(1, 4) * np.exp(0.5 * season(rng, length).clip(-2, 2)), 0.01, 0.95)
    comes = rng.random(length) < chance
    size = rng.negative_binomial(rng.uniform(0.5, 5), rng.uniform(0.05, 0.6), length) + 1
    return np.asarray(comes * size * np.exp(0.3 * trend(rng, length).clip(-3, 3)).round(), float)


def coupled(rng: np.random.Generator, length: int, channels: int) -> Doubles:
    """Return channels [C, T] that common latent series drive, at lags and through bends."""
    most = max(1, min(channels, 1 + channels // 2))
    drivers = int(rng.integers(1, most + 1))
    longest = max(1, length // 16)
    latent = np.stack([structured(rng, length + longest) for _ in range(drivers)])
    latent = (latent - latent.mean(1, keepdims=True)) / (latent.std(1, keepdims=True) + 1e-6)
    answer = np.empty((channels, length))
    for channel in range(channels):
        lags = longest - rng.integers(0, longest + 1, drivers)
        weights = rng.normal(size=drivers) * (rng.random(drivers) < 0.8)
        mixed = np.zeros(length)
        for path, lag, weight in zip(latent, lags.tolist(), weights.tolist(), strict=True):
            mixed += weight * path[lag : lag + length]
        mixed = np.tanh(mixed) if rng.random() < 0.3 else mixed
        own = rng.uniform(0, 0.5) * noise(rng, length)
        answer[channel] = 10 ** rng.uniform(-2, 3) * (mixed + own + rng.normal())
    return answer
