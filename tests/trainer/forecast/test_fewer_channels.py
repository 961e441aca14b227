"""Grouped networks on series with fewer channels than they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from model.errors import UserError
from tests import ranks
from tests.settings import train_rank
from tests.trainer.forecast.test_future import CONTEXT, HORIZON, MANY, shops, trained, waves
from trainer.data.windows import Split
from trainer.forecast.evaluate import evaluate
from trainer.forecast.forecaster import Forecaster
from trainer.logs.metrics import read_metrics

GROUPED: dict[str, Any] = {**MANY, "model.channels": "grouped"}
PARTS = {"data.split": [0.7, 0.1, 0.2]}


def measured(points: int, channels: int) -> pd.DataFrame:
    times = pd.date_range("2024-01-01", periods=points, freq="D")
    values = {f"c{n}": waves(points, 6.0 + n, 10.0 * n) for n in range(channels)}
    return pd.DataFrame({"time": times, **values})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was trained on tables of three channels, of one, and on made series."""
    folder = tmp_path_factory.mktemp("grouped")
    measured(200, 3).to_csv(folder / "three.csv", index=False)
    measured(150, 1).to_csv(folder / "one.csv", index=False)
    measured(90, 2).to_csv(folder / "held.csv", index=False)
    made = {"synthetic": {"kind": "structured", "items": 100, "length": 128}}
    sources = [{"path": str(folder / f"{name}.csv")} for name in ("three", "one")]
    validation = {"data.validate_on": [str(folder / "held.csv")], "logging.validate_every": 1}
    changes = {
        **GROUPED,
        "data.source": [*sources, made],
        **validation,
        "data.split": [0.7, 0.1, 0.2],
    }
    trained(folder, changes)
    return folder / "run"


def test_other_series_are_scored_while_it_trains(run: Path) -> None:
    row = read_metrics(run / "metrics.jsonl")[-1]
    assert np.isfinite(row["zero_shot/held/mase"])


def test_each_number_of_channels_is_forecast(run: Path) -> None:
    """Those that lack are as missing ones: the others' forecasts are the arrays'."""
    forecaster = Forecaster.load(run)
    assert forecaster.facts.channels == ("c0", "c1", "c2")
    for channels in (1, 2, 3):
        frame = measured(100, channels)
        made = forecaster.predict(frame)
        values = made["mean"].to_numpy().reshape(channels, HORIZON)
        assert np.isfinite(values).all()
        other = frame.assign(c0=frame["c0"] * 3 - 1)
        again = forecaster.predict(other)["mean"].to_numpy().reshape(channels, HORIZON)
        np.testing.assert_allclose(again[0], values[0] * 3 - 1, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(again[1:], values[1:], rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="it has the channels c0, c1, c2, c3, and the network"):
        forecaster.predict(measured(100, 4))


def test_each_number_of_channels_is_scored(run: Path, tmp_path: Path) -> None:
    forecaster = Forecaster.load(run)
    measured(200, 2).to_csv(tmp_path / "two.csv", index=False)
    data = forecaster.dataset_of({"data.source": str(tmp_path / "two.csv")})
    result = evaluate(data, Split.TEST, forecaster.predict_windows, batch_size=8, levels=[])
    errors = []
    for window in range(data.windows(Split.TEST)):
        batch = data.batch(Split.TEST, np.array([window]))
        [(_, forecast)] = forecaster.predict_windows([batch])
        errors.append(forecast[0, :, :2, 0].numpy() - batch.target[0, :, :2])
    scores = result.scores()["Forescale"]
    assert scores["mse"] == pytest.approx(np.mean(np.square(errors)), rel=1e-4)
    assert np.isfinite(scores["mase"])
    measured(200, 4).to_csv(tmp_path / "four.csv", index=False)
    with pytest.raises(UserError, match="it has 4 channels, and the network takes 3"):
        forecaster.dataset_of({"data.source": str(tmp_path / "four.csv")})


@pytest.mark.slow
def test_they_are_one_run_on_any_layout(run: Path, tmp_path: Path) -> None:
    rows = read_metrics(run / "metrics.jsonl")
    settings = Forecaster.load(run).settings
    sources = [one.model_dump(exclude_none=True) for one in settings.data.source]
    changes = {**GROUPED, "data.source": sources, **PARTS}
    layout = {"parallel.tensor": 2, "train.micro_batch_size": 2}
    ranks.run(train_rank, 2, tmp_path / "run", {**changes, **layout})
    others = read_metrics(tmp_path / "run" / "metrics.jsonl")
    np.testing.assert_allclose(
        [row["loss"] for row in others], [row["loss"] for row in rows], rtol=1e-5
    )


def test_a_network_that_mixes_channels_takes_no_fewer(tmp_path: Path) -> None:
    measured(200, 2).to_csv(tmp_path / "two.csv", index=False)
    changes = {**MANY, "model.channels": "mixed", "data.source": str(tmp_path / "two.csv")}
    forecaster = trained(tmp_path, changes)
    with pytest.raises(UserError, match=r"together; choose as many by data\.targets"):
        forecaster.predict(shops(a=CONTEXT + 20), targets=["sales"], id_column="shop")
