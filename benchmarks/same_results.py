"""Are the results bit for bit those of another commit?

    .venv/bin/python -m benchmarks.same_results COMMIT

For a change that must not change results. `configs/tiny.yaml` is trained on each layout by COMMIT,
in a worktree of its own, and by this tree: every number of metrics.jsonl but those of the machine,
and the evaluation, must be the same bit for bit. Then this tree goes on from the checkpoint that
COMMIT wrote on each layout, and scores an export of COMMIT's as COMMIT does. Exit code 1 where
anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trainer.logs.metrics import read_metrics, without_machine

ROOT = Path(__file__).resolve().parent.parent

LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "one process": (1, []),
    "pipeline 2": (2, ["parallel.pipeline=2"]),
    "tensor 2": (2, ["parallel.tensor=2"]),
    "expert 2": (2, ["parallel.expert=2"]),
    "ZeRO 3": (2, ["parallel.zero_stage=3"]),
    "2 x 2 x 2": (
        8,
        ["parallel.pipeline=2", "parallel.tensor=2", "parallel.expert=2"],
    ),
}
"""Name -> ranks and settings."""

SCORES = ("step", "split", "windows", "units", "scores", "per_channel")
"""What is compared of an evaluation."""


def forescale(tree: Path, *arguments: str) -> str:
    """Run the command line of the checkout `tree` with this Python; its standard output.

    Raises SystemExit with what the command said where it fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "launch", *arguments]
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} in {tree}:\n{done.stdout}{done.stderr}")
    return done.stdout


def train(tree: Path, run: Path, ranks: int, *settings: str) -> None:
    """Train tiny into the folder `run`, or go on there."""
    fixed = ("logging.tensorboard=false", "checkpoint.every=5")
    where = ("--run-dir", str(run), "--ranks", str(ranks))
    forescale(tree, "train", "configs/tiny.yaml", *where, *settings, *fixed)


def numbers(run: Path) -> list[Any]:
    """The row of each step without its machine, then the evaluation; floats are read exactly."""
    rows = without_machine(read_metrics(run / "metrics.jsonl"))
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    return [*rows, {key: evaluation[key] for key in SCORES}]


def says_the_same(theirs: Any, ours: Any) -> bool:
    """Whether all that one record says, an other says too; it may have further keys."""
    if not isinstance(theirs, dict):
        return bool(theirs == ours)
    return all(key in ours and says_the_same(value, ours[key]) for key, value in theirs.items())


def scores(tree: Path, weights: Path) -> Any:
    """What `evaluate` says of an export or another folder with weights."""
    return json.loads(forescale(tree, "evaluate", str(weights), "--json"))["scores"]


def compare(old: Path, folder: Path) -> list[str]:
    """What differs, a line each; `old` is COMMIT's tree."""
    wrong = []
    for number, (name, (ranks, settings)) in enumerate(LAYOUTS.items()):
        before, after = folder / f"before-{number}", folder / f"after-{number}"
        train(old, before, ranks, *settings)
        train(ROOT, after, ranks, *settings)
        pairs = zip(numbers(before), numbers(after), strict=True)
        differing = [place for place, pair in enumerate(pairs, 1) if not says_the_same(*pair)]
        if differing:
            wrong.append(f"{name}: other numbers from row {differing[0]} of metrics.jsonl on")
        forescale(ROOT, "show", str(before), "--verify")
        train(ROOT, before, ranks, *settings, "train.steps=11")
        if len(numbers(before)) != 12:
            wrong.append(f"{name}: this tree does not go on from the other's checkpoint")
        print(f"{name}: {'different' if differing else 'equal'}", flush=True)
    exported = folder / "export"
    forescale(old, "export", str(folder / "before-0"), str(exported))
    if not says_the_same(scores(old, exported), scores(ROOT, exported)):
        wrong.append("the two read one export differently")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("commit", help="what to compare this tree with")
    commit = parser.parse_args().commit
    with TemporaryDirectory(prefix="same-results-") as name:
        folder, old = Path(name), Path(name) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(old), commit], check=True)
        try:
            wrong = compare(old, folder)
        finally:
            subprocess.run([*git, "remove", "--force", str(old)], check=True)
    for line in wrong:
        print(line)
    if wrong:
        sys.exit(1)
    print(f"same results as {commit}")


if __name__ == "__main__":
    main()
