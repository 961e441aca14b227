"""Measures how well the demo forecasts, for three seeds and without attention and experts.

    .venv/bin/python -m benchmarks.accuracy

Each seed is a whole `forescale train configs/demo.yaml --ranks 2`. For the last row a network is
trained whose attention and mixture of experts return zero: what remains are the embedding, the
residual stream and the head.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.ablation import replace_by_nothing

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "demo.yaml"


def seeded(seed: int, folder: Path) -> dict[str, Any]:
    """Train one run on two ranks; return its evaluation."""
    run = folder / f"seed-{seed}"
    train = [sys.executable, "-m", "launch", "train", str(CONFIG), f"train.seed={seed}"]
    command = [*train, "--ranks", "2", "--run-dir", str(run)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return json.loads((run / "evaluation.json").read_text())


def without_transformer(folder: Path) -> dict[str, Any]:
    """Train a network whose attention and experts return zero; return its evaluation."""
    from forescale import train
    from model.attention import CrossAttention, SelfAttention
    from model.moe import MixtureOfExperts

    replace_by_nothing(SelfAttention, CrossAttention, MixtureOfExperts)
    run = train(CONFIG, run_dir=folder / "nothing", parallel={"pipeline": 1})
    return json.loads((run / "evaluation.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        runs = {seed: seeded(seed, folder)["scores"] for seed in arguments.seeds}
        print("| forecast | test MSE | test MAE | MASE |\n|---|---|---|---|")
        for seed, scores in runs.items():
            row(f"Forescale, seed {seed}", scores["Forescale"])
        median = statistics.median(scores["Forescale"]["mse"] for scores in runs.values())
        print(f"| **median of {len(runs)} seeds** | **{median:.4f}** | | |")
        for baseline in list(runs[arguments.seeds[0]])[1:]:
            row(baseline, runs[arguments.seeds[0]][baseline])
        nothing = without_transformer(folder)["scores"]["Forescale"]
        row("attention and experts replaced by nothing", nothing)


def row(name: str, scores: dict[str, float]) -> None:
    """Print one row of the table."""
    cells = (f"{scores[score]:.4f}" for score in ("mse", "mae", "mase"))
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
