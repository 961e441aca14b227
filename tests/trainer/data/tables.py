"""Small tables, and datasets of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from model.errors import UserError
from trainer.config.data_settings import DataConfig
from trainer.data import Dataset


def frame(rows: int = 60, **columns: Any) -> pd.DataFrame:
    """Return a table of hours with two channels, `load` and twice that, `heat`."""
    hours = pd.date_range("2024-01-01", periods=rows, freq="h")
    wave = np.arange(rows, dtype=float)
    return pd.DataFrame({"date": hours, "load": wave, "heat": 2 * wave, **columns})


def config(file: Path, **changes: Any) -> DataConfig:
    """Return settings that forecast 3 rows from 6."""
    return DataConfig(source=str(file), context_length=6, prediction_length=3, **changes)


def dataset(tmp_path: Path, table: pd.DataFrame, **changes: Any) -> Dataset:
    """Return the dataset of a table that is written to series.csv."""
    file = tmp_path / "series.csv"
    table.to_csv(file, index=False)
    return Dataset(config(file, **changes))


def mistake(tmp_path: Path, table: pd.DataFrame, **changes: Any) -> str:
    """Return the sentence that a table is refused with."""
    with pytest.raises(UserError) as caught:
        dataset(tmp_path, table, **changes)
    return str(caught.value).replace(f"{tmp_path}/", "")


def words(table: pd.DataFrame, column: str, row: int, word: Any) -> pd.DataFrame:
    """Return the table with `word` in one cell."""
    return table.assign(**{column: [*table[column][:row], word, *table[column][row + 1 :]]})
