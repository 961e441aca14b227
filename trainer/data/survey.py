"""What a table of series seems to hold: its times, its series, and what can be forecast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from model.errors import SeveralSeriesError
from trainer.config.table_settings import TableConfig
from trainer.data.cache import default_cache
from trainer.data.frequency import Frequency, commonest
from trainer.data.prepared import open_set
from trainer.data.reading.problems import Problems
from trainer.data.reading.source import Source, open_source
from trainer.data.series_set import SeriesSet
from trainer.data.set_format import is_set

MONTH = pd.Timedelta(days=30.4)


@dataclass(frozen=True)
class Survey:
    """What was found in a table."""

    source: str
    has_rows_of_points: bool
    """Whether it is a table with a row for each point, whose columns have roles."""
    has_times: bool
    """Whether each series says when it begins."""
    time_column: str | None
    id_column: str | list[str] | None
    targets: list[str]
    others: list[str]
    """Columns without a role."""
    rows: int
    series: int
    length: int
    """Points of the series in the middle, by length."""
    interval: pd.Timedelta | None
    """Interval of most series, where there are times; of months it is an average."""
    intervals: int
    """Number of different intervals."""
    is_business: bool = False
    """Whether the interval is of business days."""


def read_series(
    source: str, config: TableConfig, cache: Path | None = None
) -> tuple[SeriesSet, Source | None]:
    """Return a source's series, and how it was read; None for a prepared set.

    `config` has what is known of that; the columns that tell its series apart are found. Raises
    UserError where it cannot be read.
    """
    opened = None
    if not is_set(Path(source).expanduser()):
        opened, config = _opened(source, config)
    return open_set(source, config, cache or default_cache()), opened


def survey(source: str, config: TableConfig, cache: Path | None = None) -> Survey:
    """Look at a source, and prepare it; see `read_series`."""
    series, opened = read_series(source, config, cache)
    roles = None if opened is None else opened.roles
    found = (roles.ids if roles else ()) or ()
    freq = commonest(series.freqs())
    return Survey(
        source,
        roles is not None,
        not bool(np.isnat(series.starts).any()),
        None if roles is None or roles.time is None else roles.time.name,
        None if not found else found[0] if len(found) == 1 else list(found),
        list(series.columns.target),
        [] if opened is None else list(opened.left_out),
        series.info.points,
        len(series),
        int(np.median(series.lengths)),
        _interval(freq),
        len({freq for freq in series.freqs() if freq is not None}),
        freq is not None and Frequency.parse(freq).kind == "business",
    )


def _opened(source: str, config: TableConfig) -> tuple[Source, TableConfig]:
    """Return a source, and how it is read: the columns that tell its series apart are found."""
    try:
        return open_source(source, config, Problems()), config
    except SeveralSeriesError as error:
        ids = error.ids[0] if len(error.ids) == 1 else list(error.ids)
        config = config.model_copy(update={"id_column": ids})
        return open_source(source, config, Problems()), config


def _interval(freq: str | None) -> pd.Timedelta | None:
    if freq is None:
        return None
    frequency = Frequency.parse(freq)
    if frequency.kind == "months":
        return frequency.count * MONTH
    if frequency.kind == "business":
        return pd.Timedelta(days=frequency.count)
    return pd.Timedelta(microseconds=frequency.count)
