"""Windows: a context and the future after it, numbered through all series of a part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from trainer.data.arrays import Floats, Indices


class Split(StrEnum):
    """A part of the series in time, or those that are held out."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    HELD_OUT = "held_out"


@dataclass(frozen=True)
class WindowBatch:
    """Windows in standardised units; a window of weight 0 is padding."""

    context: Floats
    """Past values [B, L, C], NaN where missing."""
    target: Floats
    """Future values [B, H, C], NaN where missing."""
    covariates: Floats
    """Covariates [B, L + A, F] of past and future, A at least H: as far ahead as they are known to
    the network."""
    weight: Floats
    """Weights [B]: 1, or 0 for padding."""
    asked: Floats | None = None
    """1 where a point of the future is to be forecast, else 0 [B, H]; None where all are."""
    past: Floats | None = None
    """Values of the context's columns that are known only up to the present [B, L, P], NaN where
    missing; None where there are none."""

    @property
    def variates(self) -> Floats:
        """What is read of the past: the context, and beside it the past columns [B, L, C + P]."""
        return self.context if self.past is None else np.concatenate([self.context, self.past], 2)

    def up_to(self, horizons: Indices) -> WindowBatch:
        """Return the windows, of whose futures only the points before `horizons` [B] are asked."""
        asked = np.arange(self.target.shape[1]) < horizons[:, None]
        covariates = self.covariates.copy()
        covariates[:, self.context.shape[1] :] *= asked[:, :, None]
        target = np.where(asked[:, :, None], self.target, np.float32(np.nan))
        return replace(self, target=target, covariates=covariates, asked=asked.astype(np.float32))


@dataclass(frozen=True)
class Windows:
    """All stride-1 windows of a split, numbered through item after item."""

    first: Indices
    """Point at which the context of each item's first window begins; below 0 where the item is
    shorter than a context."""
    ends: Indices
    """Number of windows of each item and all before it."""

    @classmethod
    def between(cls, begin: Indices, end: Indices, context: int, horizon: int) -> Windows:
        """Return the windows whose future lies in the points begin..end-1 of each item.

        A context has the points before the future, `context` of them wherever an item of that
        length has some window with as many; it may reach into the part before. It has one at least.
        """
        future = np.maximum(np.maximum(begin, 1), np.minimum(context, end - horizon))
        counts = np.maximum(0, end - future - horizon + 1)
        return cls(future - context, np.cumsum(counts))

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def counts(self) -> Indices:
        """The number of windows of each item."""
        return np.diff(self.ends, prepend=0)

    def number(self, item: Indices, offset: Indices) -> Indices:
        """Return the numbers of windows by their items, and their numbers within these."""
        return self._before(item) + offset

    def locate(self, numbers: Indices) -> tuple[Indices, Indices]:
        """Return the item of each window, and the point at which its context begins."""
        item = np.searchsorted(self.ends, numbers, side="right")
        return item, self.first[item] + numbers - self._before(item)

    def _before(self, item: Indices) -> Indices:
        """Return the number of windows of all items before each."""
        return np.where(item > 0, self.ends[item - 1], 0)
