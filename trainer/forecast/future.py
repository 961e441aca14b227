"""Forecasts of what comes after the end of series, as a table with their names and times.

Columns are called as in the table that the series come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from model.errors import UserError
from model.sentences import first_line
from trainer.config.table_settings import NO_ID, TableConfig
from trainer.data.arrays import Doubles
from trainer.data.series_set import SeriesSet
from trainer.data.survey import read_series
from trainer.forecast.ends import SeriesEnds
from trainer.forecast.forecast_rows import Rows, joined, rows_of
from trainer.forecast.paths import Trained
from trainer.forecast.quantile_levels import checked_levels
from trainer.forecast.table_source import Source, without_folder

Frame = Any
"""A pandas or polars frame."""

BATCH = 64
"""Series that are forecast at once."""

PICTURED = 6
"""Series in a picture, at most."""


@dataclass(frozen=True)
class Pictured:
    """A series' last points, and what is forecast of it."""

    name: str
    past_times: Any
    past: Doubles
    times: Any
    forecast: Doubles
    """Point and quantiles [T, 1 + levels]."""


@dataclass(frozen=True)
class FutureForecast:
    """Forecasts of the points after the ends of series."""

    table: pd.DataFrame
    """A row for each series, channel and time: name, `variable` where there are several channels,
    time, mean, and a column for each quantile, called by its level."""
    problems: list[str]
    """A sentence about each kind of data that were left out in reading, of series that could not be
    forecast, and of what makes forecasts doubtful."""
    notes: list[str]
    """A sentence about each thing that was assumed in reading."""
    pictured: list[Pictured]
    """The first series, for a picture."""


@dataclass(frozen=True)
class Wish:
    """What is to be forecast."""

    horizon: int | None
    """Points, by default as many as were trained; beyond those quantile paths are fed back."""
    levels: Sequence[float] | None
    """Quantiles, by default those that the network forecasts."""
    future: str | Path | Frame | None
    """Columns known in advance; they may stand beside the series, in rows without targets."""
    table: TableConfig
    """How tables are read."""


def forecast_future(
    forecaster: Trained,
    source: str | Path | Frame,
    wish: Wish,
    advance: Callable[[int], None] = lambda series: None,
) -> FutureForecast:
    """Forecast the points after the end of each series of a file, frame or set.

    `advance` is told how many series are done. Raises UserError where none can be forecast.
    """
    with _opened(forecaster, source, wish) as (opened, ends):
        rows: list[Rows] = []
        pictured: list[Pictured] = []
        levels = checked_levels(forecaster, wish.levels)
        for item, forecast in _forecasts(ends, advance):
            rows += rows_of(ends, item, forecast, opened, levels)
            if len(pictured) < PICTURED:
                pictured += _pictured(ends, item, forecast)
        problems = [*opened.losses, *ends.problems()]
        return FutureForecast(_table(rows, ends), problems, opened.notes, pictured[:PICTURED])


def first_forecasts(forecaster: Trained, source: str | Path | Frame, wish: Wish) -> list[Pictured]:
    """Forecast the first series of a file, frame or set alone, for a picture.

    Raises UserError where none can be forecast.
    """
    with _opened(forecaster, source, wish) as (_, ends):
        pictured: list[Pictured] = []
        for item, forecast in _forecasts(ends):
            pictured += _pictured(ends, item, forecast)
            if len(pictured) >= PICTURED:
                break
        if not pictured:
            raise _none_forecast(ends)
        return pictured[:PICTURED]


def backtest(
    forecaster: Trained, source: str | Path | Frame, wish: Wish, *, windows: int, step: int | None
) -> FutureForecast:
    """Forecast the last points of each series from `windows` origins, `step` points apart.

    The last origin is as many points before the end as are forecast; steps are as long by default.
    Beside each forecast stand `cutoff`, the last time that was known, and what came. Raises
    UserError where none can be forecast.
    """
    for name, number in (("windows", windows), ("step", step)):
        if number is not None and not _is_count(number):
            raise UserError(f"{name}: expected a number from 1 on, got {number!r}")
    with _opened(forecaster, source, wish, with_truth=True) as (opened, ends):
        rows: list[Rows] = []
        levels = checked_levels(forecaster, wish.levels)
        for window in reversed(range(windows)):
            ends.back = ends.horizon + window * (step or ends.horizon)
            for item, forecast in _forecasts(ends):
                rows += rows_of(ends, item, forecast, opened, levels, with_truth=True)
        problems = [*opened.losses, *ends.problems()]
        return FutureForecast(_table(rows, ends), problems, opened.notes, [])


@contextmanager
def _opened(
    forecaster: Trained, source: str | Path | Frame, wish: Wish, *, with_truth: bool = False
) -> Iterator[tuple[Source, SeriesEnds]]:
    """Within, a source's series are read. Raises UserError where that cannot be."""
    trained, config = forecaster.settings.data, wish.table
    levels = checked_levels(forecaster, wish.levels)
    trained_points = forecaster.facts.shape.prediction_length
    points = trained_points if wish.horizon is None else wish.horizon
    if not _is_count(points):
        raise UserError(f"horizon: expected a number of points from 1 on, got {points!r}")
    with TemporaryDirectory(prefix="forescale-") as name:
        folder = Path(name)
        try:
            opened = Source.open(_file(source, folder / "series.parquet"), config, folder)
            _check_names(opened, levels, targets=with_truth)
            known = None
            if wish.future is not None:
                known = _read_future(opened, wish.future, config, folder)
            data = trained.model_copy(update=config.model_dump())
            ends = SeriesEnds(forecaster, opened.series, data, points, known)
        except UserError as error:
            sentence = str(error).removeprefix("data.source: ")  # the series were given otherwise
            raise UserError(without_folder(sentence, folder)) from None
        yield opened, ends


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1


def _read_future(
    source: Source, future: str | Path | Frame, config: TableConfig, folder: Path
) -> SeriesSet:
    """Return the columns known in advance of a table, which tells series apart as the source does.

    Raises UserError where they are not there.
    """
    changes: dict[str, Any] = {
        "targets": config.covariates or None,
        "covariates": [],
        "past_covariates": [],
    }
    if source.ids is not None:
        changes["id_column"] = source.ids or NO_ID
    file = _file(future, folder / "future.parquet")
    try:
        return read_series(file, config.model_copy(update=changes), folder)[0]
    except UserError as error:
        sentence = str(error).removeprefix("data.targets: ").removeprefix("data.source: ")
        raise UserError(f"future: {sentence}") from None


def _check_names(source: Source, levels: Sequence[float], *, targets: bool) -> None:
    """Raise UserError where a column that stands beside forecasts is called as one of them."""
    beside = source.series.columns.target if targets else ()
    own = {"mean", "cutoff", "variable", *(f"{level:g}" for level in levels)}
    for name in (source.id_name, source.time_name, *(beside if len(beside) == 1 else ())):
        if name in own:
            how = f"as data.{'id' if name == source.id_name else 'time'}_column=NAME"
            raise UserError(
                f"a column is called {name}, as one of the forecasts; rename it, and name it {how}"
            )


def _forecasts(
    ends: SeriesEnds, advance: Callable[[int], None] = lambda series: None
) -> Iterator[tuple[int, Doubles]]:
    """Yield items that can be forecast, and their forecasts [C, T, 1 + levels]."""
    for first in range(0, len(ends.series), BATCH):
        batch = range(first, min(first + BATCH, len(ends.series)))
        items = [item for item in batch if ends.is_fit(item)]
        if items:
            yield from zip(items, ends.forecasts(items), strict=True)
        advance(len(batch))


def _table(rows: list[Rows], ends: SeriesEnds) -> pd.DataFrame:
    """Return all rows as one table. Raises UserError where there are none."""
    if not rows:
        raise _none_forecast(ends)
    return joined(rows)


def _none_forecast(ends: SeriesEnds) -> UserError:
    return UserError("; ".join(ends.problems()) or f"{ends.series.name} holds no series")


def _file(source: str | Path | Frame, file: Path) -> str:
    """Return the path of a source; a frame is written to `file`. Raises UserError."""
    if isinstance(source, str | Path):
        return str(source)
    frame = source.to_pandas() if hasattr(source, "to_pandas") else source
    if not isinstance(frame, pd.DataFrame):
        raise UserError(f"expected a file or a frame of pandas or polars, got {type(source)}")
    try:
        frame.to_parquet(file)
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise UserError(f"the frame cannot be read: {first_line(error)}") from None
    return str(file)


def _pictured(ends: SeriesEnds, item: int, forecast: Doubles) -> list[Pictured]:
    """Return an item's channels for a picture, with three times as much past as future."""
    end, variables = ends.end(item), ends.series.columns.target
    first = max(0, end - 3 * ends.horizon)
    past = ends.series.target(item)[:, first:end].astype(np.float64)
    name = ends.series.item_id(item)
    return [
        Pictured(
            f"{name}, {variable}" if len(variables) > 1 else name,
            ends.times(item, first, end),
            past[channel],
            ends.times(item),
            forecast[channel],
        )
        for channel, variable in enumerate(variables)
    ]
