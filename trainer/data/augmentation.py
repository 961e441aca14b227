"""Augmentation of training windows: each is a function of its sample's random word alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trainer.config.data_settings import AugmentConfig
from trainer.data.arrays import Floats, Words

MOST_BLOCKS = 3
"""Blocks of missing values that a context gets at most."""


def augmented(values: Floats, context: int, words: Words, config: AugmentConfig) -> Floats:
    """Return windows [B, L + H, C], of which those that their random words choose are changed.

    The first `context` points of a window are its context; only these lose values.
    """
    if not config.any:
        return values
    answer = values.copy()
    for row, word in enumerate(words.tolist()):
        rng = np.random.Generator(np.random.Philox(key=word))
        chosen = [name for name in CHANGES if rng.random() < getattr(config, name)]
        for name in chosen:
            answer[row] = CHANGES[name](answer[row], context, rng)
    return answer


def _scale(window: Floats, context: int, rng: np.random.Generator) -> Floats:
    """Multiply by a factor from 0.1 to 10, as likely below 1 as above."""
    return window * np.float32(10 ** rng.uniform(-1, 1))


def _sign(window: Floats, context: int, rng: np.random.Generator) -> Floats:
    """Turn upside down."""
    return -window


def _reverse(window: Floats, context: int, rng: np.random.Generator) -> Floats:
    """Let time run backwards."""
    return window[::-1]


def _resample(window: Floats, context: int, rng: np.random.Generator) -> Floats:
    """Stretch a part of a half to the whole of the window over all of it, by straight lines."""
    points = len(window)
    part = int(rng.integers(max(2, points // 2), points + 1))
    first = int(rng.integers(points - part + 1))
    at = first + np.linspace(0, part - 1, points)
    columns = [np.interp(at, np.arange(points), channel) for channel in window.T]
    return np.stack(columns, axis=1).astype(np.float32)


def _censor(window: Floats, context: int, rng: np.random.Generator) -> Floats:
    """Cut off what is above, or below, a quantile of the context."""
    known = window[:context][np.isfinite(window[:context])]
    if not known.size:
        return window
    if rng.random() < 0.5:
        return np.minimum(window, np.quantile(known, rng.uniform(0.5, 0.95)).astype(np.float32))
    return np.maximum(window, np.quantile(known, rng.uniform(0.05, 0.5)).astype(np.float32))


def _missing(window: Floats, context: int, rng: np.random.Generator) -> Floats:
    """Leave out up to three blocks of the context, each of a quarter of it at most."""
    answer = window.copy()
    for _ in range(int(rng.integers(1, MOST_BLOCKS + 1))):
        size = int(rng.integers(1, max(2, context // 4)))
        first = int(rng.integers(max(1, context - size)))
        answer[first : first + size] = np.nan
    return answer


CHANGES: dict[str, Callable[[Floats, int, np.random.Generator], Floats]] = {
    "scale": _scale,
    "sign": _sign,
    "reverse": _reverse,
    "resample": _resample,
    "censor": _censor,
    "missing": _missing,
}
"""Change -> what it does, in the order in which they are made."""
