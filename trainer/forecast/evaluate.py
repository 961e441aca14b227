"""Scores of a network on the windows of a split, beside those of forecasts without training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from parallel.collectives import sum_over_ranks
from parallel.mesh import Mesh
from trainer.data.arrays import Doubles, Floats, Indices
from trainer.data.dataset import Dataset
from trainer.data.windows import Split, WindowBatch
from trainer.forecast.baselines import baseline_names, baselines
from trainer.forecast.scores import MAGNITUDE, MODEL, POINTS, Evaluation, quantities
from trainer.forecast.sums import Key, Sums

Predict = Callable[[Iterable[WindowBatch]], Iterable[tuple[WindowBatch, Tensor]]]
"""A function from batches to the batches with their forecasts, in standardised units.

These are points and quantiles [B, H, C, 1 + levels]. It yields nothing on ranks that see no output.
"""

PointForecast = Callable[[Floats], Floats]
"""A function from contexts [B, L, C] to point forecasts [B, H, C], in standardised units."""

NO_OTHERS: Mapping[str, PointForecast] = MappingProxyType({})


def evaluate(
    dataset: Dataset,
    split: Split,
    predict: Predict,
    *,
    batch_size: int,
    levels: Sequence[float] = (),
    mesh: Mesh | None = None,
    keep: Sequence[int] = (),
    others: Mapping[str, PointForecast] = NO_OTHERS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score the windows `dataset.scored(split)`, on the ranks of `mesh` or in this process alone.

    `levels` are those of the quantiles that come with forecasts. `keep` are those of the windows
    whose point forecasts are kept; `others` are further forecasts by name; `progress` is called
    with the number of windows that are done, and of all, after each batch. All replicas compute
    equally many batches of equal shape; padding has weight 0. Sums are reduced over ranks, never
    means.
    """
    replicas, replica = (1, 0) if mesh is None else (mesh.layout.data, mesh.coordinates.data)
    scored = dataset.scored(split)
    batches = batches_of_replica(scored, batch_size, replicas, replica)
    names = [MODEL, *baseline_names(dataset), *others]
    horizon, channels = dataset.shape.prediction_length, len(dataset.channels)
    items, window_items = np.unique(dataset.items_of(split, scored), return_inverse=True)
    mean, deviation = dataset.scales(items)
    sums = Sums.zero(quantities(names, levels), len(items), channels, horizon, len(scored))
    kept = np.zeros((len(keep), horizon, channels))

    def contents() -> Iterator[WindowBatch]:
        for number, index in enumerate(batches, 1):
            yield dataset.batch(split, index, batch_size)
            progress(min(number * batch_size * replicas, len(scored)), len(scored))

    for index, (window, prediction) in zip(batches, predict(contents()), strict=False):
        at = np.searchsorted(scored, index)
        of_item = window_items[at]
        seasons = dataset.seasons(items[of_item])
        naive = baselines(window.context, dataset, seasons)
        further = (forecast(window.context) for forecast in others.values())
        made = [prediction[..., 0].numpy(), *naive, *further]
        points = {name: forecast[: len(index)] for name, forecast in zip(names, made, strict=True)}
        values = _errors(
            window.target[: len(index)],
            points,
            {
                level: prediction[: len(index), ..., 1 + row].double().numpy()
                for row, level in enumerate(levels)
            },
            mean[of_item, None],
            deviation[of_item, None],
        )
        sums.add(values, of_item, at)
        for slot, wanted in enumerate(keep):
            if wanted in index:
                kept[slot] = points[MODEL][int(np.flatnonzero(index == wanted)[0])]
    progress(len(scored), len(scored))
    if mesh is not None:
        seen = float(mesh.sees_output)
        total = sum_over_ranks(mesh, torch.from_numpy(sums.flat()) * seen).cpu().numpy()
        sums = sums.of_flat(total)
        if len(keep):
            kept = sum_over_ranks(mesh, torch.from_numpy(kept) * seen).cpu().numpy()
    return Evaluation(
        split=split,
        windows=len(scored),
        all_windows=dataset.windows(split),
        score_every=dataset.score_every(split),
        channels=dataset.channels,
        units=dataset.units,
        items=[dataset.item_id(int(item)) for item in items],
        names=names,
        levels=tuple(levels),
        sums=sums,
        deviation=deviation,
        seasonal_scale=dataset.seasonal_scale(items),
        window_items=window_items,
        horizon=horizon,
        forecasts={wanted: kept[slot].astype(np.float32) for slot, wanted in enumerate(keep)},
    )


def _errors(
    target: Floats,
    points: Mapping[str, Floats],
    quantiles: Mapping[float, Doubles],
    mean: Doubles,
    deviation: Doubles,
) -> dict[Key, Doubles]:
    """Return what is summed of each point of windows [B, H, C], 0 where the target is missing.

    `target`, forecasts by name and quantiles by level are in standardised units.
    """
    valid = ~np.isnan(target)
    target = np.nan_to_num(target)
    actual = target.astype(np.float64) * deviation + mean
    found: dict[Key, Doubles] = {POINTS: valid.astype(np.float64), MAGNITUDE: np.abs(actual)}
    for name, forecast in points.items():
        error = np.abs(forecast - target).astype(np.float64)
        size = np.abs(actual) + np.abs(forecast * deviation + mean)
        share = np.divide(error * deviation, size, out=np.zeros_like(size), where=size > 0)
        found["squared", name] = np.square(error)
        found["absolute", name] = error
        found["percent", name] = 200 * share
    for level, quantile in quantiles.items():
        above = target - quantile
        found["pinball", level] = np.maximum(level * above, (level - 1) * above)
        found["below", level] = (above <= 0).astype(np.float64)
    return {key: np.where(valid, values, 0.0) for key, values in found.items()}


def batches_of_replica(
    scored: Indices, batch_size: int, replicas: int, replica: int
) -> list[Indices]:
    """Return the numbers of a replica's part of the windows `scored`, batch by batch.

    All replicas have equally many batches; the last one may have fewer windows, or none.
    """
    first = replica * batch_size
    starts = range(first, len(scored) + first, replicas * batch_size)
    return [scored[start : start + batch_size] for start in starts]
