"""Forecasts by networks that read columns known up to the present: visits, temperatures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from model.errors import UserError
from tests.settings import planned
from tests.trainer.forecast.test_future import CONTEXT, HORIZON, MANY, shops, trained
from trainer.config.data_settings import DataConfig
from trainer.config.table_settings import TableConfig
from trainer.data import Dataset
from trainer.data.prepare_set import prepare_set
from trainer.data.windows import Split
from trainer.forecast.forecaster import Forecaster


def visited(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table with visits, some of which are missing."""
    visits = 100 + 10 * np.random.default_rng(5).normal(size=len(frame))
    frame = frame.assign(visits=visits)
    frame.loc[::17, "visits"] = np.nan
    return frame


SEEING: dict[str, Any] = {
    **MANY,
    "data.targets": ["sales"],
    "data.past_covariates": ["visits"],
    "model.channels": "grouped",
}


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Forecaster:
    folder = tmp_path_factory.mktemp("seeing")
    visited(shops(a=200, bb=150)).to_csv(folder / "shops.csv", index=False)
    return trained(folder, {**SEEING, "data.source": str(folder / "shops.csv")})


def test_predict_reads_them_up_to_the_end_of_each_series(seeing: Forecaster) -> None:
    frame = visited(shops(a=100, bb=30))
    made = seeing.predict(frame)
    for name in ("a", "bb"):
        part = frame.loc[frame["shop"] == name].tail(CONTEXT)
        expected = seeing.forecast(
            part["sales"].to_numpy()[None, :, None], past=part["visits"].to_numpy()[None, :, None]
        )
        # A series of the network's own units has those of its whole past, and windows theirs.
        ours = made.loc[made["shop"] == name, "mean"]
        np.testing.assert_allclose(ours, expected[0, :, 0], rtol=1e-4)
    changed = frame.assign(visits=frame["visits"].where(frame.index % 5 > 0, 500.0))
    assert not np.allclose(seeing.predict(changed)["mean"], made["mean"])


def test_what_comes_later_is_not_read(seeing: Forecaster) -> None:
    """A backtest's forecasts are those from a table that ends there."""
    frame = visited(shops(a=100))
    made = seeing.backtest(frame, windows=2)
    for back in (1, 2):
        ends = seeing.predict(frame.iloc[: 100 - back * HORIZON])
        ours = made.iloc[(2 - back) * HORIZON :][:HORIZON]
        np.testing.assert_allclose(ours["mean"], ends["mean"], rtol=1e-5)
    late = pd.concat([frame, visited(shops(a=110)).iloc[100:].assign(sales=np.nan)])
    pd.testing.assert_frame_equal(seeing.predict(late), seeing.predict(frame))


def test_beyond_the_trained_horizon_they_are_missing(seeing: Forecaster) -> None:
    frame = visited(shops(a=100))
    longer = seeing.predict(frame, horizon=3 * HORIZON)
    assert len(longer) == 3 * HORIZON and np.isfinite(longer["mean"]).all()
    np.testing.assert_allclose(longer["mean"][:HORIZON], seeing.predict(frame)["mean"], rtol=1e-5)


def test_a_table_without_them_is_refused(seeing: Forecaster) -> None:
    with pytest.raises(UserError, match=r"data.past_covariates: .*visits"):
        seeing.predict(shops(a=100))
    with pytest.raises(UserError, match="the network reads visits up to the present, and this has"):
        seeing.predict(shops(a=100), past_covariates=[])
    context = np.ones((1, CONTEXT, 1))
    with pytest.raises(UserError, match=r"past: expected \[B, 48, 1\], got \[1, 48, 0\]"):
        seeing.forecast(context)
    with pytest.raises(UserError, match="past: found inf at"):
        seeing.forecast(context, past=np.full((1, CONTEXT, 1), np.inf))
    empty = seeing.forecast(context, past=np.full((1, CONTEXT, 1), np.nan))
    assert np.isfinite(empty).all()


def test_evaluate_scores_other_series_with_or_without_them(
    seeing: Forecaster, tmp_path: Path
) -> None:
    visited(shops(a=200, bb=150)).to_csv(tmp_path / "with.csv", index=False)
    shops(a=200, bb=150).to_csv(tmp_path / "without.csv", index=False)
    source = {"data.source": str(tmp_path / "with.csv")}
    data = seeing.dataset_of(source)
    batch = data.batch(Split.TRAIN, np.arange(3))
    assert batch.past is not None and batch.past.shape == (3, CONTEXT, 1)
    [(_, with_visits)] = seeing.predict_windows([batch])
    bare = {"data.source": str(tmp_path / "without.csv"), "data.past_covariates": []}
    data = seeing.dataset_of(bare)
    assert "has no visits, known up to the present; all missing" in " ".join(data.notes)
    [(_, forecast)] = seeing.predict_windows([data.batch(Split.TRAIN, np.arange(3))])
    assert forecast.isfinite().all() and not np.allclose(forecast, with_visits)


def test_windows_hold_what_the_table_has(tmp_path: Path) -> None:
    """Of one series and of a mixture, of which one part has other columns."""
    frame = visited(shops(a=120))
    frame["heat"] = np.arange(120.0)
    sets = []
    for name, columns in (("one", ["visits", "heat"]), ("two", ["heat"]), ("three", [])):
        other = frame.assign(sales=frame["sales"] + len(sets))
        other.to_csv(tmp_path / f"{name}.csv", index=False)
        table = TableConfig(targets=["sales"], past_covariates=columns)
        prepare_set([str(tmp_path / f"{name}.csv")], tmp_path / name, table)
        sets.append({"path": str(tmp_path / name)})
    fixed = {"context_length": 20, "prediction_length": 5, "scaling": "none"}
    alone = Dataset(DataConfig.model_validate({"source": str(tmp_path / "one"), **fixed}))
    assert alone.past == ["visits", "heat"] and alone.shape.past == 2
    batch = alone.batch(Split.TRAIN, np.array([0, 7]))
    assert batch.past is not None and batch.variates.shape == (2, 20, 3)
    for row, first in enumerate((0, 7)):
        expected = frame[["visits", "heat"]].to_numpy()[first : first + 20]
        np.testing.assert_allclose(batch.past[row], expected, rtol=1e-6)
    mixed = Dataset(DataConfig.model_validate({"source": sets, **fixed}))
    assert mixed.past == ["visits", "heat"]
    each = mixed.windows(Split.TRAIN) // 3
    past = mixed.batch(Split.TRAIN, np.array([7, each + 7, 2 * each + 7])).past
    assert past is not None
    np.testing.assert_allclose(past[0], expected, rtol=1e-6)
    np.testing.assert_allclose(past[1, :, 1], expected[:, 1])
    assert np.isnan(past[1, :, 0]).all() and np.isnan(past[2]).all()


def test_they_are_scaled_by_their_training_part(tmp_path: Path) -> None:
    frame = visited(shops(a=120))
    frame.to_csv(tmp_path / "shops.csv", index=False)
    config = DataConfig(
        source=str(tmp_path / "shops.csv"),
        targets=["sales"],
        past_covariates=["visits"],
        context_length=20,
        prediction_length=5,
    )
    data = Dataset(config, tmp_path / "cache")
    training = frame["visits"].to_numpy()[: int(0.7 * 120)]
    past = data.batch(Split.TRAIN, np.array([3])).past
    assert past is not None
    wanted = (frame["visits"].to_numpy()[3:23] - np.nanmean(training)) / np.nanstd(training)
    np.testing.assert_allclose(past[0, :, 0], wanted, rtol=1e-5)
    facts = data.facts
    assert facts.past == ("visits",)
    np.testing.assert_allclose(facts.past_mean, [np.nanmean(training)])
    np.testing.assert_allclose(facts.past_deviation, [np.nanstd(training)])


def test_weights_that_read_them_in_another_order_are_refused(
    seeing: Forecaster, tmp_path: Path
) -> None:
    facts = replace(seeing.facts)
    assert facts.moved(facts) is None
    frame = visited(shops(a=120)).assign(heat=1.0)
    frame.to_csv(tmp_path / "shops.csv", index=False)
    both = {
        **SEEING,
        "data.source": str(tmp_path / "shops.csv"),
        "model.channels": "mixed",
        "data.past_covariates": ["visits", "heat"],
    }
    trained(tmp_path, both)
    other = {**both, "data.past_covariates": ["heat", "visits"]}
    with pytest.raises(UserError, match=r"data.past_covariates.*heat has another place than in"):
        planned(tmp_path / "other", {**other, "model.init_from": str(tmp_path / "run")})


def test_a_network_of_independent_channels_says_that_it_does_not_read_them(
    tmp_path: Path,
) -> None:
    visited(shops(a=120)).to_csv(tmp_path / "shops.csv", index=False)
    changes = {**SEEING, "data.source": str(tmp_path / "shops.csv")}
    plan = planned(tmp_path / "run", {**changes, "model.channels": "independent"})
    said = "visits: not read, as model.channels=independent sees each channel by itself"
    assert any(said in warning for warning in plan.warnings())
    assert not any("not read" in w for w in planned(tmp_path / "grouped", changes).warnings())
