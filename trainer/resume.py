"""Where a run begins: at its own newest checkpoint, with another's weights, or with its first ones.

`choose` decides before a rank starts, and imports no torch. On the ranks `verify` then reads every
byte that will be loaded, and `restore` loads it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from model.errors import UserError
from model.validation import mistake
from trainer.checkpoint.store import Checkpoint, Store
from trainer.config import Configuration
from trainer.config.settings import FaultsConfig
from trainer.data import Dataset
from trainer.files import check_reachable
from trainer.logs.log import log
from trainer.logs.metrics import read_metrics
from trainer.run.best import Best
from trainer.run.control_files import refuse_if_stopped
from trainer.run.folder import RunFolder, check_same
from trainer.run.lease import Attempt, is_restart
from trainer.weights.source import WeightsSource, find

if TYPE_CHECKING:
    from parallel.mesh import Mesh
    from trainer.engine.engine import Engine
    from trainer.engine.pretrained import InitReport
    from trainer.faults.skipped_steps import SkippedSteps


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    run: RunFolder
    configuration: Configuration
    dataset: Dataset
    checkpoint: Checkpoint | None
    """The run's own, to go on from."""
    weights: WeightsSource | None
    """Another's, for a new run to start with."""
    may_fall_back: bool
    """Whether an older checkpoint will do where this one is damaged: it was not named."""

    @property
    def steps_done(self) -> int:
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def is_own(self) -> bool:
        """Whether the steps done were made in this run folder, rather than in another one."""
        folder = self.checkpoint.path.parent if self.checkpoint else None
        return folder is not None and folder.resolve() == self.run.store.folder.resolve()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do in the run folder."""
        settings = self.configuration.settings
        if not self.run.is_done() or self.steps_done >= settings.train.steps:
            return self.run.is_done()
        rows = [
            row for row in read_metrics(self.run.metrics_file) if row["step"] <= self.steps_done
        ]
        return Best(settings.checkpoint.best, settings.train.patience, rows).is_final

    def check_current(self) -> None:
        """Raise UserError where somebody has trained in the folder since this was chosen."""
        newest = self.run.store.newest()
        if self.may_fall_back and newest != self.checkpoint:
            raise UserError(
                f"{self.run.path} has gone on to {newest.path.name if newest else 'nothing'} since "
                "this command looked; give it again"
            )


OF_A_RUN = {"init_from", "lora_rank", "lora_alpha"}
"""Settings of `model` that say how a run begins, rather than what its network is."""


def inherit(configuration: Configuration, run: RunFolder) -> Configuration:
    """Return the configuration with the network of model.init_from, but for what it sets itself.

    A run that has begun keeps what it has begun with. Raises UserError.
    """
    model = configuration.settings.model
    given = model.model_fields_set
    left = type(model).model_fields.keys() - given - OF_A_RUN
    if model.init_from is None or not left:
        return configuration
    source = None if run.exists() else _pretrained(configuration)
    theirs = source.settings.model if source else run.configuration().settings.model
    values = model.model_dump() | {key: getattr(theirs, key) for key in left}
    try:
        type(model).model_validate(values)
    except ValidationError as error:
        keys, sentence = mistake(error)
        key = ".".join(("model", *keys))
        raise configuration.error(
            key, f"beside what {model.init_from} has: {sentence or 'unknown key'}"
        ) from None
    network = type(model).model_construct(_fields_set=set(given), **values)
    settings = configuration.settings.model_copy(update={"model": network})
    return replace(configuration, settings=settings)


def choose(configuration: Configuration, run: RunFolder, dataset: Dataset, resume: str) -> Start:
    """Decide where the run begins; `resume` is auto, never or a checkpoint's path.

    Raises UserError where the folder or the checkpoint belongs to something else.
    """
    is_started_again = is_restart(run.path, Attempt.here())
    if resume != "auto" and is_started_again:
        # A job that is started again goes on with what it has begun itself.
        resume = "auto" if resume == "never" or run.store.newest() else resume
    run.check(configuration, resume)
    refuse_if_stopped(run)
    checkpoint = _named_checkpoint(run, resume)
    if checkpoint is None and run.exists():
        # A job's own scheduler starts it again also where a full disk took no checkpoint.
        _refuse_to_start_over(run, by_rows=not is_started_again)
    weights = None if checkpoint else _pretrained(configuration)
    may_fall_back = resume == "auto"
    start = Start(run, configuration, dataset, checkpoint, weights, may_fall_back)
    if checkpoint is not None:
        _check_made_from_the_same(start)
    return start


def _refuse_to_start_over(run: RunFolder, *, by_rows: bool) -> None:
    """Raise UserError where the run has had checkpoints: its results would be written over."""
    first = run.first_step()
    if first is not None and first > 1:
        raise UserError(
            f"{run.path} began at step {first}, from a checkpoint of another folder, and has none "
            "of its own yet; name that one with --resume again"
        )
    shown = run.had_checkpoints(by_rows=by_rows)
    if shown is not None:
        raise UserError(
            f"{run.path} has run already ({shown}), and has no checkpoint any more; restore one, "
            "name one with --resume, or choose another --run-dir to start anew"
        )


def _named_checkpoint(run: RunFolder, resume: str) -> Checkpoint | None:
    """Return the checkpoint that `resume` names."""
    if resume == "never":
        return None
    newest = run.store.newest()
    if resume == "auto":
        if newest is None and run.store.committed():
            path, why = next(iter(run.store.verify().items()))
            raise UserError(
                f"{run.path} has no whole checkpoint left: {path.name}: {why}; restore one, "
                "or choose another --run-dir to start anew"
            )
        return newest
    path = Path(resume)
    check_reachable(path, "--resume: ")
    chosen = [c for c in Store(path.parent).committed() if c.path.name == path.name]
    if not chosen:
        own = RunFolder(path).store.newest() or newest
        there = f"{own.path} is one" if own is not None else f"{run.path} has none"
        raise UserError(f"--resume: {resume} is no checkpoint; {there}")
    if newest is not None and newest.step > chosen[0].step:
        raise UserError(
            f"--resume: {run.path} has gone on to {newest.path.name}; "
            "choose another --run-dir to go another way from here"
        )
    return chosen[0]


def _pretrained(configuration: Configuration) -> WeightsSource | None:
    path = configuration.settings.model.init_from
    if path is None:
        return None
    try:
        return find(Path(path))
    except UserError as error:
        raise configuration.error("model.init_from", str(error)) from None


def _check_made_from_the_same(start: Start) -> None:
    """Refuse a checkpoint that was computed from other settings or other data."""
    assert start.checkpoint is not None
    path, made_from = start.checkpoint.path, start.checkpoint.description()
    check_same(start.configuration, made_from["settings"], f"{path} is of other settings")
    if made_from["data"] != start.dataset.digest:
        raise UserError(
            f"data.source: {start.configuration.settings.data.named} has changed since "
            f"{path} was written; choose another --run-dir to start on the new data"
        )
    steps = start.configuration.settings.train.steps
    if start.steps_done > steps and not start.is_done:
        made = f"{start.run.path} has made {start.steps_done} steps already, not {steps}"
        raise start.configuration.error("train.steps", made)


def verify(start: Start, mesh: Mesh) -> Start:
    """Read every byte that will be loaded, by one rank or another; return where to begin instead.

    Collective. A damaged checkpoint is quarantined, and the one before it used, unless it was asked
    for by its name. Raises UserError where nothing intact is left, before anything is written.
    """
    from trainer.engine.pretrained import damage, verify_weights

    if start.weights is not None:
        settings, shape = start.configuration.settings, start.dataset.shape
        start = replace(start, weights=verify_weights(start.weights, settings, shape, mesh))
    while start.checkpoint is not None:
        checkpoint = start.checkpoint
        found = damage(checkpoint, mesh)
        if found is None:
            return start
        sentence = f"{checkpoint.path} is damaged: {found}"
        if not start.may_fall_back:
            raise UserError(f"--resume: {sentence}; choose another one")
        if mesh.is_main:
            aside = start.run.store.quarantine(checkpoint.path)
            sentence = f"{sentence}; it is now {aside.name}"
        start = replace(start, checkpoint=_newest_of_main(start.run.store, mesh))
        if start.checkpoint is None:
            raise UserError(
                f"{sentence}, and there is no whole one before it; restore one, or choose another "
                "--run-dir to start anew"
            )
        if mesh.is_main:
            log.warning("%s, and %s is used", sentence, start.checkpoint.path.name)
        _check_made_from_the_same(start)
    return start


def _newest_of_main(store: Store, mesh: Mesh) -> Checkpoint | None:
    """Return the main rank's newest: a cluster's file system may show others an older list."""
    from parallel.collectives import join_records

    newest = store.newest() if mesh.is_main else None
    record = join_records(mesh, {"path": str(newest.path)} if newest else {})
    return Checkpoint(Path(record["path"])) if record else None


def restore(start: Start, engine: Engine) -> tuple[SkippedSteps, InitReport | None]:
    """Load what was verified into `engine`. Collective.

    Returns the state of the skipped steps, and what was taken from another's weights, if any were.
    """
    from trainer.engine.pretrained import load_pretrained
    from trainer.faults.skipped_steps import SkippedSteps

    faults = start.configuration.settings.faults
    if start.checkpoint is not None:
        return _load(start.checkpoint, faults, engine), None
    report = load_pretrained(engine, start.weights) if start.weights is not None else None
    return SkippedSteps(faults), report


def _load(checkpoint: Checkpoint, faults: FaultsConfig, engine: Engine) -> SkippedSteps:
    """Load a checkpoint into `engine`; return the state of its skipped steps. Collective."""
    from trainer.checkpoint import tensor_files
    from trainer.faults.skipped_steps import SkippedSteps

    skipped = SkippedSteps(faults, checkpoint.description()["bad_steps"])
    with engine.loading(checkpoint.step - skipped.total) as state:
        tensor_files.read(checkpoint.path, state)
    return skipped


def restore_best(store: Store, step: int, faults: FaultsConfig, engine: Engine, mesh: Mesh) -> bool:
    """Load the weights of a run's best step into `engine`; return whether they are intact.

    Collective. Where they are not, a warning says so, and the engine is as it was.
    """
    from trainer.engine.pretrained import damage

    checkpoint = store.checkpoint(step)
    found = damage(checkpoint, mesh)
    if found is not None:
        if mesh.is_main:
            path = checkpoint.path
            log.warning("%s, the best, is damaged: %s; the last is scored", path, found)
        return False
    _load(checkpoint, faults, engine)
    return True
