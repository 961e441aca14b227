"""The demo, on two ranks, beats ridge regression as the README says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_forecasts_better_than_ridge_regression(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    command = [
        sys.executable,
        "-m",
        "launch",
        "train",
        "configs/demo.yaml",
        "--ranks",
        "2",
        "--run-dir",
        run,
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    summary = json.loads((run / "evaluation.json").read_text())
    assert summary["windows"] == 10_474
    assert summary["scores"]["Forescale"]["mse"] < 0.160
    assert (run / "forecast.png").exists() and (run / "done").exists()
    for said in ("seasonal naive (48)", "forecast.png", "--logdir"):
        assert said in ended.stdout
