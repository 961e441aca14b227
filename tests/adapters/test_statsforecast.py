"""Models of statsforecast are scored beside a run's forecasts."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.cli import main
from tests.adapters.shops_run import shops_run
from tests.peers import answer

SCRIPT = (Path(__file__).parent / "statsforecast_script.py").read_text()


@pytest.mark.slow
def test_its_models_are_scored(tmp_path: Path) -> None:
    """Those that we have too get the scores of ours."""
    shops_run(tmp_path, "alone")
    models = "SeasonalNaive,Naive,RandomWalkWithDrift,AutoTheta,AutoETS"
    got = answer(SCRIPT, tmp_path / "run", models)
    for theirs, ours in (
        ("SeasonalNaive", "seasonal naive (7)"),
        ("Naive", "last value"),
        ("RandomWalkWithDrift", "drift"),
    ):
        assert got[theirs]["mse"] == pytest.approx(got[ours]["mse"], rel=1e-4)
        assert got[theirs]["mase"] == pytest.approx(got[ours]["mase"], rel=1e-4)
    assert 0 < got["AutoETS"]["mase"] < 2 and 0 < got["AutoTheta"]["mase"] < 2


def test_without_it_the_way_to_get_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shops_run(tmp_path, "alone")
    capsys.readouterr()
    for models in ("AutoETS", "AutoETZ"):
        with pytest.raises(SystemExit, match="2"):
            main(["evaluate", str(tmp_path / "run"), "--split", "train", "--statsforecast", models])
        assert "pip install 'forescale[statsforecast]'" in capsys.readouterr().err
