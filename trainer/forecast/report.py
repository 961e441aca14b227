"""Reports of an evaluation: a table and a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from trainer.data.dataset import Dataset, Split
from trainer.forecast.evaluate import MODEL, Evaluation, baselines, seasonal_name


def print_table(evaluation: Evaluation) -> None:
    """Print the scores of each forecaster."""
    table = Table()
    for column in ("forecast", "MSE", "MAE", "MASE"):
        table.add_column(column, justify="left" if column == "forecast" else "right")
    for name, scores in evaluation.scores().items():
        numbers = (f"{scores[key]:.4f}" for key in ("mse", "mae", "mase"))
        table.add_row(name, *numbers, style="bold" if name == MODEL else None)
    windows = f"{evaluation.windows} {evaluation.split} windows"
    if evaluation.windows < evaluation.all_windows:
        of = f"{evaluation.windows} of {evaluation.all_windows} {evaluation.split} windows"
        windows = f"{of}, one in {evaluation.score_every} (data.score_every)"
    console = Console(width=100)
    console.print(f"\n{windows}, errors in {evaluation.units}")
    console.print(table)


def pictured_windows(dataset: Dataset, split: Split, count: int = 3) -> list[int]:
    """Return the numbers of windows at even distances over those of a split that are scored."""
    scored = dataset.scored(split)
    return [int(scored[int(len(scored) * (i + 0.5) / count)]) for i in range(count)]


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
    seasons = dataset.season_lengths
    naive_name = seasonal_name(seasons[0]) if seasons else "last value"
    for column, window in enumerate(windows):
        batch = dataset.batch(evaluation.split, np.array([window]))
        times = dataset.window_times(evaluation.split, window)
        if times is not None and times.tz is not None:
            times = times.tz_convert(dataset.config.timezone or times.tz).tz_localize(None)
        at = np.arange(length + horizon) if times is None else times.to_numpy()
        naive = next(baselines(batch.context, dataset))
        lines = (
            ("truth", batch.target[0], {"color": "#444", "lw": 1.2}),
            (naive_name, naive[0], {"color": "#e0a030", "lw": 1.2, "ls": ":"}),
            (MODEL, evaluation.forecasts[window], {"color": "#1668c7", "lw": 2}),
        )
        for row, channel in enumerate(channels):
            scale, mean = dataset.deviation[row], dataset.mean[row]
            past = batch.context[0, -shown:, row]
            ax = axes[row][column]
            ax.plot(at[length - shown : length], past * scale + mean, color="#444", lw=1.2)
            for name, values, style in lines:
                joined = np.concatenate([past[-1:], values[:, row]])
                ax.plot(at[length - 1 :], joined * scale + mean, label=name, **style)
            ax.axvline(at[length - 1], color="#bbb", lw=0.8)
            ax.spines[["top", "right"]].set_visible(False)
            if column == 0:
                ax.set_ylabel(channel)
        axes[-1][column].tick_params(axis="x", rotation=30)
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False
    )
    title = f"{evaluation.split} windows of {Path(dataset.config.source).name}"
    figure.suptitle(title, x=0.01, ha="left")
    figure.savefig(path, dpi=120)
