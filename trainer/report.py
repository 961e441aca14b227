"""What an evaluation looks like: a table and a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from trainer.data.dataset import Dataset, Split
from trainer.evaluate import MODEL, Evaluation, baselines, seasonal_name


def table(evaluation: Evaluation) -> Table:
    result = Table(
        title=f"{evaluation.windows} {evaluation.split} windows, standardised by the training part",
        title_justify="left",
    )
    for column in ("forecast", "MSE", "MAE", "MASE"):
        result.add_column(column, justify="left" if column == "forecast" else "right")
    for name, scores in evaluation.scores().items():
        numbers = (f"{scores[key]:.4f}" for key in ("mse", "mae", "mase"))
        result.add_row(name, *numbers, style="bold" if name == MODEL else None)
    return result


def print_table(evaluation: Evaluation) -> None:
    Console(width=100).print(table(evaluation))


def pictured_windows(dataset: Dataset, split: Split, count: int = 3) -> list[int]:
    """Windows spread evenly over a split."""
    return [int(dataset.windows(split) * (i + 0.5) / count) for i in range(count)]


def draw(dataset: Dataset, evaluation: Evaluation, path: Path) -> None:
    """The kept windows' contexts, futures and forecasts, in the source's units."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    windows = list(evaluation.forecasts)
    channels = len(dataset.channels)
    figure, axes = plt.subplots(
        channels, len(windows), squeeze=False, sharex="col", layout="constrained",
        figsize=(4.6 * len(windows), 2.4 * channels + 0.6),
    )  # fmt: skip
    length, horizon = dataset.shape.context_length, dataset.shape.prediction_length
    shown = min(length, 3 * horizon)
    for column, window in enumerate(windows):
        batch = dataset.batch(evaluation.split, np.array([window]))
        times = dataset.window_times(evaluation.split, window)
        if times is not None and times.tz is not None:
            times = times.tz_convert(dataset.config.timezone or times.tz).tz_localize(None)
        at = np.arange(length + horizon) if times is None else times.to_numpy()
        past, future = at[length - shown : length], at[length:]
        naive = next(baselines(batch.context, dataset))[0]
        naive_name = (
            seasonal_name(dataset.season_lengths[0]) if dataset.season_lengths else "last value"
        )
        for row, channel in enumerate(dataset.channels):
            scale, mean = dataset.deviation[row], dataset.mean[row]
            ax = axes[row][column]
            ax.plot(past, batch.context[0, -shown:, row] * scale + mean, color="#444", lw=1)
            ax.plot(
                future, batch.target[0, :, row] * scale + mean, color="#444", lw=1, label="truth"
            )
            ax.plot(future, naive[:, row] * scale + mean, color="#e0a030", lw=1, ls=":",
                    label=naive_name)  # fmt: skip
            forecast = evaluation.forecasts[window][:, row] * scale + mean
            ax.plot(future, forecast, color="#1668c7", lw=1.8, label=MODEL)
            ax.axvline(at[length - 1], color="#bbb", lw=0.8)
            ax.spines[["top", "right"]].set_visible(False)
            if column == 0:
                ax.set_ylabel(channel)
        axes[-1][column].tick_params(axis="x", rotation=30)
    axes[0][-1].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{evaluation.split} windows of {dataset.config.source}", x=0.01, ha="left")
    figure.savefig(path, dpi=120)
    plt.close(figure)
