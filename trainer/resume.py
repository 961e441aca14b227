"""What a run starts from: its own newest checkpoint, another's weights, or the first ones.

Every byte that is read is verified before, by one rank or another.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from model.errors import UserError, shortened
from model.network import TimeSeriesTransformer
from parallel.groups import Mesh, join_records
from trainer.checkpoint.partitions import bare
from trainer.checkpoint.storage import Shapes
from trainer.checkpoint.store import Checkpoint
from trainer.engine.engine import Engine
from trainer.engine.zero_state import shapes
from trainer.logs.progress import say
from trainer.prepare import Plan, check_resume
from trainer.weights.source import WeightsSource

KINDS = ("weights/", "buffers/")
"""Of a state, what another run may begin with."""


def intact_checkpoint(plan: Plan, mesh: Mesh) -> Checkpoint | None:
    """The one to go on from. A damaged one is put aside for the one before it, unless it was
    asked for by its name."""
    checkpoint = plan.resume_from
    while checkpoint is not None:
        found = _on_any(mesh, checkpoint.verify(reader=mesh.rank, readers=mesh.layout.world))
        if found is None:
            return checkpoint
        sentence = f"{checkpoint.path} is damaged: {found}"
        if not plan.may_fall_back:
            raise UserError(f"--resume: {sentence}; choose another one")
        if mesh.is_main:
            aside = plan.run.store.quarantine(checkpoint.path)
            say(f"{sentence}; it is now {aside.name}, and the one before it is used")
        checkpoint = _of_main(plan, mesh)
        if checkpoint is None:
            raise UserError(f"{sentence}, and there is no whole one before it")
        check_resume(plan, checkpoint)
    return None


def _of_main(plan: Plan, mesh: Mesh) -> Checkpoint | None:
    """The newest in the main rank's eyes: a cluster's file system may show others an older list."""
    newest = plan.run.store.newest() if mesh.is_main else None
    told = join_records(mesh, {"path": str(newest.path)} if newest else {})
    return Checkpoint(Path(told["path"])) if told else None


def intact_source(plan: Plan, mesh: Mesh) -> WeightsSource | None:
    """The weights that a new run starts from, verified, some of which fit.

    Raises UserError, before anything is written.
    """
    source = plan.start_from
    if source is None:
        return None
    wrong = _on_any(mesh, source.verify(mesh.rank, mesh.layout.world))
    if wrong is not None:
        raise UserError(f"model.init_from: {source.path} is damaged: {wrong}")
    with torch.device("meta"):
        network = TimeSeriesTransformer(plan.configuration.settings.model, plan.dataset.shape)
    if not _fitting(source.shapes(), shapes(network)):
        raise UserError(
            f"model.init_from: nothing in {source.path} has the name and shape of anything here"
        )
    return source


def _on_any(mesh: Mesh, wrong: str | None) -> str | None:
    """What any rank has found wrong, on all of them."""
    found = join_records(mesh, {str(mesh.rank): wrong} if wrong else {})
    return next(iter(found.values()), None)


def _fitting(theirs: Shapes, ours: Shapes) -> list[str]:
    """Weights and buffers of one name and shape."""
    return [
        name for name, shape in ours.items() if name.startswith(KINDS) and theirs.get(name) == shape
    ]


@dataclass(frozen=True)
class InitReport:
    """What a new run has of another's weights."""

    source: str
    step: int
    taken: list[str]
    anew: dict[str, str]
    """Drawn anew: its name, and why."""
    left: list[str]
    """The source's that are nowhere here."""

    def sentence(self) -> str:
        parts = [f"model.init_from: {len(self.taken)} tensors taken over from {self.source}"]
        parts += [
            f"drawn anew: {shortened([f'{n} ({why})' for n, why in self.anew.items()])}"
            if self.anew
            else "none drawn anew"
        ]
        parts += [f"left behind: {shortened(self.left)}"] if self.left else []
        return "; ".join(parts)


def load_pretrained(engine: Engine, source: WeightsSource) -> InitReport:
    """Fill the weights and buffers whose names and shapes are the source's."""
    theirs = {name: s for name, s in source.shapes().items() if name.startswith(KINDS)}
    ours = {name: s for name, s in engine.shapes.items() if name.startswith(KINDS)}
    taken = _fitting(theirs, ours)
    state = engine.begin_load(0)
    source.read({name: state[name] for name in taken if name in state})
    engine.end_load()
    anew = {
        bare(name): f"{theirs[name]} there, {shape} here" if name in theirs else "not there"
        for name, shape in ours.items()
        if name not in taken
    }
    left = sorted({bare(name) for name in theirs} - {bare(name) for name in ours})
    return InitReport(str(source.path), source.step, [bare(n) for n in taken], anew, left)
