"""Small configurations and whole runs for tests."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import RunFailedError
from trainer.config import Configuration, load
from trainer.logs.metrics import Row, read_metrics
from trainer.prepare import Plan, prepare

if TYPE_CHECKING:
    from trainer.loop import Trainer

TINY = Path(__file__).resolve().parent.parent / "configs" / "tiny.yaml"

QUICK: dict[str, Any] = {
    "data.rows": 800,
    "logging.tensorboard": False,
    "train.steps": 8,
    "model.dropout": 0.1,
}
"""Changes to tiny: a run of seconds that interruptions could change."""

UNSCORED: dict[str, Any] = {**QUICK, "data.split": [0.9, 0.1, 0.0]}
"""The same without test windows, which take as long as the steps to score and draw."""


def tiny(**overrides: Any) -> Configuration:
    """Return configs/tiny.yaml; a keyword a__b sets a.b."""
    return load(TINY, {key.replace("__", "."): value for key, value in overrides.items()})


def planned(run: Path, overrides: Mapping[str, Any], world: int = 1) -> Plan:
    """Return the plan of a tiny run; the key `resume` of `overrides` is the command's."""
    settings = dict(overrides)
    resume = settings.pop("resume", "auto")
    return prepare(load(TINY, settings), run_dir=run, resume=resume, world=world)


def train_plan(plan: Plan, rank: int, **hooks: Any) -> str:
    """Train on this rank, and return how the run ended; `hooks` are those of trainer.job.Hooks."""
    from trainer.job import Hooks, train

    return str(train(plan, rank, rank, hooks=Hooks(**hooks)))


def train_rank(
    rank: int, world: int, run: Path, overrides: Mapping[str, Any], **hooks: Any
) -> list[Row]:
    """Train tiny on this rank, for tests.ranks.run; return the run's rows on rank 0."""
    train_plan(planned(run, overrides, world), rank, **hooks)
    return read_metrics(run / "metrics.jsonl") if rank == 0 else []


def told(rows: list[Row]) -> list[tuple[float, ...]]:
    """Return what must not depend on interruptions of a run."""
    keys = ("step", "loss", "aux_loss", "grad_norm", "learning_rate", "samples")
    return [tuple(row[key] for key in keys) for row in rows]


def words_of(rank: int, world: int, run: Path, overrides: Mapping[str, Any], **hooks: Any) -> str:
    """Train tiny on this rank; return what it prints, and last the failure that ends the run."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        try:
            train_rank(rank, world, run, overrides, **hooks)
        except RunFailedError as error:
            print(f"{type(error).__name__}: {error}")
    return text.getvalue()


@contextmanager
def made_trainer(plan: Plan, rank: int, **hooks: Any) -> Iterator[Trainer]:
    """Within, this rank holds a run's lease and its trainer, before the first step."""
    import torch.distributed as dist

    from parallel.mesh import init_mesh, local_device
    from trainer.faults.signals import StopRequest
    from trainer.job import Hooks, make_trainer
    from trainer.logs.log import Warnings
    from trainer.run.lease import Attempt, acquire

    dist.init_process_group("gloo")
    mesh = init_mesh(plan.layout, rank, local_device(rank))
    with ExitStack() as stack:
        lease = None
        if rank == 0:
            plan.run.path.mkdir(exist_ok=True)
            lease = stack.enter_context(acquire(plan.run.path, Attempt("", ())))
        stop, warnings = StopRequest(), Warnings()
        yield make_trainer(plan, mesh, stop, lease, warnings, hooks=Hooks(**hooks))
