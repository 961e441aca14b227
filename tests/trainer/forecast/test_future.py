"""Forecasts of what comes after the end of series: their values, names and times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from model.errors import UserError
from tests import ranks
from tests.settings import UNSCORED, train_rank
from trainer.forecast.forecaster import Forecaster
from trainer.forecast.paths import forecast_paths

CONTEXT, HORIZON = 48, 12

MANY: dict[str, Any] = {
    **UNSCORED,
    "data.targets": None,
    "data.covariates": [],
    "data.calendar": [],
    "data.timezone": None,
    "data.rows": None,
    "data.context_length": CONTEXT,
    "data.prediction_length": HORIZON,
    "model.architecture": "encoder",
    "model.head": "token",
    "model.position": "rotary",
    "model.use_moe": False,
    "model.patch_length": 8,
    "model.periods": 1,
    "model.arcsinh": True,
    "model.loss": "quantile",
    "model.loss_units": "season",
    "model.quantile_order": "sorted",
    "model.dropout": 0.0,
    "train.steps": 2,
    "train.warmup_steps": 1,
}
"""As models of many series are pre-trained."""


def waves(points: int, period: float = 6.0, level: float = 0.0) -> Any:
    """Return a wave with a little noise."""
    noise = np.random.default_rng(points).normal(0, 0.05, points)
    return level + np.sin(np.arange(points) * 2 * np.pi / period) + noise


def shops(**lengths: int) -> pd.DataFrame:
    """Return a long table of shops, whose series have these lengths."""
    frames = [
        pd.DataFrame(
            {
                "shop": name,
                "day": pd.date_range("2024-01-01", periods=points, freq="D"),
                "sales": waves(points, level=10.0 * len(name)),
            }
        )
        for name, points in lengths.items()
    ]
    return pd.concat(frames, ignore_index=True)


def trained(folder: Path, changes: dict[str, Any]) -> Forecaster:
    ranks.run(train_rank, 1, folder / "run", changes)
    return Forecaster.load(folder / "run")


@pytest.fixture(scope="module")
def general(tmp_path_factory: pytest.TempPathFactory) -> Forecaster:
    """A network of one channel, for any series."""
    folder = tmp_path_factory.mktemp("general")
    shops(a=200, bb=150).to_csv(folder / "shops.csv", index=False)
    return trained(folder, {**MANY, "data.source": str(folder / "shops.csv")})


def last_window(forecaster: Forecaster, values: Any) -> Any:
    """Return the forecast of an array's last context, [T]."""
    context = np.asarray(values, float)[-CONTEXT:].reshape(1, -1, 1)
    return forecaster.forecast(context)[0, :, 0]


def test_each_series_is_forecast_from_its_last_points(general: Forecaster) -> None:
    frame = shops(north=100, ye=30)
    made = general.predict(frame)
    assert list(made.columns) == ["shop", "day", "mean", *(f"0.{n}" for n in range(1, 10))]
    assert made["shop"].tolist() == ["north"] * HORIZON + ["ye"] * HORIZON
    first = pd.date_range("2024-04-10", periods=HORIZON, freq="D")  # 100 days after New Year
    assert made["day"].iloc[:HORIZON].tolist() == first.tolist()
    for name, points in (("north", 100), ("ye", 30)):
        ours = made.loc[made["shop"] == name]
        expected = last_window(general, frame.loc[frame["shop"] == name, "sales"])
        np.testing.assert_allclose(ours["mean"], expected, rtol=1e-4)
        np.testing.assert_allclose(ours["mean"], ours["0.5"])
        quantiles = ours[[f"0.{n}" for n in range(1, 10)]].to_numpy()
        assert (np.diff(quantiles, axis=1) >= 0).all()
        assert points  # shorter than a context, or longer


def test_an_untrained_period_is_repeated(general: Forecaster) -> None:
    """A network with periods begins at seasonal naive, so a wave goes on as it was."""
    values = np.tile([0.0, 1.0, 3.0, 2.0, 1.0, -1.0], 10)
    days = pd.date_range("2024-01-01", periods=60, freq="D")
    made = general.predict(pd.DataFrame({"day": days, "y": values}))
    assert list(made.columns[:2]) == ["unique_id", "day"]
    np.testing.assert_allclose(made["mean"], np.tile(values[:6], 2), atol=0.3)


@pytest.mark.parametrize("horizon", [1, 5, HORIZON, 3 * HORIZON, 40])
def test_any_horizon(general: Forecaster, horizon: int) -> None:
    """A shorter one is the beginning of a longer one."""
    frame = shops(a=100)
    made, whole = general.predict(frame, horizon=horizon), general.predict(frame)
    assert len(made) == horizon
    shared = min(horizon, HORIZON)
    np.testing.assert_allclose(made["mean"][:shared], whole["mean"][:shared], rtol=1e-5)


def test_paths_are_the_quantiles_of_all_continuations(general: Forecaster) -> None:
    """By a loop over paths in plain numpy."""
    context = torch.from_numpy(waves(CONTEXT).astype(np.float32)).view(1, -1, 1)
    nothing = torch.zeros(1, CONTEXT, 0)
    made = forecast_paths(general, context, torch.zeros(1, CONTEXT + 2 * HORIZON, 0), nothing, 20)[
        0, :, 0
    ]
    first = general.forecast(context.numpy())  # in its own units; here they are standardised
    assert first.shape == (1, HORIZON, 1)
    levels = np.array(general.network.output.levels)
    samples = []
    for path in made[:HORIZON, 1:].T:
        longer = torch.cat([context[0, :, 0], path])[-CONTEXT:]
        following = forecast_paths(
            general, longer.view(1, -1, 1), torch.zeros(1, CONTEXT + HORIZON, 0), nothing, 8
        )
        samples.append(following[0, :, 0, 1:].numpy())
    together = np.concatenate(samples, axis=1)
    np.testing.assert_allclose(
        made[HORIZON:, 1:], np.quantile(together, levels, axis=1).T, rtol=1e-4, atol=1e-5
    )


def test_chosen_quantiles(general: Forecaster) -> None:
    frame = shops(a=100, bb=90)
    made, whole = general.predict(frame, quantiles=[0.9, 0.15]), general.predict(frame)
    assert list(made.columns) == ["shop", "day", "mean", "0.15", "0.9"]
    np.testing.assert_allclose(made["0.15"], (whole["0.1"] + whole["0.2"]) / 2, rtol=1e-6)
    with pytest.raises(UserError, match=r"from 0\.1 to 0\.9, and 0\.95 is another"):
        general.predict(frame, quantiles=[0.5, 0.95])
    with pytest.raises(UserError, match="horizon: expected a number of points from 1 on"):
        general.predict(frame, horizon=0)


def test_columns_of_a_table_are_series_of_a_network_of_one_channel(general: Forecaster) -> None:
    days = pd.date_range("2024-01-01", periods=90, freq="D")
    frame = pd.DataFrame({"day": days, "load": waves(90), "price": waves(90, 9.0, 50.0)})
    made = general.predict(frame)
    assert list(made.columns[:4]) == ["unique_id", "variable", "day", "mean"]
    for name in ("load", "price"):
        ours = made.loc[made["variable"] == name, "mean"]
        np.testing.assert_allclose(ours, last_window(general, frame[name]), rtol=1e-4)


@pytest.mark.parametrize(
    ("freq", "zone", "following"),
    [
        ("MS", None, "2026-09-01"),
        ("h", "Europe/Berlin", "2024-01-02 08:00:00+01:00"),
        ("W-SUN", None, "2024-08-18"),
    ],
)
def test_times_go_on_in_their_interval_and_zone(
    general: Forecaster, freq: str, zone: str | None, following: str
) -> None:
    times = pd.date_range("2024-01-01", periods=32, freq=freq, tz=zone)
    made = general.predict(pd.DataFrame({"when": times, "y": waves(32)}), timezone=zone)
    assert made["when"].iloc[0] == pd.Timestamp(following, tz=zone)
    assert str(made["when"].dt.tz) == str(zone)


def test_files_sets_and_other_frames_are_read_as_well(general: Forecaster, tmp_path: Path) -> None:
    class Polars:
        """What is used of a frame of polars."""

        def to_pandas(self) -> pd.DataFrame:
            return shops(a=100, bb=90)

    expected = general.predict(shops(a=100, bb=90))
    shops(a=100, bb=90).to_csv(tmp_path / "a.csv", index=False)
    for source in (tmp_path / "a.csv", str(tmp_path / "a.csv"), Polars()):
        pd.testing.assert_frame_equal(general.predict(source), expected, rtol=1e-4)
    with pytest.raises(UserError, match="expected a file or a frame of pandas or polars"):
        general.predict([1.0, 2.0])


def test_series_without_values_are_left_out_and_the_others_forecast(general: Forecaster) -> None:
    frame = shops(a=100, bb=60, ccc=50)
    frame.loc[frame["shop"] == "bb", "sales"] = np.nan
    made = general.predict(frame, id_column="shop", targets=["sales"])
    assert set(made["shop"]) == {"a", "ccc"}
    with pytest.raises(UserError, match=r"data\.id_colum: is no setting of how tables"):
        general.predict(frame, id_colum="shop")


def test_what_would_be_lost_or_ignored_is_refused(general: Forecaster) -> None:
    frame = shops(a=100, bb=90)
    called = frame.rename(columns={"sales": "mean"})
    with pytest.raises(UserError, match="a column is called mean, as one of the forecasts"):
        general.backtest(called)
    pd.testing.assert_frame_equal(general.predict(called), general.predict(frame))
    with pytest.raises(UserError, match=r"called mean.* name it as data\.id_column=NAME"):
        general.predict(frame.rename(columns={"shop": "mean"}), id_column="mean")
    with pytest.raises(UserError, match=r"a column is called 0\.5, as one of the forecasts"):
        general.predict(frame.rename(columns={"shop": "0.5"}), id_column="0.5")
    with pytest.raises(UserError, match="future: the network reads no columns in advance"):
        general.predict(frame, future=frame)
    for wrong in (0.5, "0.5"):
        with pytest.raises(UserError, match="quantiles: expected a list of levels"):
            general.predict(frame, quantiles=wrong)
    for horizon in ("x", -1, True):
        with pytest.raises(UserError, match="horizon: expected a number of points from 1 on"):
            general.predict(frame, horizon=horizon)


def test_points_have_no_quantiles(tmp_path: Path) -> None:
    shops(a=200).to_csv(tmp_path / "shops.csv", index=False)
    changes = {**MANY, "data.source": str(tmp_path / "shops.csv"), "model.loss": "mae"}
    del changes["model.quantile_order"]
    forecaster = trained(tmp_path, changes)
    assert list(forecaster.predict(shops(a=100)).columns) == ["unique_id", "day", "mean"]
    assert len(forecaster.predict(shops(a=100), horizon=30)) == 30
    with pytest.raises(UserError, match="trained by loss mae and forecasts points"):
        forecaster.predict(shops(a=100), quantiles=[0.5])


def test_a_backtest_forecasts_from_earlier_points_and_brings_what_came(
    general: Forecaster,
) -> None:
    frame = shops(a=100, bb=90)
    made = general.backtest(frame, windows=3, step=5, quantiles=[0.5])
    assert list(made.columns) == ["shop", "day", "cutoff", "sales", "mean", "0.5"]
    assert len(made) == 2 * 3 * HORIZON
    for name, points in (("a", 100), ("bb", 90)):
        series = frame[frame["shop"] == name].reset_index(drop=True)
        for back in (0, 5, 10):
            end = points - HORIZON - back
            ours = made[(made["shop"] == name) & (made["cutoff"] == series["day"][end - 1])]
            assert ours["day"].tolist() == series["day"][end : end + HORIZON].tolist()
            assert ours["sales"].tolist() == series["sales"][end : end + HORIZON].tolist()
            expected = last_window(general, series["sales"][:end])
            np.testing.assert_allclose(ours["mean"], expected, rtol=1e-4)


def test_a_backtest_leaves_out_series_that_are_too_short(general: Forecaster) -> None:
    with pytest.warns(
        UserWarning,
        match=r"1 series is not forecast: too short to begin so long before the end \(bb\)",
    ):
        made = general.backtest(shops(a=100, bb=10))
    assert set(made["shop"]) == {"a"}
    partly = r"1 series is not forecast from some origins: too short to begin .* \(bb\)"
    with pytest.warns(UserWarning, match=partly):
        made = general.backtest(shops(a=100, bb=40), windows=4)
    assert made.groupby("shop")["cutoff"].nunique().to_dict() == {"a": 4, "bb": 3}
    for wrong in (
        {"windows": 0},
        {"windows": 1.5},
        {"windows": "3"},
        {"step": 1.5},
        {"step": True},
    ):
        with pytest.raises(UserError, match=f"{next(iter(wrong))}: expected a number from 1 on"):
            general.backtest(shops(a=100), **wrong)


def test_the_first_series_are_plotted_whatever_they_are_called(general: Forecaster) -> None:
    """Two dollars with a formula between them that is none, too."""
    frame = shops(**{"costs $_ or $": 100, "b": 90})
    figure = general.plot(frame, horizon=2 * HORIZON)
    figure.canvas.draw()
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == [r"costs \$_ or \$", "b"]
    assert len(figure.axes[0].lines[1].get_xdata()) == 2 * HORIZON
    assert {text.get_text() for text in figure.legends[0].texts} == {"past", "forecast", "interval"}


def test_a_series_without_a_value_is_told_of(general: Forecaster) -> None:
    frame = shops(a=100, bb=90)
    frame["sales"] = frame["sales"].where(frame["shop"] == "a")
    with pytest.warns(UserWarning, match="series without a value, left out: series bb of the tab"):
        made = general.predict(frame)
    assert set(made["shop"]) == {"a"}


@pytest.mark.parametrize(("given", "hours"), [({}, 168), ({"freq": "W"}, 168), ({"freq": "h"}, 1)])
def test_a_series_of_one_row_has_the_interval_that_is_given_or_most_series_have(
    general: Forecaster, given: dict[str, str], hours: int
) -> None:
    monday = pd.Timestamp("2024-05-06")
    alone = pd.DataFrame({"shop": "new", "day": [monday], "sales": 3.0})
    weeks = pd.date_range("2024-01-01", periods=40, freq="W-MON")
    weekly = pd.DataFrame({"shop": "old", "day": weeks, "sales": np.arange(40) + 0.5})
    made = general.predict(pd.concat([weekly, alone]), id_column="shop", **given)
    days = made[made["shop"] == "new"]["day"]
    assert days.tolist() == [monday + pd.Timedelta(hours=hours * n) for n in range(1, HORIZON + 1)]
