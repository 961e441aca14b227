"""Forecasts by networks that know something in advance: dates, prices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from model.errors import UserError
from tests.settings import planned
from tests.trainer.forecast.test_future import HORIZON, MANY, shops, trained
from trainer.config.data_settings import DataConfig
from trainer.config.table_settings import TableConfig
from trainer.data import Dataset
from trainer.data.prepare_set import prepare_set
from trainer.data.windows import Split
from trainer.forecast.forecaster import Forecaster


@pytest.fixture(scope="module")
def dated(tmp_path_factory: pytest.TempPathFactory) -> Forecaster:
    """An encoder-decoder that knows dates, whose future tokens see each other."""
    folder = tmp_path_factory.mktemp("dated")
    shops(a=200, bb=150).to_csv(folder / "shops.csv", index=False)
    changes = {
        **MANY,
        "data.source": str(folder / "shops.csv"),
        "data.calendar": ["day_of_week"],
        "model.architecture": "encoder_decoder",
        "model.head": "flatten",
        "model.patch_length": 4,
        "model.loss": "mse",
        "model.loss_units": "window",
        "model.periods": 0,
        "model.arcsinh": False,
    }
    return trained(folder, changes)


@pytest.fixture(scope="module")
def informed(tmp_path_factory: pytest.TempPathFactory) -> Forecaster:
    """A network that reads a price and the day of the week in advance."""
    folder = tmp_path_factory.mktemp("informed")
    priced(shops(a=200, bb=150)).to_csv(folder / "shops.csv", index=False)
    changes = {
        **MANY,
        "data.source": str(folder / "shops.csv"),
        "data.targets": ["sales"],
        "data.covariates": ["price"],
        "data.calendar": ["day_of_week"],
    }
    return trained(folder, changes)


def test_series_without_times_are_refused_where_the_calendar_is_read(dated: Forecaster) -> None:
    frame = shops(a=100).drop(columns=["day", "shop"])
    words = r"it has no times, and the network reads the calendar \(day_of_week\); name the column"
    with pytest.raises(UserError, match=words):
        dated.predict(frame, time_column="none", id_column="none", targets=["sales"])


def priced(frame: pd.DataFrame) -> pd.DataFrame:
    price = 20 + np.random.default_rng(5).normal(size=len(frame))
    return frame.assign(price=price)


def test_what_is_known_in_advance_stands_in_a_file_of_its_own_or_in_empty_rows(
    informed: Forecaster,
) -> None:
    frame = priced(shops(a=100, bb=90))
    is_future = frame.groupby("shop").cumcount(ascending=False) < HORIZON
    past, future = frame[~is_future], frame[is_future].drop(columns="sales")
    apart = informed.predict(past, future=future)
    together = informed.predict(frame.assign(sales=frame["sales"].where(~is_future)))
    pd.testing.assert_frame_equal(apart, together)
    other = informed.predict(past, future=future.assign(price=future["price"] + 30))
    assert not np.allclose(other["mean"], apart["mean"])
    halves = future.groupby("shop").cumcount() < 5
    beside = pd.concat([past, future[halves]])
    pd.testing.assert_frame_equal(informed.predict(beside, future=future[~halves]), apart)
    missing = "price must be known for the 12 points to come; give them in rows without targets"
    first = [times["day"].min() for _, times in future.groupby("shop")]
    with pytest.raises(UserError, match=rf"{missing}.* \(a from {first[0]}, bb from {first[1]}\)"):
        informed.predict(past)
    sixth = future.groupby("shop")["day"].nth(5).tolist()
    with pytest.raises(UserError, match=rf"{missing}.* \(a from {sixth[0]}, bb from {sixth[1]}\)"):
        informed.predict(past, future=future[halves])
    with pytest.raises(
        UserError, match=rf"{missing}.*future=\), which has no such series \(a from"
    ):
        informed.predict(past, future=future.assign(shop=future["shop"] + "2"))
    with pytest.raises(UserError, match="future: the table has no column 'price'"):
        informed.predict(past, future=future.drop(columns="price").assign(cost=1.5))


@pytest.mark.parametrize("horizon", [1, 5, 17])
def test_a_shorter_horizon_is_the_beginning_of_a_longer_one_with_what_is_known_ahead(
    informed: Forecaster, dated: Forecaster, horizon: int
) -> None:
    """The network sees the calendar and the prices of all points that it was trained to see."""
    frame = shops(a=100, bb=90)
    whole = dated.predict(frame, horizon=2 * HORIZON).groupby("shop").head(horizon)
    made = dated.predict(frame, horizon=horizon)
    np.testing.assert_allclose(made["mean"], whole["mean"], rtol=1e-5)
    frame = priced(frame)
    is_future = frame.groupby("shop").cumcount(ascending=False) < 2 * HORIZON
    past, future = frame[~is_future], frame[is_future].drop(columns="sales")
    whole = informed.predict(past, future=future, horizon=2 * HORIZON)
    made = informed.predict(past, future=future, horizon=horizon)
    expected = whole.groupby("shop").head(horizon)
    np.testing.assert_allclose(made["mean"], expected["mean"], rtol=1e-5)


def test_a_backtest_knows_covariates_and_nothing_later(informed: Forecaster) -> None:
    """What comes after the origin changes no forecast, but for what is known in advance."""
    frame = priced(shops(a=100))
    made = informed.backtest(frame, windows=1)
    later = frame.assign(sales=frame["sales"].where(frame.index < 100 - HORIZON, 1000.0))
    np.testing.assert_allclose(informed.backtest(later, windows=1)["mean"], made["mean"])
    dearer = frame.assign(price=frame["price"].where(frame.index < 100 - HORIZON, 90.0))
    assert not np.allclose(informed.backtest(dearer, windows=1)["mean"], made["mean"])


@pytest.mark.parametrize("which", ["informed", "dated"])
def test_scores_of_a_shorter_horizon_are_of_the_same_forecasts(
    which: str, request: pytest.FixtureRequest
) -> None:
    forecaster = request.getfixturevalue(which)
    whole, short = (
        forecaster.dataset_of({"data.split": [0.6, 0.2, 0.2], "data.prediction_length": points})
        for points in (HORIZON, 5)
    )
    expected, made = (
        next(iter(forecaster.predict_windows([data.batch(Split.TEST, np.array([3]))])))
        for data in (whole, short)
    )
    np.testing.assert_array_equal(made[0].target, expected[0].target[:, :5])
    np.testing.assert_allclose(made[1], expected[1][:, :5], rtol=1e-5)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Forecaster, Path]:
    """A network that reads a price and a holiday in advance, and its table."""
    folder = tmp_path_factory.mktemp("two")
    frame = priced(shops(a=200, bb=150))
    frame = frame.assign(holiday=(frame.index % 7 == 0).astype(int))
    frame.to_csv(folder / "shops.csv", index=False)
    changes = {
        **MANY,
        "data.source": str(folder / "shops.csv"),
        "data.targets": ["sales"],
        "data.covariates": ["price", "holiday"],
    }
    return trained(folder, changes), folder / "shops.csv"


@pytest.mark.parametrize("names", [["holiday", "price"], ["sales", "holiday"], ["price"], []])
def test_columns_are_never_read_as_others(
    two: tuple[Forecaster, Path], names: list[str], tmp_path: Path
) -> None:
    """Not in scores, nor in forecasts, nor of prepared sets, nor by weights that are taken over."""
    forecaster, file = two
    targets = ["price"] if "sales" in names else ["sales"]
    reads = "the network reads price, holiday in advance"
    with pytest.raises(UserError, match=reads):
        forecaster.dataset_of({"data.covariates": names, "data.targets": targets})
    with pytest.raises(UserError, match=reads):
        forecaster.predict(file, covariates=names, targets=targets)
    prepare_set([str(file)], tmp_path / "set", TableConfig(covariates=names, targets=targets))
    plain = {"data.covariates": [], "data.targets": None, "data.source": str(tmp_path / "set")}
    with pytest.raises(UserError, match=reads):
        forecaster.dataset_of(plain)
    if names[:1] == ["holiday"]:
        changes = {**MANY, "data.source": str(file), "data.targets": ["sales"]}
        changes |= {"data.covariates": names, "model.init_from": str(file.parent / "run")}
        with pytest.raises(UserError, match=r"data\.covariates: holiday has another place than in"):
            planned(tmp_path / "run", changes, 1)


def test_a_mixture_has_its_covariates_in_one_order(
    two: tuple[Forecaster, Path], tmp_path: Path
) -> None:
    paths = []
    for names in (["price", "holiday"], ["holiday", "price"]):
        config = TableConfig(covariates=names, targets=["sales"])
        prepare_set([str(two[1])], tmp_path / names[0], config)
        paths.append({"path": str(tmp_path / names[0])})
    settings = {"source": paths, "context_length": 48, "prediction_length": 12}
    with pytest.raises(UserError, match=r"covariates price, holiday, and .* holiday, price"):
        Dataset(DataConfig.model_validate(settings))


def test_a_set_with_what_the_network_reads_may_be_taken_as_it_is(
    two: tuple[Forecaster, Path], tmp_path: Path
) -> None:
    """As the sentence about a set of other columns tells to, by data.covariates=[]."""
    forecaster, file = two
    frame = pd.read_csv(file)
    is_future = frame.groupby("shop").cumcount(ascending=False) < HORIZON
    frame.assign(sales=frame["sales"].where(~is_future)).to_csv(tmp_path / "own.csv", index=False)
    config = TableConfig(covariates=["price", "holiday"], targets=["sales"])
    prepare_set([str(tmp_path / "own.csv")], tmp_path / "set", config)
    made = forecaster.predict(tmp_path / "set", covariates=[], targets=None)
    expected = forecaster.predict(tmp_path / "own.csv")
    np.testing.assert_allclose(made["mean"], expected["mean"], rtol=1e-6)
