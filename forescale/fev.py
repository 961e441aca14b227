"""fev: a model with which its tasks, such as those of fev-bench, run on a trained network.

It needs fev: pip install 'forescale[fev]'.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from fev import EvaluationWindow, ForecastingModel, Task

from forescale import Forecaster, UserError
from trainer.data.frequency import Frequency, find_grid
from trainer.data.set_format import Item
from trainer.forecast.future import BATCH
from trainer.forecast.items import forecast_items
from trainer.forecast.quantile_levels import checked_levels


class ForescaleModel(ForecastingModel):  # type: ignore[misc]
    """A model with the weights of `path`: a run folder, a checkpoint or an export.

    It is not trained on a task. What the network knows in advance, or up to the present, it takes
    from the task's columns of the same names.
    """

    model_name = "forescale"

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        """Raises UserError where there are no weights."""
        super().__init__()
        self._forecaster = Forecaster.load(path, device)

    def _fit_predict(self, task: Task) -> list[datasets.DatasetDict]:
        """Return the forecasts of each window of a task.

        Raises UserError for a task whose series, columns or quantiles the network does not take.
        """
        levels = sorted(task.quantile_levels)
        if self._forecaster.network.output.levels:
            checked_levels(self._forecaster, levels)
        missing = set(self._forecaster.facts.known) - set(task.known_dynamic_columns)
        if missing:
            raise UserError(
                f"{task.task_name}: the network reads {', '.join(sorted(missing))} in advance, and "
                f"the task knows {', '.join(task.known_dynamic_columns) or 'nothing'}"
            )
        seen = {*task.known_dynamic_columns, *task.past_dynamic_columns}
        unseen = set(self._forecaster.past) - seen
        if unseen:
            raise UserError(
                f"{task.task_name}: the network reads {', '.join(sorted(unseen))} up to the "
                f"present, and the task has {', '.join(sorted(seen)) or 'nothing'}"
            )
        predictions = []
        for window in task.iter_windows():
            past, future = window.get_input_data()
            with self._record_inference_time():
                predictions.append(self._forecast(task, window, past, future, levels))
        return predictions

    def _forecast(
        self,
        task: Task,
        window: EvaluationWindow,
        past: datasets.Dataset,
        future: datasets.Dataset,
        levels: list[float],
    ) -> datasets.DatasetDict:
        """Return the forecasts of a window, by target."""
        targets, made = window.target_columns, []
        for first in range(0, len(past), BATCH):
            rows = range(first, min(first + BATCH, len(past)))
            items = [self._item(task, window, past[row], future[row]) for row in rows]
            made.append(forecast_items(self._forecaster, items, targets, window.horizon, levels))
        forecasts = np.concatenate(made)  # [B, C, T, 1 + levels]
        names = ["predictions", *map(str, levels)]
        return datasets.DatasetDict(
            {
                target: datasets.Dataset.from_dict(
                    {name: list(forecasts[:, channel, :, n]) for n, name in enumerate(names)}
                )
                for channel, target in enumerate(targets)
            }
        )

    def _item(
        self, task: Task, window: EvaluationWindow, past: dict[str, Any], future: dict[str, Any]
    ) -> Item:
        """Return the series of a row."""
        name = str(past[window.id_column])
        times = np.asarray(past[window.timestamp_column], "datetime64[us]")
        grid = find_grid(times)
        freq = (
            Frequency.named(task.freq, times[0]) if grid is None else grid.frequency.name(times[0])
        )
        known = [
            np.concatenate([_numbers(past[column]), _numbers(future[column])])
            for column in self._forecaster.facts.known
        ]
        target = np.stack([_numbers(past[column]) for column in window.target_columns])
        beside = [_numbers(past[column]) for column in self._forecaster.past]
        return Item(
            name,
            times[0],
            freq,
            target,
            np.stack(known) if known else np.empty((0, len(times))),
            np.stack(beside) if beside else np.empty((0, len(times))),
        )


def _numbers(values: Any) -> npt.NDArray[np.float64]:
    return np.asarray(values, np.float64)
