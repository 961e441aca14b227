"""GluonTS evaluates a run: its forecasts are those of `Forecaster.predict`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.adapters.shops_run import KINDS, shops_run
from tests.peers import answer
from tests.trainer.forecast.test_future import HORIZON
from trainer.forecast.forecaster import Forecaster

SCRIPT = (Path(__file__).parent / "gluonts_script.py").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_gluonts_gets_the_forecasts_of_predict(kind: str, tmp_path: Path) -> None:
    """Contexts are short, have missing values, at their ends too, and columns known ahead."""
    targets, known, beside = KINDS[kind]
    frame = shops_run(tmp_path, kind)
    place = frame.groupby("shop").cumcount(ascending=False)
    is_late = (frame["shop"] == "c") & place.isin([HORIZON, HORIZON + 1])
    frame.loc[is_late | (place == HORIZON + 7), targets] = np.nan
    frame.to_parquet(tmp_path / "shops.parquet")
    got = answer(
        SCRIPT,
        tmp_path / "run",
        tmp_path / "shops.parquet",
        HORIZON,
        json.dumps(known),
        json.dumps(beside),
        json.dumps(targets),
        tmp_path / "predictor",
    )
    past = frame.assign(**{name: frame[name].where(place >= HORIZON) for name in targets})
    made = Forecaster.load(tmp_path / "run").predict(past, quantiles=[0.1])
    for name, forecast in got["found"].items():
        assert (
            pd.Timestamp(forecast["start"])
            == frame["day"][(frame["shop"] == name) & (place == HORIZON - 1)].item()
        )
        ours = made[made["shop"] == name]
        for column, key in (("mean", "mean"), ("0.1", "low")):
            expected = ours[column].to_numpy().reshape(len(targets), HORIZON).T.squeeze()
            values = np.asarray(forecast[key])
            assert values.shape == expected.shape and np.isfinite(values).all()
            if name != "c":  # whose last values are missing, so that ours begins before them
                np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert np.asarray(got["empty"]).max() == 0
    if known:
        assert "the network reads price in advance; expected [1, " in got["refused"][0]
    if beside:
        assert "the network reads visits up to the present; expected [1, " in got["refused"][-1]
    if len(targets) == 1:
        assert 0 < got["scores"]["MASE[0.5]"] < 3
