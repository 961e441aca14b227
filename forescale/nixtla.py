"""Frames as Nixtla's libraries (NeuralForecast, StatsForecast, utilsforecast) have them.

Tables have the columns unique_id, ds and y; forecasts stand in a column called as the model, with
Forescale-lo-80 and Forescale-hi-80 beside it for an interval that holds 80 %.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from forescale import Forecaster, UserError
from trainer.forecast.future import Frame

MODEL = "Forescale"
COLUMNS = {"id_column": "unique_id", "time_column": "ds", "targets": ["y"]}


def predict(
    forecaster: Forecaster, df: Frame, h: int | None = None, *, level: Sequence[float] = ()
) -> pd.DataFrame:
    """Return what comes after the end of each series, `h` points, by default as many as trained.

    `level` are the percentages that intervals hold. Raises UserError where nothing can be forecast,
    or a level lies outside of the quantiles that were trained.
    """
    quantiles = _quantiles(level)
    made = forecaster.predict(df, horizon=h, quantiles=list(quantiles.values()), **COLUMNS)
    return _named(made, quantiles)


def cross_validation(
    forecaster: Forecaster,
    df: Frame,
    h: int | None = None,
    *,
    n_windows: int = 1,
    step_size: int | None = None,
    level: Sequence[float] = (),
) -> pd.DataFrame:
    """Return what `predict` would have forecast from `n_windows` cutoffs, beside y.

    Cutoffs are `step_size` points apart, by default `h`. The weights stay as they are.
    """
    quantiles = _quantiles(level)
    made = forecaster.backtest(
        df,
        windows=n_windows,
        step=step_size,
        horizon=h,
        quantiles=list(quantiles.values()),
        **COLUMNS,
    )
    made = _named(made, quantiles)
    return made[[*(name for name in made if name != "y"), "y"]]


def _quantiles(level: Sequence[float]) -> dict[str, float]:
    """Return the quantile of each column of intervals. Raises UserError for other percentages."""
    found = {}
    for percent in level:
        if not 0 < percent < 100:
            raise UserError(f"level: expected percentages between 0 and 100, got {percent:g}")
        found[f"{MODEL}-lo-{percent:g}"] = round(0.5 - percent / 200, 6)
        found[f"{MODEL}-hi-{percent:g}"] = round(0.5 + percent / 200, 6)
    return found


def _named(made: pd.DataFrame, quantiles: dict[str, float]) -> pd.DataFrame:
    """Return forecasts with columns called as Nixtla's libraries call them."""
    columns = {name: made[f"{quantile:g}"] for name, quantile in quantiles.items()}
    made = made.drop(columns=list({f"{quantile:g}" for quantile in quantiles.values()}))
    return made.rename(columns={"mean": MODEL}).assign(**columns)
