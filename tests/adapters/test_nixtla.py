"""Frames for Nixtla's libraries: utilsforecast scores them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from utilsforecast.evaluation import evaluate
from utilsforecast.losses import coverage, mae

from forescale import Forecaster, UserError
from forescale.nixtla import cross_validation, predict
from tests.adapters.shops_run import shops_run
from tests.trainer.forecast.test_future import HORIZON


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> tuple[Forecaster, pd.DataFrame]:
    """Return a forecaster, and its series as these libraries have them."""
    folder: Path = tmp_path_factory.mktemp("nixtla")
    frame = shops_run(folder, "alone")
    names = {"shop": "unique_id", "day": "ds", "sales": "y"}
    return Forecaster.load(folder / "run"), frame.rename(columns=names)


def test_frames_are_scored_by_utilsforecast(shops: tuple[Forecaster, pd.DataFrame]) -> None:
    forecaster, frame = shops
    made = cross_validation(forecaster, frame, n_windows=2, step_size=5, level=[80])
    names = ["unique_id", "ds", "cutoff", "Forescale", "Forescale-lo-80", "Forescale-hi-80", "y"]
    assert list(made.columns) == names and len(made) == 3 * 2 * HORIZON
    assert (made["Forescale-lo-80"] <= made["Forescale-hi-80"]).all()
    ours = forecaster.backtest(frame, windows=2, step=5, quantiles=[0.1], targets=["y"])
    np.testing.assert_array_equal(made["Forescale"], ours["mean"])
    np.testing.assert_array_equal(made["Forescale-lo-80"], ours["0.1"])
    found = evaluate(made, metrics=[mae, coverage], level=[80]).set_index(["unique_id", "metric"])
    of_a = made[(made["unique_id"] == "a")]
    expected = (of_a["y"] - of_a["Forescale"]).abs().groupby(of_a["cutoff"]).mean()
    np.testing.assert_allclose(found.loc[("a", "mae"), "Forescale"], expected)


def test_the_future_has_their_columns(shops: tuple[Forecaster, pd.DataFrame]) -> None:
    forecaster, frame = shops
    made = predict(forecaster, frame, 5, level=[50, 80])
    intervals = [f"Forescale-{side}-{level}" for level in (50, 80) for side in ("lo", "hi")]
    assert list(made.columns) == ["unique_id", "ds", "Forescale", *intervals]
    assert made.groupby("unique_id").size().to_dict() == {"a": 5, "bb": 5, "c": 5}
    assert list(predict(forecaster, frame, 5).columns) == ["unique_id", "ds", "Forescale"]
    for level, words in ((100, "level: expected percentages between"), (99.9, "was trained for")):
        with pytest.raises(UserError, match=words):
            predict(forecaster, frame, 5, level=[level])
