"""`forescale init` looks at a table and writes a configuration that trains as it is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from launch.cli import main
from launch.first_config import as_yaml, span
from tests import ranks
from trainer.config import load
from trainer.config.yaml_text import parse_value
from trainer.data import Split
from trainer.logs.metrics import read_metrics
from trainer.prepare import prepare

RNG = np.random.default_rng(0)


def times(rows: int, freq: str) -> pd.DatetimeIndex:
    return pd.date_range("2015-01-01", periods=rows, freq=freq)


def values(rows: int) -> Any:
    return RNG.normal(size=rows)


def shops() -> pd.DataFrame:
    """Return 12 series of a day each row, sorted by day, with a flag and a text."""
    days = times(120, "D")
    frame = pd.DataFrame(
        {
            "Day of sale": np.repeat(days.astype(str), 12),
            "shop": np.tile(np.arange(100, 112), 120),
            "sold": values(1440),
            "promo": RNG.integers(0, 2, 1440),
            "note": "a: b",
        }
    )
    return frame


TABLES: dict[str, tuple[Any, dict[str, Any]]] = {
    "hourly": (
        lambda: pd.DataFrame({"date": times(3000, "h"), "a b": values(3000), "#c": values(3000)}),
        {
            "time_column": "date",
            "targets": ["a b", "#c"],
            "context_length": 168,
            "prediction_length": 24,
            "season_lengths": [24, 168],
            "calendar": ["time_of_day", "day_of_week"],
        },
    ),
    "short": (
        lambda: pd.DataFrame({"ds": times(20, "MS"), "y": values(20)}),
        {"context_length": 5, "prediction_length": 2, "season_lengths": [], "calendar": ["month"]},
    ),
    "monthly": (
        lambda: pd.DataFrame({"ds": times(400, "MS"), "y": values(400), "year": 2000}),
        {
            "targets": ["y"],
            "context_length": 36,
            "prediction_length": 12,
            "season_lengths": [12],
            "calendar": ["month"],
        },
    ),
    "shops": (
        shops,
        {
            "time_column": "Day of sale",
            "id_column": "shop",
            "targets": ["sold"],
            "context_length": 30,
            "prediction_length": 12,
            "season_lengths": [7],
        },
    ),
    "minutes": (
        lambda: pd.DataFrame({"timestamp": times(9000, "min"), "1e3": values(9000)}),
        {"targets": ["1e3"], "context_length": 1440, "prediction_length": 60},
    ),
    "numbered": (
        lambda: pd.DataFrame({"time": np.arange(500), "no": values(500)}),
        {
            "time_column": "time",
            "targets": ["no"],
            "calendar": [],
            "season_lengths": [],
            "id_column": None,
        },
    ),
    "long": (
        lambda: pd.DataFrame(
            {
                "unique_id": np.repeat(["a", "b"], 300),
                "ds": np.tile(times(300, "W").astype(str), 2),
                "y": values(600),
                "sku": "x",
            }
        ),
        {"id_column": "unique_id", "season_lengths": [52], "calendar": ["day_of_year"]},
    ),
    "gaps": (
        lambda: pd.DataFrame(
            {"date": times(2000, "15min"), "y": np.where(np.arange(2000) % 9, values(2000), np.nan)}
        ),
        {"season_lengths": [96], "prediction_length": 96, "context_length": 604},
    ),
}


@pytest.fixture(autouse=True)
def _folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Work where the configuration is to be written."""
    monkeypatch.chdir(tmp_path)
    return


@pytest.mark.parametrize("name", TABLES)
def test_what_a_table_holds_is_seen_and_trains(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, expected = TABLES[name]
    make().to_csv(f"{name}.csv", index=False)
    main(["init", f"{name}.csv"])
    said = capsys.readouterr().out
    assert f"wrote {name}.yaml; now: forescale train {name}.yaml" in said
    configuration = load(tmp_path / f"{name}.yaml")
    data = configuration.settings.data.model_dump()
    assert {key: data[key] for key in expected} == expected
    dataset = prepare(configuration, run_dir=tmp_path / "run").dataset
    assert all(dataset.windows(split) > 0 for split in set(Split) - {Split.HELD_OUT})
    for line in (tmp_path / f"{name}.yaml").read_text().splitlines():
        assert line.endswith(":") or "# " in line, line


def _train(rank: int, world: int, config: Path) -> int:
    from launch.start import start

    run, few = config.with_suffix(""), ["train.steps=2", "train.warmup_steps=1"]
    return start(config, few, run_dir=run, resume="auto", ranks=None)


def test_the_configuration_trains(tmp_path: Path) -> None:
    shops().to_parquet("shops.parquet")
    main(["init", "shops.parquet", "mine.yaml"])
    text = (tmp_path / "mine.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("shops.parquet", f"{tmp_path}/shops.parquet"))
    assert ranks.run(_train, 1, tmp_path / "mine.yaml") == [0]
    assert len(read_metrics(tmp_path / "mine" / "metrics.jsonl")) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.head(19), "it has 19 rows; at least 20 are needed"),
        (lambda t: t[["date"]], "has no column of numbers to forecast"),
        (
            lambda t: pd.concat([t, t.assign(load=values(400))]),
            "several series? Name the column that tells them apart",
        ),
        (
            lambda t: t.assign(load=t["load"].astype(str).where(t.index != 5, "five")),
            "column load, row 6 has 'five', which is not a number",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(
    change: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(pd.DataFrame({"date": times(400, "h"), "load": values(400)})).to_csv("x.csv")
    with pytest.raises(SystemExit) as ended:
        main(["init", "x.csv"])
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert message in said.err and said.err.count("\n") == 1
    assert not (tmp_path / "x.yaml").exists()


def test_scores_on_other_data_than_was_trained_on_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, file, run = shops(), tmp_path / "x.csv", tmp_path / "x"
    table.to_csv(file, index=False)
    main(["init", str(file), "x.yaml"])
    assert ranks.run(_train, 1, tmp_path / "x.yaml") == [0]
    main(["evaluate", str(run)])
    assert "was trained on" not in capsys.readouterr().out
    numbers = table.select_dtypes("number").columns
    table[numbers] = table[numbers] * 10
    table.to_csv(file, index=False)
    main(["evaluate", str(run)])
    said = " ".join(capsys.readouterr().out.split())
    assert f"the training part of {file} is not the one that {run} was trained on" in said


@pytest.mark.parametrize("folder", ["nowhere", "x.csv", "/proc/nowhere"])
def test_a_place_that_is_none_is_refused(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    shops().to_csv("x.csv", index=False)
    with pytest.raises(SystemExit) as ended:
        main(["init", "x.csv", f"{folder}/x.yaml"])
    assert ended.value.code == 2
    assert f"{folder}/x.yaml: there is no such folder; name another" in capsys.readouterr().err


def test_a_file_that_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shops().to_csv("x.csv", index=False)
    (tmp_path / "x.yaml").write_text("mine\n")
    with pytest.raises(SystemExit):
        main(["init", "x.csv"])
    assert "x.yaml is there already; name another: forescale init x.csv x-2.yaml" in (
        capsys.readouterr().err
    )
    assert (tmp_path / "x.yaml").read_text() == "mine\n"


@pytest.mark.parametrize(
    "value", ["a", "a b", "no", "1e3", "#c", "2024-01-01", "null", "ä: b", "[x", 'a"b', "./x.csv"]
)
def test_names_are_read_back(value: str) -> None:
    assert parse_value(as_yaml([value, 1, 0.5])) == [value, 1, 0.5]


@pytest.mark.parametrize(
    ("interval", "words"),
    [("1min", "minute"), ("15min", "15 minutes"), ("6h", "6 hours"), ("0.5s", "0.5 seconds")],
)
def test_intervals_are_told_in_words(interval: str, words: str) -> None:
    assert span(pd.Timedelta(interval)) == words


HOURLY = [np.sin(np.arange(length) / 4.0) for length in (300, 200)]
RECORDS = pd.DataFrame({"item_id": ["a", "b"], "freq": "h", "target": HOURLY})
STARTED = RECORDS.assign(start=pd.Timestamp("2024-01-01"))
DAYS = pd.date_range("2022-01-01", periods=60)
SERIES_IN_ROWS = pd.DataFrame(
    values(120).reshape(2, 60), columns=DAYS.strftime("%Y-%m-%d"), index=pd.Index(["a", "b"])
).reset_index(names="shop")


@pytest.mark.parametrize(
    ("table", "calendar"),
    [
        (RECORDS, []),
        (STARTED, ["time_of_day", "day_of_week"]),
        (SERIES_IN_ROWS, ["day_of_week", "day_of_year"]),
    ],
)
@pytest.mark.parametrize("is_prepared", [False, True])
def test_what_holds_series_needs_no_columns(
    tmp_path: Path, table: pd.DataFrame, calendar: list[str], is_prepared: bool
) -> None:
    """Lists, a row for each series, and prepared sets."""
    source, config = tmp_path / "series.parquet", tmp_path / "own.yaml"
    if table is SERIES_IN_ROWS:
        source = source.with_suffix(".csv")
        table.to_csv(source, index=False)
    else:
        table.to_parquet(source)
    if is_prepared:
        main(["prepare", str(source), str(tmp_path / "set")])
        source = tmp_path / "set"
    main(["init", str(source), str(config)])
    plan = prepare(load(config, {}), run_dir=tmp_path / "run", world=1)
    assert plan.dataset.items == 2
    assert plan.configuration.settings.data.calendar == calendar


def test_series_of_several_intervals_keep_their_own_seasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [
        pd.DataFrame({"name": name, "time": times(100, freq), "y": values(100)})
        for name, freq in (("a", "h"), ("b", "h"), ("c", "D"))
    ]
    pd.concat(frames).to_csv(tmp_path / "own.csv", index=False)
    main(["prepare", str(tmp_path / "own.csv"), str(tmp_path / "set")])
    main(["init", str(tmp_path / "set"), str(tmp_path / "own.yaml")])
    assert "hourly most often, of 2 intervals; 3 series" in " ".join(
        capsys.readouterr().out.split()
    )
    assert load(tmp_path / "own.yaml", {}).settings.data.season_lengths is None


def test_what_it_asks_for_can_be_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A way out that a message names is taken as it is printed, also by a shell."""
    monkeypatch.chdir(tmp_path)
    months = times(40, "MS").strftime("%d/%m/%Y")
    pd.DataFrame({"day": months, "y": values(40)}).to_csv("sales.csv", index=False)
    with pytest.raises(SystemExit, match="2"):
        main(["init", "sales.csv"])
    way_out = re.findall(r"data\.date_format='[^']+'", capsys.readouterr().err)[-1]
    main(["init", "sales.csv", *shlex.split(way_out)])
    settings = load(Path("sales.yaml"), {}).settings.data
    assert settings.date_format == "%d/%m/%Y"
    assert (
        prepare(load(Path("sales.yaml"), {}), run_dir=tmp_path / "run", world=1).dataset.items == 1
    )
    loads = [f"{n % 9},{n % 7:03}" for n in range(40)]
    dates = times(40, "D").strftime("%Y-%m-%d")
    pd.DataFrame({"day": dates, "y": loads}).to_csv("loads.csv", index=False)
    with pytest.raises(SystemExit, match="2"):
        main(["init", "loads.csv"])
    ways_out = re.findall(r"data\.decimal='.'", capsys.readouterr().err)
    for way_out, decimal in zip(ways_out, ",.", strict=True):
        file = Path(f"by {decimal}.yaml")
        main(["init", "loads.csv", str(file), *shlex.split(way_out)])
        assert load(file, {}).settings.data.decimal == decimal
    for wrong, words in (
        ("train.steps=3", "train.steps: only settings of data say how tables are read"),
        ("data.id_colum=x", "did you mean data.id_column?"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["init", "sales.csv", "other.yaml", wrong])
        assert words in capsys.readouterr().err


def test_business_days_have_a_season_of_five(tmp_path: Path) -> None:
    days = pd.date_range("2024-01-01", periods=300, freq="B")
    pd.DataFrame({"day": days, "v": np.arange(300.0) % 5}).to_csv("days.csv", index=False)
    main(["init", "days.csv"])
    text = (tmp_path / "days.yaml").read_text()
    assert "business days by day" in text and "season_lengths: [5]" in text
