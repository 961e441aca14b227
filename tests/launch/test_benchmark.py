"""`forescale benchmark`: the literature's protocols."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from launch.cli import main
from tests.trainer.forecast.test_future import CONTEXT, HORIZON, MANY, shops, trained, waves
from trainer.config.table_settings import TableConfig
from trainer.data.prepared import open_set
from trainer.data.series_set import SeriesSet
from trainer.forecast.forecaster import Forecaster
from trainer.forecast.m4_scores import M4Scores, is_seasonal, m4_scores, naive_2
from trainer.forecast.protocols import LONG_TERM, M4, LongTerm, m4_files

DATA = os.environ.get("FORESCALE_TEST_DATA")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of one channel, for any series."""
    folder = tmp_path_factory.mktemp("general")
    shops(a=200, bb=150).to_csv(folder / "shops.csv", index=False)
    trained(folder, {**MANY, "data.source": str(folder / "shops.csv")})
    return folder / "run"


def asked(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    main(["benchmark", *map(str, arguments), "--json"])
    return dict(json.loads(capsys.readouterr().out))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit, match="2"):
        main(["benchmark", *map(str, arguments)])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def table(folder: Path, rows: int) -> Path:
    times = pd.date_range("2016-07-01", periods=rows, freq="h")
    columns = {name: waves(rows, period, period) for name, period in (("HUFL", 24.0), ("OT", 9.0))}
    pd.DataFrame({"date": times, **columns}).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def test_every_window_of_the_test_part_in_units_of_the_training_part(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LONG_TERM, "etth1", LongTerm(24, (300, 50, 80)))
    file = table(tmp_path, 440)  # of which the last ten are not used
    got = asked(capsys, "etth1", file, run)
    forecaster, frame = Forecaster.load(run), pd.read_csv(file)
    errors = []
    for name in ("HUFL", "OT"):
        values = frame[name].to_numpy()
        mean, deviation = values[:300].mean(), values[:300].std()
        ends = range(350, 430 - HORIZON + 1)
        contexts = np.stack([values[end - CONTEXT : end] for end in ends])
        futures = np.stack([values[end : end + HORIZON] for end in ends])
        made = forecaster.forecast(contexts[:, :, None])[:, :, 0]
        errors.append((made - futures) / deviation)
        assert abs(mean) < 100
    assert got["windows"] == 2 * len(errors[0])
    scores = got["scores"]["Forescale"]
    assert scores["mse"] == pytest.approx(np.mean(np.square(errors)), rel=1e-3)
    assert scores["mae"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-3)
    shorter = asked(capsys, "etth1", file, run, "--horizon", 5)
    assert shorter["windows"] == 2 * (80 - 5 + 1)


def test_tenths_of_a_table_are_the_literatures() -> None:
    """As Autoformer's code divides: what is left over is validated on."""
    settings = LONG_TERM["exchange"].settings("exchange.csv", 7588, context=336)
    assert settings["data.split"] == [5311, 760, 1517]


def test_the_competitions_scores(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(3)
    season = 1 + 0.5 * np.sin(np.arange(200) * 2 * np.pi / 24)
    series = {f"H{n}": season * rng.uniform(9, 11, 200) for n in (1, 2)}
    for part, points in (("train", slice(0, 152)), ("test", slice(152, 200))):
        rows = pd.DataFrame([[name, *values[points]] for name, values in series.items()])
        rows.columns = [f"V{n}" for n in range(1, 2 + len(rows.columns) - 1)]
        rows.to_csv(tmp_path / f"Hourly-{part}.csv", index=False)
    got = asked(capsys, "m4_hourly", tmp_path, run)["scores"]
    made = Forecaster.load(run).predict(tmp_path / "Hourly-train.csv", horizon=48, freq="h")
    smape, mase = [], []
    for name, values in series.items():
        forecast = made.loc[made.iloc[:, 0] == name, "mean"].to_numpy()
        history, future = values[:152], values[152:]
        smape.append(np.mean(2 * np.abs(forecast - future) / (np.abs(forecast) + np.abs(future))))
        scale = np.mean(np.abs(history[24:] - history[:-24]))
        mase.append(np.mean(np.abs(forecast - future)) / scale)
    ours, naive = got["Forescale"], got["Naive 2"]
    assert ours["smape"] == pytest.approx(100 * np.mean(smape), rel=1e-4)
    assert ours["mase"] == pytest.approx(np.mean(mase), rel=1e-4)
    owa = (ours["smape"] / naive["smape"] + ours["mase"] / naive["mase"]) / 2
    assert ours["owa"] == pytest.approx(owa) and naive["owa"] == pytest.approx(1.0)
    main(["benchmark", "m4_hourly", str(tmp_path), str(run)])
    assert "Naive 2" in capsys.readouterr().out
    assert "M4 forecasts 48 points; leave it out" in refused(
        capsys, "m4_hourly", tmp_path, run, "--horizon", 12
    )


@pytest.mark.parametrize("season", [4, 5, 12])
def test_naive_2_repeats_a_multiplicative_season(season: int) -> None:
    factors = 1 + np.arange(season) / season
    history = 10 * np.tile(factors, 10)[: 9 * season + 3]
    expected = 10 * factors[(len(history) + np.arange(2 * season)) % season]
    np.testing.assert_allclose(naive_2(history, 2 * season, season), expected)
    noise = np.random.default_rng(0).uniform(1, 2, (400, 100))
    found = [is_seasonal(row, season) for row in noise]
    assert 0.03 < np.mean(found) < 0.17  # the test's level is 10 %
    plain = noise[found.index(False)]
    assert (naive_2(plain, 5, season) == plain[-1]).all()
    assert (naive_2(history[: 2 * season], 5, season) == history[2 * season - 1]).all()
    assert (naive_2(np.ones(100), 5, season) == 1).all()


@pytest.mark.skipif(DATA is None, reason="FORESCALE_TEST_DATA names no folder with M4's files")
def test_naive_2_has_the_scores_that_the_organisers_have_published(tmp_path: Path) -> None:
    group = M4["m4_hourly"]
    train, test = (
        open_set(str(file), TableConfig(freq=group.freq), tmp_path)
        for file in m4_files(group, Path(str(DATA)))
    )
    number = {name: row for row, name in enumerate(test.item_ids().tolist())}
    histories = [train.target(item)[0] for item in range(len(train))]
    histories = [values[~np.isnan(values)] for values in histories]
    futures = [test.target(number[train.item_id(item)])[0] for item in range(len(train))]
    naive = [naive_2(values, group.horizon, group.season) for values in histories]
    scores = m4_scores(histories, futures, naive, group.season)
    assert (round(scores.smape, 3), round(scores.mase, 3)) == (18.383, 2.395)
    assert scores.owa(M4Scores(18.383, 2.395)) == pytest.approx(1.0, abs=1e-4)


def test_what_is_wrong_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = table(tmp_path, 440)
    assert "there is no such protocol; there are etth1, " in refused(capsys, "etth3", file, run)
    words = "has 440 rows, and the protocol divides 14,400; name the whole table"
    assert words in refused(capsys, "etth1", file, run)
    assert "has no Hourly-train.csv; name the folder" in refused(capsys, "m4_hourly", tmp_path, run)
    assert "data.source" in refused(capsys, "exchange", tmp_path / "none.csv", run)
    assert "--horizon: 96 is more than the 12 points that the network was trained" in refused(
        capsys, "exchange", file, run, "--horizon", 96
    )
    assert "data.horizon: is no setting" in refused(capsys, "exchange", file, run, "data.horizon=3")


def test_how_a_table_is_read_can_be_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.read_csv(table(tmp_path, 440)).astype({"OT": object})
    whole = asked(capsys, "exchange", tmp_path / "table.csv", run)
    frame.loc[5, "OT"] = "broken"
    frame.to_csv(tmp_path / "broken.csv", index=False)
    assert "data.on_error=skip" in refused(capsys, "exchange", tmp_path / "broken.csv", run)
    got = asked(capsys, "exchange", tmp_path / "broken.csv", run, "data.on_error=skip")
    assert got["windows"] == whole["windows"]


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2])
def test_what_the_network_reads_beside_the_channels_is_found_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], channels: int
) -> None:
    frame = pd.read_csv(table(tmp_path, 440)).assign(price=waves(440, 7.0), visits=waves(440, 5.0))
    frame.to_csv(tmp_path / "all.csv", index=False)
    changes = {
        **MANY,
        "data.source": str(tmp_path / "all.csv"),
        "data.targets": ["HUFL", "OT"][:channels],
        "data.covariates": ["price"],
        "data.past_covariates": ["visits"],
        "model.channels": "grouped",
    }
    trained(tmp_path, changes)
    got = asked(capsys, "exchange", tmp_path / "all.csv", tmp_path / "run")
    rows = 440 - int(0.7 * 440) - (440 - int(0.7 * 440) - int(0.2 * 440))
    assert got["windows"] == (rows - HORIZON + 1) * (2 if channels == 1 else 1)
    frame.drop(columns="price").to_csv(tmp_path / "less.csv", index=False)
    said = refused(capsys, "exchange", tmp_path / "less.csv", tmp_path / "run")
    assert "less.csv has no column 'price'" in said


def test_channels_apart_are_the_tables(tmp_path: Path) -> None:
    from trainer.forecast.protocols import write_channels_apart

    series = open_set(str(table(tmp_path, 50)), TableConfig(), tmp_path / "cache")
    write_channels_apart(series, tmp_path / "apart")
    apart = SeriesSet(tmp_path / "apart")
    assert apart.item_ids().tolist() == ["HUFL", "OT"] and apart.freq(0) == series.freq(0)
    np.testing.assert_array_equal(
        np.concatenate([apart.target(0), apart.target(1)]), series.target(0)
    )
