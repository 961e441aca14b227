"""A network that meets series of intervals that it was not trained on says so."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from launch.cli import main
from tests.trainer.forecast.test_future import MANY, trained
from trainer.data.series_facts import SeriesFacts
from trainer.forecast.forecaster import Forecaster

WORDS = "trained on series of the interval D, and these have"


def table(freq: str, start: str = "2020-01-01", points: int = 120) -> pd.DataFrame:
    days = pd.date_range(start, periods=points, freq=freq)
    values = np.sin(np.arange(points)) + 5.5
    one = pd.DataFrame({"shop": "a", "day": days, "sales": values})
    return pd.concat([one, one.assign(shop="b")], ignore_index=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("daily")


@pytest.fixture(scope="module")
def daily(folder: Path) -> Forecaster:
    table("D").to_csv(folder / "daily.csv", index=False)
    return trained(folder, {**MANY, "data.source": str(folder / "daily.csv")})


@pytest.mark.parametrize(("freq", "names"), [("MS", "MS"), ("h", "h"), ("W", "W-SUN")])
def test_another_interval_is_told(daily: Forecaster, freq: str, names: str) -> None:
    with pytest.warns(UserWarning, match=f"{WORDS} {names}: it may not know their seasons"):
        made = daily.predict(table(freq))
    assert len(made) > 0


def test_the_same_interval_is_not(daily: Forecaster) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        daily.predict(table("D", "2023-03-03"))
        daily.predict(table("D", points=1))  # of one point none is known


def test_the_command_line_tells_it_of_other_data(
    daily: Forecaster, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table("MS", points=400).to_csv(tmp_path / "months.csv", index=False)
    run, months, out = str(folder / "run"), str(tmp_path / "months.csv"), str(tmp_path / "out.csv")
    main(["forecast", run, "--input", months, "--output", out])
    assert WORDS in capsys.readouterr().out
    main(["evaluate", run, f"data.source={months}", "data.split=[0.6, 0.2, 0.2]", "--json"])
    told = capsys.readouterr()
    assert WORDS in told.err
    assert any(WORDS in note for note in json.loads(told.out)["notes"])


def test_months_are_the_same_from_either_end_and_older_files_say_nothing(
    daily: Forecaster,
) -> None:
    facts = daily.facts
    assert facts.sources[0].intervals == ("D",)
    content = facts.content()
    for source in content["sources"]:
        source["intervals"] = ["MS"]
    monthly = SeriesFacts.of(content)
    assert monthly.other_intervals(["ME", None]) == [] and monthly.other_intervals([None]) == []
    assert monthly.other_intervals(["QE"])
    for source in content["sources"]:
        del source["intervals"]
    older = SeriesFacts.of(content)
    assert older.other_intervals(["h"]) == []
    assert older == facts  # so that no one is told that the data have changed
