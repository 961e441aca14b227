"""Forescale's public face: `from forescale import Forecaster, train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import model as _model

if not (Path(__file__).parent / "model") == Path(_model.__file__ or "").parent:
    raise ImportError(
        f"{_model.__file__} hides Forescale's package `model`; rename it or run from elsewhere"
    )

from trainer.predict import Forecaster

__all__ = ["Forecaster", "train"]


def train(
    config: str | Path, *, run_dir: str | Path | None = None, resume: str = "auto", **overrides: Any
) -> Path:
    """Train `config` with one rank and return the run folder; for notebooks.

    A keyword changes a setting: a section as a dict, train={"steps": 100}, or a dotted key,
    **{"train.steps": 100}. Raises UserError for what the command line exits with 2 for.
    """
    from launch.rendezvous import announce, discover
    from parallel.groups import leave
    from trainer.config import load
    from trainer.loop import train as run
    from trainer.prepare import prepare
    from trainer.run import flat

    plan = prepare(
        load(config, flat(overrides)),
        run_dir=None if run_dir is None else Path(run_dir),
        resume=resume,
    )
    announce(discover())
    try:
        run(plan)
    finally:
        leave()
    return plan.run.path
