"""`forescale forecast`: a file of series in, a file of forecasts out."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from launch.cli import main
from tests import ranks
from tests.settings import train_rank
from tests.trainer.forecast.test_future import HORIZON, MANY, shops


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forecast")
    shops(a=200, bb=150).to_csv(folder / "shops.csv", index=False)
    ranks.run(train_rank, 1, folder / "run", {**MANY, "data.source": str(folder / "shops.csv")})
    return folder / "run"


@pytest.mark.parametrize("end", ["csv", "parquet", "feather", "arrow"])
def test_a_table_of_forecasts_is_written(
    run: Path, tmp_path: Path, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shops(north=100, ye=30).to_csv(tmp_path / "own.csv", index=False)
    out, plot = tmp_path / f"out.{end}", tmp_path / "out.png"
    files = ["--input", str(tmp_path / "own.csv"), "--output", str(out), "--plot", str(plot)]
    main(["forecast", str(run), *files, "--horizon", "20", "--quantiles", "0.1,0.5"])
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet}.get(end, pd.read_feather)
    table = read(out)
    assert list(table.columns) == ["shop", "day", "mean", "0.1", "0.5"]
    assert table["shop"].value_counts().to_dict() == {"north": 20, "ye": 20}
    assert plot.read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert f"wrote {plot}\n" in said and said.count("attention") <= 1
    assert f"wrote {out}: 40 rows of 2 series; columns shop, day, mean, 0.1, 0.5" in said
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".data")) == sorted(
        ["own.csv", out.name, plot.name]
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "{folder}/there.csv"], "is there already; name another, or write over it"),
        (["--output", "{folder}/out.xlsx"], "name a file that ends with .csv or .parquet"),
        (["--output", "{folder}/none/out.csv"], "there is no such folder"),
        (["--output", "{folder}/out.csv", "--plot", "a.jpg"], "name a file that ends with .png"),
        (["--output", "{folder}/out.csv", "--quantiles", "low"], "expected levels between 0 and 1"),
        (
            ["--output", "{folder}/out.csv", "--quantiles", "0.99"],
            "--quantiles: the network was trained for",
        ),
        (["--output", "{folder}/out.csv", "--horizon", "0"], "'--horizon': 0 is not in the range"),
        (["--output", "{folder}/out.csv", "train.steps=1"], "only settings of data say how tables"),
        (["--output", "{folder}/out.csv", "data.targets=[x]"], "x"),
        (["--output", "{folder}/own.csv", "--force"], "is read too, and would be lost"),
        (
            ["--output", "{folder}/out.csv", "--future", "{folder}/own.csv"],
            "--future: the network reads no columns",
        ),
        (["--output", "{folder}/out.csv", "--input", "{folder}/gone.csv"], "there is no file"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    shops(a=60).to_csv(tmp_path / "own.csv", index=False)
    (tmp_path / "there.csv").write_text("mine")
    given = [word.format(folder=tmp_path) for word in arguments]
    with pytest.raises(SystemExit, match="2"):
        main(["forecast", str(run), "--input", str(tmp_path / "own.csv"), *given])
    error = capsys.readouterr().err
    assert words in error and len(error.strip().splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["own.csv", "there.csv"]
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_force_writes_over_what_is_there(run: Path, tmp_path: Path) -> None:
    shops(a=60).to_csv(tmp_path / "own.csv", index=False)
    (tmp_path / "out.csv").write_text("old")
    files = ["--input", str(tmp_path / "own.csv"), "--output", str(tmp_path / "out.csv")]
    main(["forecast", str(run), *files, "--force"])
    assert len(pd.read_csv(tmp_path / "out.csv")) == HORIZON


def test_words_of_other_tools_lead_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["predict"])
    assert "that is `forescale forecast`" in capsys.readouterr().err


def test_what_is_lost_in_reading_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A series without any value has no forecast; nor has an empty column of a wide table."""
    frame = shops(north=100, ye=60)
    frame["sales"] = frame["sales"].where(frame["shop"] != "ye")
    frame.to_csv(tmp_path / "long.csv", index=False)
    wide = shops(a=100).drop(columns="shop").assign(b=lambda rows: rows["sales"] + 1, c="nan")
    wide.to_csv(tmp_path / "wide.csv", index=False)
    for name, words, count in (
        ("long.csv", "series without a value, left out: series ye of ", "1 series"),
        ("wide.csv", "forecasting sales, b; left out: c (is empty)", "2 series"),
    ):
        files = ["--input", str(tmp_path / name), "--output", str(tmp_path / f"out-{name}")]
        main(["forecast", str(run), *files, "data.targets=null", "data.id_column=null"])
        said = capsys.readouterr().out
        assert words in said and f" rows of {count}; columns" in said
