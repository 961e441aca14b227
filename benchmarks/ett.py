"""Measures accuracy on ETTh1 or ETTm1 by the literature's protocol, 96 steps ahead.

    .venv/bin/python -m benchmarks.ett configs/ett_h1.yaml ETTh1.csv.gz

Each row is a whole training run in one process, for three seeds. Every test window is scored once,
at the end. For the last row a network is trained whose attention returns zero.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.ablation import replace_by_nothing

ROOT = Path(__file__).resolve().parent.parent


def trained(config: Path, source: Path, seed: int, folder: Path) -> tuple[dict[str, Any], float]:
    """Train one run; return its evaluation and its seconds."""
    run = folder / f"seed-{seed}"
    train = [sys.executable, "-m", "launch", "train", str(config), f"train.seed={seed}"]
    command = [*train, f"data.source={source}", "--run-dir", str(run)]
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return json.loads((run / "evaluation.json").read_text()), time.perf_counter() - began


def without_attention(config: Path, source: Path, folder: Path) -> dict[str, Any]:
    """Train a network whose attention returns zero; return its evaluation."""
    from forescale import train
    from model.attention import SelfAttention

    replace_by_nothing(SelfAttention)
    run = train(config, run_dir=folder / "nothing", data={"source": str(source)})
    return json.loads((run / "evaluation.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    config, source = arguments.config.resolve(), arguments.source.resolve()
    with TemporaryDirectory() as name:
        folder = Path(name)
        print("| forecast | test MSE | test MAE | minutes |\n|---|---|---|---|")
        errors = []
        for seed in arguments.seeds:
            evaluation, seconds = trained(config, source, seed, folder)
            scores = evaluation["scores"]
            errors.append(scores["Forescale"]["mse"])
            row(f"Forescale, seed {seed}", scores["Forescale"], f"{seconds / 60:.1f}")
        print(f"| **median of {len(errors)} seeds** | **{statistics.median(errors):.4f}** | | |")
        for baseline in list(scores)[1:]:
            row(baseline, scores[baseline], "")
        nothing = without_attention(config, source, folder)["scores"]["Forescale"]
        row("attention replaced by nothing", nothing, "")


def row(name: str, scores: dict[str, float], minutes: str) -> None:
    """Print one row of the table."""
    print(f"| {name} | {scores['mse']:.4f} | {scores['mae']:.4f} | {minutes} |", flush=True)


if __name__ == "__main__":
    main()
