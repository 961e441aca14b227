"""Forescale's public API: layers for time series, training, and forecasts.

    from forescale import TransformerEncoder, TransformerDecoder, DecoderOnlyTransformer
    from forescale import Forecaster, train

`UserError` is what they raise for a user's mistake, in one sentence.
"""

from __future__ import annotations

import importlib.util
import signal
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent


def _check_packages() -> None:
    """Raise ImportError where a user's own file hides one of Forescale's packages."""
    for name in ("model", "parallel", "trainer", "launch"):
        found = importlib.util.find_spec(name)
        origin = Path((found.origin if found is not None else None) or name).resolve()
        if origin != _ROOT / name / "__init__.py":
            raise ImportError(
                f"{origin} hides Forescale's package `{name}`; rename it or run from elsewhere"
            )


_check_packages()

from model.decoder_only import DecoderOnlyTransformer
from model.decoding import reorder
from model.errors import UserError
from model.layers import BaseTransformerLayer
from model.transformer import TransformerDecoder, TransformerEncoder
from trainer.forecast.forecaster import Forecaster

__all__ = [
    "BaseTransformerLayer",
    "DecoderOnlyTransformer",
    "Forecaster",
    "TransformerDecoder",
    "TransformerEncoder",
    "UserError",
    "__version__",
    "reorder",
    "train",
]

__version__ = "0.1.0"


def train(
    config: str | Path, *, run_dir: str | Path | None = None, resume: str = "auto", **overrides: Any
) -> Path:
    """Train `config` with one rank and return the run folder; for notebooks.

    A signal makes it save at the next step and takes effect then: Ctrl-C, or a notebook's
    interrupt, is a KeyboardInterrupt, and SIGUSR1 returns. The same call goes on from there.

    A keyword changes a setting: a section as a dict, train={"steps": 100}, or a dotted key,
    **{"train.steps": 100}. Raises UserError for what the command line exits with 2 for.
    """
    from launch.capacity import check_machine
    from launch.cluster_environment import announced, discover
    from trainer.config import load
    from trainer.config.load import flat
    from trainer.faults.signals import StopRequest
    from trainer.job import train as run
    from trainer.loop import Outcome
    from trainer.prepare import prepare

    cluster = discover()
    if cluster.world > 1:
        raise UserError(
            f"forescale.train is for one rank, and a launcher started {cluster.world}; "
            "have it start launch/train.py"
        )
    settings = load(config, flat(overrides))
    plan = prepare(settings, run_dir=None if run_dir is None else Path(run_dir), resume=resume)
    if not plan.start.is_done:
        check_machine(plan, cluster)
    # The process group of one rank stays: DeepSpeed keeps what it made of it for the next run.
    stop = StopRequest()
    with announced(cluster) as address:
        outcome = run(plan, stop=stop, address=address)
    if outcome is Outcome.SAVED and stop.number is not None and stop.exit_code:
        signal.raise_signal(stop.number)  # what follows is not to take the run for a finished one
    return plan.run.path
