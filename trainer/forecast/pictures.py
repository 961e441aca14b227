"""Pictures of forecasts, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.sentences import drawn
from trainer.data import Dataset, Split
from trainer.forecast.baselines import baseline_names, baselines
from trainer.forecast.charts import OTHERS, OURS, TRUTH
from trainer.forecast.future import Pictured
from trainer.forecast.scores import MODEL, Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pictured_windows(dataset: Dataset, split: Split, count: int = 3) -> list[int]:
    """Return the numbers of windows at even distances over those of a split that are scored."""
    scored = dataset.scored(split)
    return [int(scored[int(len(scored) * (i + 0.5) / count)]) for i in range(count)]


def window_clock(dataset: Dataset, split: Split, window: int) -> Any:
    """Return the times of a window's points by the clock of their zone, or their numbers."""
    times = dataset.window_times(split, window)
    if times is None:
        return np.arange(dataset.shape.context_length + dataset.shape.prediction_length)
    if times.tz is not None:
        times = times.tz_convert(dataset.config.timezone or times.tz).tz_localize(None)
    return times.to_numpy()


MAX_CHANNELS = 6
"""Number of channels in a picture that a person can still read."""


def draw(dataset: Dataset, evaluation: Evaluation, path: Path) -> None:
    """Draw the kept windows' contexts, futures and forecasts, in the source's units.

    The picture has the first MAX_CHANNELS channels.
    """
    from matplotlib.figure import Figure  # slow to import, and only a finished run draws

    windows = list(evaluation.forecasts)
    channels = dataset.channels[:MAX_CHANNELS]
    size = (4.6 * len(windows), 2.4 * len(channels) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(channels), len(windows), squeeze=False, sharex="col")
    length, horizon = dataset.shape.context_length, dataset.shape.prediction_length
    shown = min(length, 3 * horizon)
    naive_name = baseline_names(dataset)[0]
    for column, window in enumerate(windows):
        batch = dataset.batch(evaluation.split, np.array([window]))
        at = window_clock(dataset, evaluation.split, window)
        items = dataset.items_of(evaluation.split, np.array([window]))
        mean, deviation = (of[0] for of in dataset.scales(items))
        naive = next(baselines(batch.context, dataset, dataset.seasons(items)))
        lines = (
            ("truth", batch.target[0], {"color": TRUTH, "lw": 1.2}),
            (naive_name, naive[0], {"color": OTHERS[0], "lw": 1.2, "ls": ":"}),
            (MODEL, evaluation.forecasts[window], {"color": OURS, "lw": 2}),
        )
        for row, channel in enumerate(channels):
            past = batch.context[0, -shown:, row]
            ax = axes[row][column]
            ax.plot(
                at[length - shown : length], past * deviation[row] + mean[row], color=TRUTH, lw=1.2
            )
            for name, values, style in lines:
                joined = np.concatenate([past[-1:], values[:, row]])
                ax.plot(at[length - 1 :], joined * deviation[row] + mean[row], label=name, **style)
            ax.axvline(at[length - 1], color="#bbb", lw=0.8)
            ax.spines[["top", "right"]].set_visible(False)
            if column == 0:
                ax.set_ylabel(drawn(channel))
        axes[-1][column].tick_params(axis="x", rotation=30)
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False
    )
    title = f"{evaluation.split} windows of {dataset.config.named}"
    figure.suptitle(drawn(title), x=0.01, ha="left")
    figure.savefig(path, dpi=120)


def future_figure(series: Sequence[Pictured]) -> Figure:
    """Return a figure of series' last points, what is forecast next, and its widest interval."""
    from matplotlib.figure import Figure

    rows = -(-len(series) // 2)
    figure = Figure(figsize=(12, 2.6 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False)
    for place, ax in enumerate(axes.flat):
        if place >= len(series):
            ax.set_axis_off()
            continue
        one = series[place]
        ax.plot(one.past_times, one.past, color=TRUTH, lw=1.2, label="past")
        ax.plot(one.times, one.forecast[:, 0], color=OURS, lw=2, label="forecast")
        if one.forecast.shape[1] > 2:
            low, high = one.forecast[:, 1], one.forecast[:, -1]
            ax.fill_between(one.times, low, high, color=OURS, alpha=0.2, label="interval")
        ax.set_title(drawn(one.name[:60]), fontsize=9, loc="left")
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(axis="x", rotation=30)
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False
    )
    return figure
