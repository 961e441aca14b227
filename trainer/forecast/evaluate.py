"""Scores of a network on the windows of a split, beside those of forecasts without training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from parallel.collectives import sum_over_ranks
from parallel.mesh import Mesh
from trainer.data.dataset import Dataset, Indices, Split, WindowBatch
from trainer.data.tables import Floats

Predict = Callable[[Iterable[WindowBatch]], Iterable[tuple[WindowBatch, Tensor]]]
"""A function from batches to the batches with their forecasts [B, H, C], in standardised units.

It yields nothing on ranks that see no output.
"""

MODEL = "Forescale"
"""Name of the network among the forecasters."""


@dataclass(frozen=True)
class Evaluation:
    """Errors of several forecasters, summed over the windows of a split that are scored."""

    split: Split
    windows: int
    """Number of windows that are scored."""
    all_windows: int
    """Number of windows in the split."""
    score_every: int
    """Distance between windows that are scored."""
    channels: list[str]
    units: str
    """The units that errors are measured in."""
    squared: dict[str, npt.NDArray[np.float64]]
    """Forecaster -> sum of squared errors of each channel [C]."""
    absolute: dict[str, npt.NDArray[np.float64]]
    """Forecaster -> sum of absolute errors of each channel [C]."""
    points: npt.NDArray[np.float64]
    """Number of valid target points of each channel [C]."""
    seasonal_scale: npt.NDArray[np.float64]
    """MASE's divisor for each channel [C]."""
    forecasts: dict[int, Floats] = field(default_factory=dict)
    """Window -> the network's forecast [H, C], of the windows to keep."""

    def scores(self) -> dict[str, dict[str, float]]:
        """Return forecaster -> MSE and MAE over all points, and MASE, the mean over channels."""
        return {
            name: {
                "mse": float(self.squared[name].sum() / max(1.0, self.points.sum())),
                "mae": float(self.absolute[name].sum() / max(1.0, self.points.sum())),
                "mase": self._mase(name),
            }
            for name in self.squared
        }

    def _mase(self, name: str) -> float:
        """Return a forecaster's MASE, the mean over the channels that have any point."""
        scored = self.points > 0
        errors = self.absolute[name][scored] / self.points[scored]
        return float(np.mean(errors / self.seasonal_scale[scored])) if scored.any() else 0.0

    def summary(self) -> dict[str, Any]:
        """Return the content of evaluation.json, but for the step."""
        per_channel = {
            name: {
                channel: {"mse": float(squared / points), "mae": float(absolute / points)}
                for channel, squared, absolute, points in zip(
                    self.channels, self.squared[name], self.absolute[name], self.points, strict=True
                )
                if points > 0
            }
            for name in self.squared
        }
        return {
            "split": str(self.split),
            "windows": self.windows,
            "all_windows": self.all_windows,
            "score_every": self.score_every,
            "units": self.units,
            "scores": self.scores(),
            "per_channel": per_channel,
        }


def evaluate(
    dataset: Dataset,
    split: Split,
    predict: Predict,
    *,
    batch_size: int,
    mesh: Mesh | None = None,
    keep: Sequence[int] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score the windows `dataset.scored(split)`, on the ranks of `mesh` or in this process alone.

    `keep` are those of them whose forecasts are kept; `progress` is called with the number of
    windows that are done, and of all, after each batch. All replicas compute equally many batches
    of equal shape; padding has weight 0. Sums are reduced over ranks, never means.
    """
    replicas, replica = (1, 0) if mesh is None else (mesh.layout.data, mesh.coordinates.data)
    scored = dataset.scored(split)
    batches = batches_of_replica(scored, batch_size, replicas, replica)
    names = [MODEL, *(seasonal_name(s) for s in dataset.season_lengths), "last value"]
    channels = len(dataset.channels)
    sums = np.zeros((2 * len(names) + 1, channels))
    kept = np.zeros((len(keep), dataset.shape.prediction_length, channels))

    def contents() -> Iterator[WindowBatch]:
        for number, index in enumerate(batches, 1):
            yield dataset.batch(split, index, batch_size)
            progress(min(number * batch_size * replicas, len(scored)), len(scored))

    for index, (window, prediction) in zip(batches, predict(contents()), strict=False):
        forecasts = [prediction.numpy(), *baselines(window.context, dataset)]
        valid = ~np.isnan(window.target) & (window.weight[:, None, None] > 0)
        for row, forecast in enumerate(forecasts):
            error = np.where(valid, forecast - np.nan_to_num(window.target), 0.0)
            error = error.astype(np.float64)
            sums[2 * row] += np.square(error).sum((0, 1))
            sums[2 * row + 1] += np.abs(error).sum((0, 1))
        sums[-1] += valid.sum((0, 1))
        for slot, wanted in enumerate(keep):
            if wanted in index:
                kept[slot] = prediction[int(np.flatnonzero(index == wanted)[0])]
    progress(len(scored), len(scored))
    if mesh is not None:
        seen = float(mesh.sees_output)
        sums = sum_over_ranks(mesh, torch.from_numpy(sums) * seen).cpu().numpy()
        if len(keep):
            kept = sum_over_ranks(mesh, torch.from_numpy(kept) * seen).cpu().numpy()
    return Evaluation(
        split,
        len(scored),
        dataset.windows(split),
        dataset.score_every(split),
        dataset.channels,
        dataset.units,
        {name: sums[2 * row] for row, name in enumerate(names)},
        {name: sums[2 * row + 1] for row, name in enumerate(names)},
        sums[-1],
        dataset.seasonal_scale(),
        {wanted: kept[slot].astype(np.float32) for slot, wanted in enumerate(keep)},
    )


def batches_of_replica(
    scored: Indices, batch_size: int, replicas: int, replica: int
) -> list[Indices]:
    """Return the numbers of a replica's part of the windows `scored`, batch by batch.

    All replicas have equally many batches; the last one may have fewer windows, or none.
    """
    first = replica * batch_size
    starts = range(first, len(scored) + first, replicas * batch_size)
    return [scored[start : start + batch_size] for start in starts]


def seasonal_name(season: int) -> str:
    """Return the name of the baseline that repeats the last `season` points."""
    return f"seasonal naive ({season})"


def baselines(context: Floats, dataset: Dataset) -> Iterator[Floats]:
    """Yield forecasts [B, H, C] that repeat each season, then the last value, of [B, L, C]."""
    filled = _fill_forward(context)
    length, horizon = filled.shape[1], dataset.shape.prediction_length
    for season in dataset.season_lengths:
        yield filled[:, length - season + np.arange(horizon) % season]
    yield np.repeat(filled[:, -1:], horizon, axis=1)


def _fill_forward(context: Floats) -> Floats:
    """Return a context whose missing points have the value before them, else 0, the mean."""
    valid = ~np.isnan(context)
    if valid.all():
        return context
    position = np.where(valid, np.arange(context.shape[1])[None, :, None], 0)
    last = np.maximum.accumulate(position, axis=1)
    return np.nan_to_num(np.take_along_axis(context, last, axis=1))
