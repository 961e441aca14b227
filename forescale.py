"""Forescale's public API.

from forescale import TransformerEncoder, TransformerDecoder, Forecaster, train
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import model as _model

if not (Path(__file__).parent / "model") == Path(_model.__file__ or "").parent:
    raise ImportError(
        f"{_model.__file__} hides Forescale's package `model`; rename it or run from elsewhere"
    )

from model.decoding import reorder
from model.errors import UserError
from model.layers import BaseTransformerLayer
from model.transformer import TransformerDecoder, TransformerEncoder
from trainer.forecast.forecaster import Forecaster

__all__ = [
    "BaseTransformerLayer",
    "Forecaster",
    "TransformerDecoder",
    "TransformerEncoder",
    "UserError",
    "reorder",
    "train",
]


def train(
    config: str | Path, *, run_dir: str | Path | None = None, resume: str = "auto", **overrides: Any
) -> Path:
    """Train `config` with one rank and return the run folder; for notebooks.

    A keyword changes a setting: a section as a dict, train={"steps": 100}, or a dotted key,
    **{"train.steps": 100}. Raises UserError for what the command line exits with 2 for.
    """
    from launch.cluster_environment import announced, discover
    from trainer.config import load
    from trainer.config.load import flat
    from trainer.job import train as run
    from trainer.prepare import prepare

    cluster = discover()
    if cluster.world > 1:
        raise UserError(
            f"forescale.train is for one rank, and a launcher started {cluster.world}; "
            "have it start launch/train.py"
        )
    settings = load(config, flat(overrides))
    plan = prepare(settings, run_dir=None if run_dir is None else Path(run_dir), resume=resume)
    # The process group of one rank stays: DeepSpeed keeps what it made of it for the next run.
    with announced(cluster) as address:
        run(plan, local_world=cluster.local_world, address=address)
    return plan.run.path
