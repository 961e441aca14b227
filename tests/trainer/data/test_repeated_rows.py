"""Rows that stand twice in a table of several series, by mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from model.errors import UserError
from tests.trainer.data.sets import csv, prepared


def stores(days: int = 300) -> pd.DataFrame:
    """Return a table whose stores' sales are whole numbers, as a column of names could be."""
    rng = np.random.default_rng(0)
    one = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=days, freq="D")})
    tables = [
        one.assign(store=f"{n:03}", sales=rng.integers(5, 30, days), promo=rng.integers(0, 2, days))
        for n in range(6)
    ]
    return pd.concat(tables, ignore_index=True)[["store", "date", "sales", "promo"]]


def test_a_store_whose_rows_differ_is_named_and_no_target_taken_for_a_name(tmp_path: Path) -> None:
    table = stores()
    wrong = table.head(3).assign(sales=[90, 91, 92])
    file = csv(tmp_path, pd.concat([table, wrong]))
    with pytest.raises(UserError, match=r"series 000 .*rows 1 and 1801 are both of 2024-01-01"):
        prepared(tmp_path, file)
    series = prepared(tmp_path, file, on_error="skip")
    assert len(series) == 6 and series.target(0)[0, 0] == table["sales"][0]


def test_rows_that_stand_twice_are_left_out(tmp_path: Path) -> None:
    table = stores()
    series = prepared(tmp_path, csv(tmp_path, pd.concat([table, table.iloc[[0, 700]]])))
    assert len(series) == 6 and series.lengths.tolist() == [300] * 6
    assert any("rows that repeat another, left out" in note for note in series.info.notes)


def test_many_rows_of_a_time_ask_for_another_name(tmp_path: Path) -> None:
    """Two departments of each store: half of the rows repeat a store's time."""
    table = pd.concat([stores().assign(dept=dept) for dept in ("a", "b")])
    with pytest.raises(UserError, match=r"several series\? Set data\.id_column="):
        prepared(tmp_path, csv(tmp_path, table))
