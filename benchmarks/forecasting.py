"""Forecasts of a table beside the network's own time in them, and from a cold start.

    .venv/bin/python -m benchmarks.forecasting [--quick]

A network of the demo's size that forecasts 96 points is trained for one step on a table of its own.
`Forecaster.predict` then forecasts 96 points of 1,000 series from a frame in memory; the network's
own time is what its forward passes take in the same call; reading the table is told apart. The cold
start is the whole command `forescale forecast` on a file of 10 series, from the start of Python to
the written table.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import yaml

from benchmarks.timing import ROOT, arguments_of, print_header, print_table
from forescale import Forecaster
from trainer.forecast import table_source

CONTEXT, HORIZON = 336, 96


def write_table(file: Path, series: int) -> pd.DataFrame:
    """Write hourly series of a day's rhythm to a CSV file, and return them."""
    rng, points = np.random.default_rng(0), 2 * (CONTEXT + HORIZON)
    hours = pd.date_range("2024-01-01", periods=points, freq="h")
    day = 10 + 3 * np.sin(2 * np.pi * np.arange(points) / 24)
    values = day + rng.normal(size=(series, points))
    table = pd.DataFrame(
        {
            "unique_id": np.repeat([f"series {number}" for number in range(series)], points),
            "ds": np.tile(hours, series),
            "y": values.ravel(),
        }
    )
    table.to_csv(file, index=False)
    return table


def train(folder: Path, table: Path) -> Path:
    """Train the demo's network on a table for one step; return the run."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    model = content["model"] | {"loss": "quantile"}
    data = {"source": str(table), "context_length": CONTEXT, "prediction_length": HORIZON}
    data |= {"calendar": ["time_of_day"], "split": [0.9, 0.1, 0.0]}
    train = {"steps": 1, "global_batch_size": 8, "micro_batch_size": 8}
    logging = {"tensorboard": False}
    file = folder / "demo.yaml"
    sections = {"model": model, "data": data, "train": train, "logging": logging}
    file.write_text(yaml.safe_dump(sections))
    command("train", str(file), "--run-dir", str(folder / "run"), "--quiet")
    return folder / "run"


def command(*arguments: str) -> float:
    """Run Forescale's command line; return the seconds that it took."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "launch", *arguments],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(os.cpu_count())},
    )
    return time.perf_counter() - began


class Clock:
    """Sums the seconds that a function takes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments, **options)
            self.seconds += time.perf_counter() - began
            return result

        return run


def predict(run: Path, table: pd.DataFrame, rounds: int) -> tuple[float, float, float]:
    """Return median seconds of `predict`, and in it of reading the table and of the network."""
    forecaster, reading, network = Forecaster.load(run), Clock(), Clock()
    forecaster.network.forward = network.timed(forecaster.network.forward)
    samples = []
    with patch.object(table_source, "read_series", reading.timed(table_source.read_series)):
        for _ in range(rounds):
            reading.seconds = network.seconds = 0.0
            began = time.perf_counter()
            forecaster.predict(table)
            samples.append((time.perf_counter() - began, reading.seconds, network.seconds))
    whole, read, computed = (statistics.median(each) for each in zip(*samples, strict=True))
    return whole, read, computed


def main() -> None:
    """Print both tables."""
    rounds, quick = arguments_of(__doc__, 5)
    series = 20 if quick else 1000
    print_header("Forecasts of a table")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = write_table(folder / "many.csv", series)
        write_table(folder / "few.csv", 10)
        run = train(folder, folder / "few.csv")
        whole, read, network = predict(run, table, rounds)
        numbers = [f"{seconds:.2f}" for seconds in (whole, read, network)]
        ratios = [f"x{whole / network:.2f}", f"x{(whole - read) / network:.2f}"]
        print_table(
            [
                "series",
                "points ahead",
                "predict, s",
                "of it reading the table",
                "of it the network",
                "of the network's time",
                "without reading",
            ],
            [[f"{series:,}", str(HORIZON), *numbers, *ratios]],
        )
        few, out = str(folder / "few.csv"), str(folder / "out.csv")
        asked = ("forecast", str(run), "--input", few, "--output", out, "--force")
        cold = [command(*asked) for _ in range(rounds)]
        print_table(
            ["command", "series", "seconds, median"],
            [["forescale forecast", "10", f"{statistics.median(cold):.2f}"]],
        )


if __name__ == "__main__":
    main()
