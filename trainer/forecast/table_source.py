"""A table of series that are to be forecast, and how it calls its columns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from trainer.config.table_settings import TableConfig
from trainer.data.reading.problems import costs_data
from trainer.data.reading.time_format import TimeFormat
from trainer.data.reading.written_times import written
from trainer.data.series_set import SeriesSet
from trainer.data.survey import read_series


@dataclass(frozen=True)
class Source:
    """Series to forecast, and how their table calls its columns."""

    series: SeriesSet
    ids: list[str] | None
    """Columns that name the series; None for what is no table with a row for each point."""
    id_name: str
    time_name: str
    time_format: TimeFormat | None
    """How its times are written; None where the table says nothing of it."""
    notes: list[str]
    """What was assumed in reading, in sentences."""
    losses: list[str]
    """What was left out in reading, in sentences."""

    @classmethod
    def open(cls, source: str, config: TableConfig, cache: Path) -> Source:
        """Read a table or open a set. Raises UserError where it cannot be read."""
        series, opened = read_series(source, config, cache)
        roles = None if opened is None else opened.roles
        ids = roles.ids if roles is not None else ()
        time = roles.time if roles is not None else None
        id_name = ids[0] if len(ids) == 1 else "unique_id"
        columns = None if roles is None else list(ids)
        time_name = "ds" if time is None else time.name
        told = [without_folder(note, cache) for note in series.notes]
        losses = [sentence for sentence in told if costs_data(sentence)]
        notes = [sentence for sentence in told if sentence not in losses]
        form = None if time is None else time.form
        return cls(series, columns, id_name, time_name, form, notes, losses)

    def times(self, times: Any) -> Any:
        """Return times as the table writes them."""
        if self.time_format is None or not isinstance(times, pd.DatetimeIndex):
            return times
        return written(times, self.time_format)


def without_folder(sentence: str, folder: Path) -> str:
    """Return a sentence in which a frame's file is called the table."""
    return re.sub(rf"{re.escape(str(folder))}/[\w.-]+", "the table", sentence)
