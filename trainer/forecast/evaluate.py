"""Scores of a network on the windows of a split, beside those of forecasts without training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parallel.collectives import sum_over_ranks
from parallel.mesh import Mesh
from trainer.data.arrays import Doubles, Floats, Indices
from trainer.data.dataset import Dataset
from trainer.data.windows import Split, WindowBatch
from trainer.forecast.quantile_scores import QuantileSums

Predict = Callable[[Iterable[WindowBatch]], Iterable[tuple[WindowBatch, Tensor]]]
"""A function from batches to the batches with their forecasts, in standardised units.

These are points and quantiles [B, H, C, 1 + levels]. It yields nothing on ranks that see no output.
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
    items: list[str]
    """Names of the I items that windows are of."""
    squared: dict[str, Doubles]
    """Forecaster -> sum of squared errors of each item and channel [I, C]."""
    absolute: dict[str, Doubles]
    """Forecaster -> sum of absolute errors of each item and channel [I, C]."""
    points: Doubles
    """Number of valid target points of each item and channel [I, C]."""
    seasonal_scale: Doubles
    """MASE's divisor for each item and channel [I, C], NaN where it is undefined."""
    quantiles: QuantileSums
    """Scores of the network's quantiles."""
    forecasts: dict[int, Floats] = field(default_factory=dict)
    """Window -> the network's forecast [H, C], of the windows to keep."""

    def scores(self) -> dict[str, dict[str, float]]:
        """Return forecaster -> MSE and MAE over all points, and MASE; WQL where it is defined.

        MASE is the mean over the items and channels that have any point and a divisor; NaN is none.
        WQL, the weighted quantile loss, is in the source's units; a point is all of its quantiles.
        """
        total = max(1.0, self.points.sum())
        answer = {
            name: {
                "mse": float(self.squared[name].sum() / total),
                "mae": float(self.absolute[name].sum() / total),
                "mase": _mean(self._mase(name)),
            }
            for name in self.squared
        }
        if self.quantiles.levels:
            for name, scores in answer.items():
                is_model = name == MODEL
                scores["wql"] = self.quantiles.weighted(None if is_model else self.absolute[name])
        return answer

    def _mase(self, name: str) -> Doubles:
        """Return a forecaster's MASE of each item and channel, NaN where it is undefined."""
        return self._per_point(self.absolute[name]) / self.seasonal_scale

    def _per_point(self, sums: Doubles) -> Doubles:
        return np.where(self.points > 0, sums / np.maximum(1.0, self.points), np.nan)

    def over_items(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return forecaster -> score -> its quartiles over the items, each item's mean."""
        total = np.maximum(1.0, self.points.sum(1))
        answer: dict[str, dict[str, dict[str, float]]] = {}
        for name in self.squared:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # an item without any divisor
                mase = np.nanmean(self._mase(name), axis=1)
            of_items = {
                "mse": self.squared[name].sum(1) / total,
                "mae": self.absolute[name].sum(1) / total,
                "mase": mase,
            }
            scored = self.points.sum(1) > 0
            answer[name] = {score: _quartiles(values[scored]) for score, values in of_items.items()}
        return answer

    @property
    def undefined(self) -> int:
        """Number of items and channels whose MASE is undefined, and that are left out of it."""
        return int(((self.points > 0) & np.isnan(self.seasonal_scale)).sum())

    def summary(self) -> dict[str, Any]:
        """Return the content of evaluation.json, but for the step."""
        points = self.points.sum(0)
        per_channel = {
            name: {
                channel: {"mse": float(squared / count), "mae": float(absolute / count)}
                for channel, squared, absolute, count in zip(
                    self.channels,
                    self.squared[name].sum(0),
                    self.absolute[name].sum(0),
                    points,
                    strict=True,
                )
                if count > 0
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
            "items": len(self.items),
            "over_items": self.over_items(),
            "mase_undefined": self.undefined,
            **self.quantiles.summary(),
        }


def _mean(values: Doubles) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else 0.0


def _quartiles(values: Doubles) -> dict[str, float]:
    known = values[~np.isnan(values)]
    if not known.size:
        return {}
    low, middle, high = np.quantile(known, [0.25, 0.5, 0.75]).tolist()
    return {"lower_quartile": low, "median": middle, "upper_quartile": high}


def evaluate(
    dataset: Dataset,
    split: Split,
    predict: Predict,
    *,
    batch_size: int,
    levels: Sequence[float] = (),
    mesh: Mesh | None = None,
    keep: Sequence[int] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score the windows `dataset.scored(split)`, on the ranks of `mesh` or in this process alone.

    `levels` are those of the quantiles that come with forecasts. `keep` are those of the windows
    whose point forecasts are kept; `progress` is called with the number of
    windows that are done, and of all, after each batch. All replicas compute equally many batches
    of equal shape; padding has weight 0. Sums are reduced over ranks, never means.
    """
    replicas, replica = (1, 0) if mesh is None else (mesh.layout.data, mesh.coordinates.data)
    scored = dataset.scored(split)
    batches = batches_of_replica(scored, batch_size, replicas, replica)
    names = [MODEL, *baseline_names(dataset)]
    channels = len(dataset.channels)
    items = np.unique(dataset.items_of(split, scored))
    quantiles = QuantileSums.zero(levels, *dataset.scales(items))
    rows = 2 * len(names) + 1
    sums = np.zeros((rows + len(quantiles.sums), len(items), channels))
    quantiles = replace(quantiles, sums=sums[rows:])
    kept = np.zeros((len(keep), dataset.shape.prediction_length, channels))

    def contents() -> Iterator[WindowBatch]:
        for number, index in enumerate(batches, 1):
            yield dataset.batch(split, index, batch_size)
            progress(min(number * batch_size * replicas, len(scored)), len(scored))

    for index, (window, prediction) in zip(batches, predict(contents()), strict=False):
        of_item = np.searchsorted(items, dataset.items_of(split, index))
        seasons = dataset.seasons(items[of_item])
        points = prediction[..., 0].numpy()
        forecasts = [points, *baselines(window.context, dataset, seasons)]
        valid = ~np.isnan(window.target) & (window.weight[:, None, None] > 0)
        for row, forecast in enumerate(forecasts):
            error = np.where(valid, forecast - np.nan_to_num(window.target), 0.0)
            error = error.astype(np.float64)[: len(index)]
            np.add.at(sums[2 * row], of_item, np.square(error).sum(1))
            np.add.at(sums[2 * row + 1], of_item, np.abs(error).sum(1))
        np.add.at(sums[rows - 1], of_item, valid[: len(index)].sum(1))
        quantiles.add(
            of_item,
            prediction[: len(index), ..., 1:].double().numpy(),
            np.where(valid, window.target, np.nan)[: len(index)].astype(np.float64),
        )
        for slot, wanted in enumerate(keep):
            if wanted in index:
                kept[slot] = points[int(np.flatnonzero(index == wanted)[0])]
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
        [dataset.item_id(int(item)) for item in items],
        {name: sums[2 * row] for row, name in enumerate(names)},
        {name: sums[2 * row + 1] for row, name in enumerate(names)},
        sums[rows - 1],
        dataset.seasonal_scale(items),
        replace(quantiles, sums=sums[rows:]),
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


OWN_SEASON = "seasonal naive"
"""Name of the baseline that repeats each item's own season."""


def baseline_names(dataset: Dataset) -> list[str]:
    """Return the names of the forecasts without training."""
    if dataset.has_one_interval:
        return [*(seasonal_name(season) for season in dataset.season_lengths), "last value"]
    return [OWN_SEASON, "last value"]


def baselines(context: Floats, dataset: Dataset, seasons: Indices) -> Iterator[Floats]:
    """Yield forecasts [B, H, C] that repeat each season, then the last value, of [B, L, C].

    Where items have several intervals, the first repeats each window's own season, of `seasons`;
    there may be fewer of these than windows: the last are padding.
    """
    filled = _fill_forward(context)
    length, horizon = filled.shape[1], dataset.shape.prediction_length
    if dataset.has_one_interval:
        for season in dataset.season_lengths:
            yield filled[:, length - season + np.arange(horizon) % season]
    else:
        own = np.ones(len(filled), np.int64)
        own[: len(seasons)] = seasons
        at = length - own[:, None] + np.arange(horizon) % own[:, None]
        yield np.take_along_axis(filled, at[:, :, None], axis=1)
    yield np.repeat(filled[:, -1:], horizon, axis=1)


def _fill_forward(context: Floats) -> Floats:
    """Return a context whose missing points have the value before them, else 0, the mean."""
    valid = ~np.isnan(context)
    if valid.all():
        return context
    position = np.where(valid, np.arange(context.shape[1])[None, :, None], 0)
    last = np.maximum.accumulate(position, axis=1)
    return np.nan_to_num(np.take_along_axis(context, last, axis=1))
