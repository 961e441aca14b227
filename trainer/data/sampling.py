"""The order in which a run sees windows: sample i is a pure function of the seed and i.

So it depends neither on the number of ranks nor on restarts, and to resume takes one integer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np

from model.errors import UserError
from trainer.data.arrays import Doubles, Indices, Words
from trainer.data.permutation import permuted

SAMPLES, BUCKETS, EPOCHS = 0, 1, 2
"""Streams of random numbers that a seed has, one for each purpose."""


@dataclass(frozen=True)
class Drawn:
    """Windows that were drawn, by sample."""

    source: Indices
    """Source that each window is of [n]."""
    item: Indices
    """Item of the source [n]."""
    offset: Indices
    """Number of the window within its item [n]."""
    random: Words
    """A random word [n] for what else is drawn by sample."""


class Sampler:
    """Draws windows of items of sources.

    A source is drawn by its weight, an item of it by (its number of windows) ** exponent, and a
    window of that uniformly: with exponent 1 all windows of a source are as likely, with 0 all
    items. `draw` is with replacement. `epoch` sees each window of all sources once, in a random
    order, before any again.

    Where items stand in buckets, the samples of a step are all of one bucket, which is drawn as
    often as its items are; which windows a run sees then depends on its batch size.
    """

    def __init__(
        self,
        counts: Sequence[Indices],
        weights: Sequence[float] | None = None,
        *,
        exponent: float = 1.0,
        order: Literal["draw", "epoch"] = "draw",
        buckets: Sequence[Indices] | None = None,
    ) -> None:
        """Draw from sources, of whose items `counts` says how many windows each has.

        `buckets` says which bucket each item is in. Raises UserError where a source has no window,
        a weight is not above 0, or an epoch is to have weights, exponents or buckets.
        """
        for number, of_source in enumerate(counts):
            if not of_source.any():
                raise UserError(f"source {number} has no window to train on")
        if weights is not None and not all(0 < weight < float("inf") for weight in weights):
            raise UserError(f"weights of sources must be above 0: {list(weights)}")
        if order == "epoch" and not (weights is None and exponent == 1.0 and buckets is None):
            raise UserError(
                "an epoch sees each window once: weights, exponents and buckets go with draw alone"
            )
        self.order = order
        self._counts = [of_source.astype(np.int64) for of_source in counts]
        self._ends = np.cumsum([int(of_source.sum()) for of_source in counts])
        if order == "epoch":
            self._item_ends = [np.cumsum(of_source) for of_source in self._counts]
            return
        share = _normalised(np.array(weights or np.ones(len(counts)), np.float64))
        numbers = buckets or [np.zeros(len(of_source), np.int64) for of_source in counts]
        self._tables = [
            _table(of_source, exponent, of_items)
            for of_source, of_items in zip(self._counts, numbers, strict=True)
        ]
        most = 1 + max(int(of_items.max()) for of_items in numbers)
        self._joint = np.array(
            [
                [share[s] * table.share(b) for s, table in enumerate(self._tables)]
                for b in range(most)
            ]
        )
        """Probability of each bucket and source."""

    @property
    def windows(self) -> int:
        """The number of windows of all sources."""
        return int(self._ends[-1])

    def bucket(self, seed: int, step: int) -> int:
        """Return the bucket that all samples of a step are of."""
        if self.order == "epoch":
            return 0
        (word,) = _words(seed, BUCKETS, step, step + 1)[:, 0]
        return int(_weighted(np.cumsum(self._joint.sum(1)), np.array([word]))[0])

    def word(self, seed: int, step: int) -> int:
        """Return a random word for what else is drawn by step."""
        return int(_words(seed, BUCKETS, step, step + 1)[0, 1])

    def draw(self, seed: int, start: int, stop: int, bucket: int = 0) -> Drawn:
        """Return the windows that are samples start..stop-1 of the run, all of one bucket."""
        words = _words(seed, SAMPLES, start, stop)
        if self.order == "epoch":
            return self._in_epochs(seed, np.arange(start, stop), words[:, 3])
        source = _weighted(np.cumsum(self._joint[bucket]), words[:, 2])
        item, offset = np.empty(len(words), np.int64), np.empty(len(words), np.int64)
        for number, table in enumerate(self._tables):
            rows = np.flatnonzero(source == number)
            if len(rows):
                item[rows], offset[rows] = table.draw(bucket, words[rows])
        return Drawn(source, item, offset, words[:, 3])

    def _in_epochs(self, seed: int, samples: Indices, random: Words) -> Drawn:
        """Return the windows of samples where each window comes once an epoch."""
        window = np.empty(len(samples), np.int64)
        epochs, positions = np.divmod(samples, self.windows)
        for epoch in np.unique(epochs).tolist():
            rows = np.flatnonzero(epochs == epoch)
            key = int(_words(seed, EPOCHS, epoch, epoch + 1)[0, 0])
            window[rows] = permuted(positions[rows], self.windows, key)
        source, within = _located(self._ends, window)
        item, offset = np.empty_like(within), np.empty_like(within)
        for number, ends in enumerate(self._item_ends):
            rows = np.flatnonzero(source == number)
            item[rows], offset[rows] = _located(ends, within[rows])
        return Drawn(source, item, offset, random)


@dataclass(frozen=True)
class _Table:
    """The items of a source, bucket after bucket, and their weights."""

    order: Indices
    counts: Indices
    """The number of windows of each item in `order`."""
    exponent: float
    weights: Doubles
    """The weight of each item in `order` and of all before it, after a 0."""
    windows: Indices
    """The number of windows of each item in `order` and of all before it, after a 0."""
    edges: list[int]
    """Where in `order` each bucket ends, after a 0."""

    def share(self, bucket: int) -> float:
        """Return the share of the weights that a bucket's items have."""
        last = len(self.edges) - 1
        begin, end = (self.edges[min(edge, last)] for edge in (bucket, bucket + 1))
        return float((self.weights[end] - self.weights[begin]) / self.weights[-1])

    def draw(self, bucket: int, words: Words) -> tuple[Indices, Indices]:
        """Return an item of a bucket and a window of that for each row of random words."""
        begin, end = self.edges[bucket], self.edges[bucket + 1]
        if self.exponent == 1.0:  # all windows are as likely: exact, in whole numbers
            base = self.windows[begin]
            window = base + _modulo(words[:, 0], self.windows[end] - base)
            at = np.searchsorted(self.windows, window, side="right") - 1
            return self.order[at], window - self.windows[at]
        low, high = self.weights[begin], self.weights[end]
        weight = low + _shares(words[:, 1]) * (high - low)
        at = np.searchsorted(self.weights, weight, side="right") - 1
        at = np.clip(at, begin, end - 1)  # where rounding ends behind
        return self.order[at], _modulo(words[:, 0], self.counts[at])


def _table(counts: Indices, exponent: float, buckets: Indices) -> _Table:
    """Return the items that have windows, weighted."""
    having = np.flatnonzero(counts > 0)
    order = having[np.argsort(buckets[having], kind="stable")]
    sizes = np.bincount(buckets[order]).tolist()
    windows = counts[order]
    weights = np.cumsum(windows.astype(np.float64) ** exponent)
    return _Table(
        order,
        windows,
        exponent,
        np.concatenate([[0.0], weights]),
        np.concatenate([[0], np.cumsum(windows)]),
        list(accumulate(sizes, initial=0)),
    )


def _modulo(words: Words, counts: Indices | np.int64) -> Indices:
    return np.asarray(words % np.asarray(counts, np.uint64), np.int64)


def _shares(words: Words) -> Doubles:
    """Return each word as a number from 0 to less than 1."""
    return np.asarray((words >> np.uint64(11)) * 2.0**-53, np.float64)


def _normalised(weights: Doubles) -> Doubles:
    return weights / weights.sum()


def _words(seed: int, stream: int, start: int, stop: int) -> Words:
    """Return four random words [stop - start, 4] for each number of a stream.

    Number i has block i of the counter-based generator Philox4x64-10 (Salmon et al. 2011).
    """
    key = seed + (stream << 64)
    blocks = np.random.Philox(key=key, counter=start).random_raw(4 * (stop - start))
    return blocks.reshape(-1, 4)


def _weighted(ends: Doubles, words: Words) -> Indices:
    """Return a number for each word, by weights that `ends` adds up."""
    found = np.searchsorted(ends, _shares(words) * ends[-1], side="right")
    last = int(np.searchsorted(ends, ends[-1]))  # with a weight, where rounding ends behind
    return np.minimum(found, last)


def _located(ends: Indices, numbers: Indices) -> tuple[Indices, Indices]:
    """Return the part that each number is in, and its number there; `ends` adds the parts up."""
    part = np.searchsorted(ends, numbers, side="right")
    before = np.concatenate([[0], ends])[part]
    return part, numbers - before
