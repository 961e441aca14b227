"""The order of training: which windows a step's samples are, and how much of each is seen.

All of it is a pure function of the seed and the numbers of step and sample, so it depends neither
on the number of ranks nor on restarts, and to resume takes one integer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.config.data_settings import DataConfig
from trainer.data.arrays import Indices, Words
from trainer.data.part import Part
from trainer.data.sampling import Drawn, Sampler
from trainer.data.windows import Split

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""Odd multiplier that spreads a word over all bits (Knuth 1973, section 6.4)."""


def samples_of_replica(
    step: int, replica: int, *, replicas: int, micro: int, whole: int
) -> Iterator[range]:
    """Yield the numbers of the samples of a replica's micro-batches of a step, from 1.

    A step has `whole` samples, a micro-batch `micro`; replicas take micro-batches in turns.
    """
    begin = (step - 1) * whole + replica * micro
    for first in range(begin, step * whole, replicas * micro):
        yield range(first, first + micro)


@dataclass(frozen=True)
class Samples:
    """Windows that are consecutive samples of a run."""

    windows: Indices
    """Numbers of the windows through all sources [n]."""
    context_length: int
    """Points of each context."""
    horizons: Indices | None
    """Points of each future that are forecast [n]; None where that is all."""
    random: Words
    """A random word [n] for what else is drawn by sample."""


class TrainingOrder:
    """Draws the samples of steps from the training windows of all parts."""

    def __init__(self, parts: Sequence[Part], config: DataConfig) -> None:
        """Raises UserError where a part has no training window."""
        self._parts, self._config = parts, config
        self.lengths = config.context_lengths or [config.context_length]
        """Context lengths that steps may have."""
        counts = [part.windows[Split.TRAIN].counts for part in parts]
        self._ends = np.cumsum([int(of_part.sum()) for of_part in counts])
        self._sampler = Sampler(
            counts,
            None if config.order == "epoch" else [source.weight for source in config.sources],
            exponent=config.length_exponent,
            order=config.order,
            buckets=[self._buckets(part) for part in parts] if len(self.lengths) > 1 else None,
        )
        self.may_pad = any(part.is_padded for part in parts)
        """Whether a context may begin before its series."""

    def _buckets(self, part: Part) -> Indices:
        """Return for each item the first context length that holds all that it has."""
        longest = part.parts.train - self._config.least_horizon
        return np.searchsorted(self.lengths, longest).clip(max=len(self.lengths) - 1)

    def context_length(self, seed: int, step: int) -> int:
        """Return the points of the contexts of a step: one number for all of its samples."""
        return self.lengths[self._step(seed, step)[1]]

    def _step(self, seed: int, step: int) -> tuple[int, int]:
        """Return the bucket of a step's items, and which of the context lengths they have.

        It is as likely any of those that the items fill.
        """
        bucket = self._sampler.bucket(seed, step)
        return bucket, self._sampler.word(seed, step) % (bucket + 1)

    def samples(self, seed: int, start: int, stop: int, step: int) -> Samples:
        """Return the run's samples start..stop-1, which are among those of a step."""
        bucket, length = self._step(seed, step)
        drawn = self._sampler.draw(seed, start, stop, bucket)
        numbers, known = self._located(drawn)
        horizons = None
        if self._config.least_horizon < self._config.prediction_length:
            horizons = self._horizons(drawn, known)
        return Samples(numbers, self.lengths[length], horizons, drawn.random)

    def _located(self, drawn: Drawn) -> tuple[Indices, Indices]:
        """Return the numbers of windows, and the points of their series before the future."""
        numbers, known = np.empty((2, len(drawn.source)), np.int64)
        for source, part in enumerate(self._parts):
            rows = np.flatnonzero(drawn.source == source)
            windows = part.windows[Split.TRAIN]
            own = windows.number(drawn.item[rows], drawn.offset[rows])
            numbers[rows] = own + (self._ends[source - 1] if source else 0)
            known[rows] = windows.first[drawn.item[rows]] + drawn.offset[rows]
        return numbers, known + self._config.context_length

    def _horizons(self, drawn: Drawn, known: Indices) -> Indices:
        """Return horizons from the least to the longest that a window has, as likely each."""
        ends = np.empty(len(known), np.int64)
        for source, part in enumerate(self._parts):
            rows = np.flatnonzero(drawn.source == source)
            ends[rows] = part.parts.train[drawn.item[rows]]
        least = self._config.least_horizon
        longest = np.minimum(self._config.prediction_length, ends - known)
        words = (drawn.random * GOLDEN) >> np.uint64(32)
        return np.asarray(least + (words % (longest - least + 1).astype(np.uint64)), np.int64)

    def row(self, seed: int, step: int, samples: int, patch_length: int) -> dict[str, float]:
        """Return what the row of a step of so many samples says of their contexts.

        That is their length, where it varies, and which share of their patches lies before their
        series, where some do.
        """
        bucket, length = self._step(seed, step)
        context = self.lengths[length]
        row: dict[str, float] = {"context_length": context} if len(self.lengths) > 1 else {}
        if self.may_pad:
            drawn = self._sampler.draw(seed, (step - 1) * samples, step * samples, bucket)
            _, known = self._located(drawn)
            filled = -(-np.minimum(known, context) // patch_length)
            row["padding"] = float(1 - filled.mean() / -(-context // patch_length))
        return row
