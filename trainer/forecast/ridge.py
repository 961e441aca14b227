"""Ridge regression from a context to its future: what a linear forecast of the series reaches.

Context and future are taken less the context's last value (Zeng et al. 2023, NLinear), which is an
input too, as is 1. One matrix serves all series and channels. Its penalty is the one of `PENALTIES`
with the least error on the validation part.

Shapes: B windows, L context points, H points to forecast, C channels, R rows: the channels of
windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from model.errors import UserError
from trainer.data.arrays import Doubles, Floats, Indices
from trainer.data.dataset import Dataset
from trainer.data.windows import Split
from trainer.forecast.baselines import fill_forward

RIDGE = "ridge regression"

PENALTIES = tuple(float(10**power) for power in range(-4, 5))
"""Penalties, as shares of the mean sum of squares of an input."""

MAX_WINDOWS = 20_000
"""Windows of a part that are fitted to, or looked at, at most; spread evenly over it."""

BATCH = 256


@dataclass
class _Products:
    """Sums of products over rows, a row for each channel of a window without missing points."""

    inputs: Doubles
    """X'X [L + 1, L + 1]."""
    both: Doubles
    """X'Y [L + 1, H]."""
    outputs: float = 0.0
    """The trace of Y'Y."""
    rows: int = 0

    def error(self, weights: Doubles) -> float:
        """Return the sum of squared errors of forecasts by `weights` [L + 1, H]."""
        explained = 2 * np.sum(weights * self.both) - np.sum(weights * (self.inputs @ weights))
        return self.outputs - float(explained)


class Ridge:
    """A linear forecast by `weights` [L + 1, H], fitted to a dataset's training part."""

    def __init__(self, weights: Doubles, penalty: float) -> None:
        self.weights, self.penalty = weights, penalty

    @classmethod
    def fit(
        cls, dataset: Dataset, advance: Callable[[int, int], None] = lambda windows, points: None
    ) -> Ridge:
        """Fit it; `advance` is told how many windows, and points, are done.

        Raises UserError where no training window is without missing points.
        """
        splits = (Split.TRAIN, Split.VALIDATION)
        windows = {split: _spread(dataset.windows(split)) for split in splits}
        size, horizon = dataset.shape.context_length + 1, dataset.shape.prediction_length
        found = []
        for split in splits:
            products = _Products(np.zeros((size, size)), np.zeros((size, horizon)))
            for first in range(0, len(windows[split]), BATCH):
                index = windows[split][first : first + BATCH]
                batch = dataset.batch(split, index)
                _add(products, batch.context, batch.target)
                advance(len(index), batch.context.size + batch.target.size)
            found.append(products)
        training, validation = found
        if not training.rows:
            raise UserError(
                "--ridge: no window of the training part is without missing points; leave it out, "
                "or give training more of the rows in data.split"
            )
        sizes, vectors = np.linalg.eigh(training.inputs)
        turned = vectors.T @ training.both
        unit = max(float(sizes.mean()), np.finfo(np.float64).tiny)
        judge = validation if validation.rows else training
        candidates = {p: vectors @ (turned / (sizes + p * unit)[:, None]) for p in PENALTIES}
        best = min(candidates, key=lambda penalty: judge.error(candidates[penalty]))
        return cls(candidates[best], best)

    def __call__(self, context: Floats) -> Floats:
        """Return forecasts [B, H, C] from contexts [B, L, C]."""
        rows, last = _inputs(_rows_of(fill_forward(context)))
        made = (rows @ self.weights + last).reshape(len(context), context.shape[2], -1)
        return made.transpose(0, 2, 1).astype(np.float32)


def _spread(count: int) -> Indices:
    """Return the numbers of at most MAX_WINDOWS windows of `count`."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_WINDOWS)).astype(np.int64))


def _rows_of(values: Floats) -> Doubles:
    """Return windows [B, T, C] as rows [R, T], R = B C."""
    return values.transpose(0, 2, 1).reshape(-1, values.shape[1]).astype(np.float64)


def _inputs(contexts: Doubles) -> tuple[Doubles, Doubles]:
    """Return the inputs [R, L + 1] of contexts [R, L], and these' last values [R, 1]."""
    last = contexts[:, -1:]
    return np.concatenate([contexts[:, :-1] - last, last, np.ones_like(last)], 1), last


def _add(products: _Products, context: Floats, target: Floats) -> None:
    """Add the rows of windows to sums of products."""
    contexts, futures = _rows_of(context), _rows_of(target)
    is_whole = ~(np.isnan(contexts).any(1) | np.isnan(futures).any(1))
    x, last = _inputs(contexts[is_whole])
    y = futures[is_whole] - last
    products.inputs += x.T @ x
    products.both += x.T @ y
    products.outputs += float(np.sum(np.square(y)))
    products.rows += len(x)
