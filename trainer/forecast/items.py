"""Forecasts of series in memory, for the adapters of other libraries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.errors import UserError
from trainer.data.arrays import Doubles
from trainer.data.memory_series import MemorySeries
from trainer.data.set_format import Columns, Item
from trainer.forecast.ends import SeriesEnds
from trainer.forecast.paths import Trained
from trainer.forecast.quantile_levels import at_levels


def forecast_items(
    forecaster: Trained,
    items: Sequence[Item],
    channels: Sequence[str],
    horizon: int,
    levels: Sequence[float],
) -> Doubles:
    """Return forecasts of the points after items' last ones, in their own units.

    They are points and quantiles [B, C, T, 1 + levels], T = `horizon`; where the network has no
    quantiles these are the points again. Items have the channels named `channels`, the columns
    `forecaster.past` up to their ends, and what is known in advance of T points more. What has no
    value at all is forecast as 0. Raises UserError where the network does not take the items;
    `checked_levels` says which levels it has.
    """
    columns = Columns(tuple(channels), forecaster.facts.known, forecaster.past)
    for item in items:
        if np.shape(item.past) != (len(columns.past), item.length):
            raise UserError(
                f"{item.item_id}: the network reads {', '.join(columns.past) or 'nothing'} up to "
                f"the present; expected {[len(columns.past), item.length]} numbers, got "
                f"{list(np.shape(item.past))}"
            )
        known = np.asarray(item.known)[:, : item.length + horizon]
        wanted = (len(columns.known), item.length + horizon)
        if columns.known and (known.shape != wanted or np.isnan(known).any()):
            raise UserError(
                f"{item.item_id}: the network reads {', '.join(columns.known)} in advance; "
                f"expected {list(wanted)} numbers, got {list(known.shape)}"
            )
    ends = SeriesEnds(
        forecaster,
        MemorySeries(items, columns),
        forecaster.settings.data,
        horizon,
        at_last_value=False,
    )
    trained = forecaster.network.output.levels
    made = np.zeros((len(items), len(columns.target), horizon, 1 + len(trained)))
    some = [row for row, item in enumerate(items) if (~np.isnan(item.target)).any(1).all()]
    if some:
        made[some] = ends.forecasts(some)
    quantiles = made[..., 1:] if trained else made
    return np.concatenate([made[..., :1], at_levels(trained or [0.5], quantiles, levels)], -1)
