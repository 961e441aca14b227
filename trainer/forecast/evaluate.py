"""Scores of a forecaster on every window of a split, beside forecasts that need no training."""

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
from trainer.data.dataset import Dataset, Split, WindowBatch
from trainer.data.tables import Floats

Predict = Callable[[Iterable[WindowBatch]], Iterable[tuple[WindowBatch, Tensor]]]
"""Batches with their forecasts, in standardised units; nothing on ranks that see no output."""

MODEL = "Forescale"


@dataclass(frozen=True)
class Evaluation:
    """Sums over all windows."""

    split: Split
    windows: int
    channels: list[str]
    units: str
    """What errors are measured in."""
    squared: dict[str, npt.NDArray[np.float64]]
    """Forecaster -> sum of squared errors per channel."""
    absolute: dict[str, npt.NDArray[np.float64]]
    points: npt.NDArray[np.float64]
    """Valid target points per channel."""
    seasonal_scale: npt.NDArray[np.float64]
    forecasts: dict[int, Floats] = field(default_factory=dict)
    """The model's forecasts [H, C] of the windows that were asked for."""

    def scores(self) -> dict[str, dict[str, float]]:
        """Forecaster -> MSE and MAE over all points, and MASE, the mean over channels."""
        return {
            name: {
                "mse": float(self.squared[name].sum() / max(1.0, self.points.sum())),
                "mae": float(self.absolute[name].sum() / max(1.0, self.points.sum())),
                "mase": self._mase(name),
            }
            for name in self.squared
        }

    def _mase(self, name: str) -> float:
        """Mean over the channels that have any point."""
        scored = self.points > 0
        errors = self.absolute[name][scored] / self.points[scored]
        return float(np.mean(errors / self.seasonal_scale[scored])) if scored.any() else 0.0

    def summary(self) -> dict[str, Any]:
        """The content of evaluation.json."""
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
) -> Evaluation:
    """Every window once, whatever the number of ranks; `mesh` None is one process alone.

    All replicas bring equally many batches of equal shape; padding has weight 0. Sums are
    reduced, never means.
    """
    replicas, replica = (1, 0) if mesh is None else (mesh.layout.data, mesh.coordinates.data)
    batches = _rounds(dataset.windows(split), batch_size, replicas, replica)
    names = [MODEL, *(seasonal_name(s) for s in dataset.season_lengths), "last value"]
    channels = len(dataset.channels)
    sums = np.zeros((2 * len(names) + 1, channels))
    kept = np.zeros((len(keep), dataset.shape.prediction_length, channels))
    contents = (dataset.batch(split, index, batch_size) for index in batches)
    for index, (window, prediction) in zip(batches, predict(contents), strict=False):
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
    if mesh is not None:
        seen = float(mesh.sees_output)
        sums = sum_over_ranks(mesh, torch.from_numpy(sums) * seen).cpu().numpy()
        if len(keep):
            kept = sum_over_ranks(mesh, torch.from_numpy(kept) * seen).cpu().numpy()
    return Evaluation(
        split,
        dataset.windows(split),
        dataset.channels,
        dataset.units,
        {name: sums[2 * row] for row, name in enumerate(names)},
        {name: sums[2 * row + 1] for row, name in enumerate(names)},
        sums[-1],
        dataset.seasonal_scale(),
        {wanted: kept[slot].astype(np.float32) for slot, wanted in enumerate(keep)},
    )


def _rounds(
    windows: int, batch_size: int, replicas: int, replica: int
) -> list[npt.NDArray[np.int64]]:
    """This replica's windows, round by round; in the last rounds it may have fewer or none."""
    starts = range(0, windows, replicas * batch_size)
    firsts = (start + replica * batch_size for start in starts)
    return [np.arange(min(f, windows), min(f + batch_size, windows)) for f in firsts]


def seasonal_name(season: int) -> str:
    return f"seasonal naive ({season})"


def baselines(context: Floats, dataset: Dataset) -> Iterator[Floats]:
    """Repeat each season, then the last value: [B, H, C] each, from a context [B, L, C]."""
    known = _fill_forward(context)
    length, horizon = known.shape[1], dataset.shape.prediction_length
    for season in dataset.season_lengths:
        yield known[:, length - season + np.arange(horizon) % season]
    yield np.repeat(known[:, -1:], horizon, axis=1)


def _fill_forward(context: Floats) -> Floats:
    """Missing points take the last valid value before them, or the training mean, 0."""
    valid = ~np.isnan(context)
    if valid.all():
        return context
    position = np.where(valid, np.arange(context.shape[1])[None, :, None], 0)
    last = np.maximum.accumulate(position, axis=1)
    return np.nan_to_num(np.take_along_axis(context, last, axis=1))
