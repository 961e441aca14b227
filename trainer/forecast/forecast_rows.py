"""The rows of a table of forecasts, series after series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from trainer.data.arrays import Doubles
from trainer.forecast.ends import SeriesEnds
from trainer.forecast.quantile_levels import at_levels
from trainer.forecast.table_source import Source

Rows = dict[str, Any]
"""Rows of one channel of a series by column; a text stands in all of them."""


def rows_of(
    ends: SeriesEnds,
    item: int,
    forecast: Doubles,
    source: Source,
    levels: Sequence[float],
    *,
    with_truth: bool = False,
) -> list[Rows]:
    """Return the rows of an item's forecast [C, T, 1 + levels], channel after channel."""
    trained, variables = ends.forecaster.network.output.levels, source.series.columns.target
    end, answer = ends.end(item), []
    for channel, (variable, points) in enumerate(zip(variables, forecast, strict=True)):
        columns: Rows = {source.id_name: source.series.item_id(item)}
        if len(variables) > 1:
            columns["variable"] = variable
        columns[source.time_name] = source.times(ends.times(item))
        if with_truth:
            truth = source.series.target(item)[channel, end : end + ends.horizon]
            cutoff = source.times(ends.times(item, end - 1, end))
            columns["cutoff"] = cutoff.repeat(ends.horizon)
            columns["y" if len(variables) > 1 else variable] = truth
        columns["mean"] = points[:, 0]
        quantiles = at_levels(trained, points[:, 1:], levels)
        columns |= {f"{level:g}": quantiles[:, n] for n, level in enumerate(levels)}
        answer.append(columns)
    return answer


def joined(rows: list[Rows]) -> pd.DataFrame:
    """Return rows as one table: a frame for each series would take longer than its forecast."""
    counts = [len(one["mean"]) for one in rows]
    table: Rows = {}
    for name, first in rows[0].items():
        values = [one[name] for one in rows]
        if isinstance(first, str):
            table[name] = np.repeat(np.array(values, dtype=object), counts)
        elif any(isinstance(value, pd.Index) for value in values):  # numbers where there is no time
            table[name] = pd.Index(first).append([pd.Index(value) for value in values[1:]])
        else:
            table[name] = np.concatenate(values)
    return pd.DataFrame(table)
