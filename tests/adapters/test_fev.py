"""fev runs its tasks on a run: the forecasts are those of `Forecaster.predict`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.adapters.shops_run import KINDS, shops_run
from tests.peers import answer
from tests.trainer.forecast.test_future import HORIZON
from trainer.forecast.forecaster import Forecaster

SCRIPT = (Path(__file__).parent / "fev_script.py").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_fev_gets_the_forecasts_of_predict(kind: str, tmp_path: Path) -> None:
    targets, known, beside = KINDS[kind]
    frame = shops_run(tmp_path, kind)
    frame.to_parquet(tmp_path / "shops.parquet")
    arguments = (json.dumps(known), json.dumps(beside), json.dumps(targets))
    got = answer(SCRIPT, tmp_path / "run", tmp_path / "shops.parquet", HORIZON, *arguments)
    place = frame.groupby("shop").cumcount(ascending=False)
    past = frame.assign(**{name: frame[name].where(place >= HORIZON) for name in targets})
    made = Forecaster.load(tmp_path / "run").predict(past, quantiles=[0.1])
    for target in targets:
        rows = made if len(targets) == 1 else made[made["variable"] == target]
        for row, name in enumerate(got["ids"]):
            ours = rows[rows["shop"] == name]
            for column, key in (("mean", "predictions"), ("0.1", "0.1")):
                np.testing.assert_allclose(got["last"][target][key][row], ours[column], rtol=1e-5)
    assert got["scores"]["num_forecasts"] == 2 * 3 * len(targets)
    assert 0 < got["scores"]["test_error"] < 3 and 0 < got["scores"]["WQL"] < 1
    assert "quantiles: the network was trained for those from" in got["refused"][0]
    if known:
        assert got["refused"][1] == (
            "shops: the network reads price in advance, and the task knows nothing"
        )
    if beside:
        assert got["refused"][2] == (
            "shops: the network reads visits up to the present, and the task has price"
        )
