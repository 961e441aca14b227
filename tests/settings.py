"""Small configurations and whole runs for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.config import Configuration, load
from trainer.logs.metrics import Row, read_metrics

TINY = Path(__file__).resolve().parent.parent / "configs" / "tiny.yaml"


def tiny(**overrides: Any) -> Configuration:
    """configs/tiny.yaml; a keyword a__b sets a.b."""
    return load(TINY, {key.replace("__", "."): value for key, value in overrides.items()})


def train_rank(
    rank: int, world: int, run: Path, overrides: dict[str, Any], **hooks: Any
) -> list[Row]:
    """Train tiny on this rank, for tests.ranks.run; return the run's rows.

    `hooks` are those of trainer.job.Hooks.
    """
    from trainer.job import Hooks, train
    from trainer.prepare import prepare

    resume = overrides.pop("resume", "auto")
    configuration = load(TINY, overrides)
    plan = prepare(configuration, run_dir=run, resume=resume, world=world)
    train(plan, rank, rank, world, hooks=Hooks(**hooks))
    return read_metrics(run / "metrics.jsonl") if rank == 0 else []
