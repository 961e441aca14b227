"""A new run's first weights from another run, a checkpoint or an export, as far as they fit."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.config import SeriesShape
from model.errors import UserError
from model.network import TimeSeriesTransformer
from model.sentences import shortened
from parallel.collectives import join_records
from parallel.mesh import Mesh
from trainer.checkpoint.keys import NETWORK_KINDS, global_name, of_kinds, state_of
from trainer.checkpoint.tensor_files import Shapes
from trainer.config.settings import Settings
from trainer.engine.engine import Engine
from trainer.weights.source import WeightsSource


@dataclass(frozen=True)
class InitReport:
    """What a new run has of another's weights."""

    source: str
    step: int
    taken: list[str]
    anew: dict[str, str]
    """Tensor that is drawn anew -> why."""
    left: list[str]
    """The source's tensors that are nowhere here."""

    def sentence(self) -> str:
        """Return the report as one sentence."""
        parts = [f"model.init_from: {len(self.taken)} tensors taken over from {self.source}"]
        if self.anew:
            drawn = [f"{name} ({why})" for name, why in self.anew.items()]
            parts.append(f"drawn anew: {shortened(drawn)}")
        else:
            parts.append("none drawn anew")
        if self.left:
            parts.append(f"left behind: {shortened(self.left)}")
        return "; ".join(parts)


def verify_weights(
    source: WeightsSource, settings: Settings, shape: SeriesShape, mesh: Mesh
) -> None:
    """Read every byte of `source`, by one rank or another, and check that some of it fits.

    Collective. Raises UserError, before anything is written.
    """
    wrong = source.verify(reader=mesh.rank, readers=mesh.layout.world)
    found = join_records(mesh, {str(mesh.rank): wrong} if wrong else {})
    if found:
        raise UserError(f"model.init_from: {source.path} is damaged: {next(iter(found.values()))}")
    with torch.device("meta"):
        network = TimeSeriesTransformer(settings.model, shape)
    ours = {key: tuple(tensor.shape) for key, tensor in state_of(network).items()}
    if not _fitting(source.shapes(), ours):
        raise UserError(
            f"model.init_from: nothing in {source.path} has the name and shape of anything here"
        )


def load_pretrained(engine: Engine, source: WeightsSource) -> InitReport:
    """Fill the weights and buffers whose names and shapes are the source's. Collective."""
    theirs = of_kinds(source.shapes(), *NETWORK_KINDS)
    ours = of_kinds(engine.shapes, *NETWORK_KINDS)
    taken = _fitting(theirs, ours)
    with engine.loading(steps_applied=0) as state:
        source.read({key: state[key] for key in taken if key in state})
    anew = {
        global_name(key): f"{theirs[key]} there, {shape} here" if key in theirs else "not there"
        for key, shape in ours.items()
        if key not in taken
    }
    left = sorted(set(map(global_name, theirs)) - set(map(global_name, ours)))
    return InitReport(str(source.path), source.step, list(map(global_name, taken)), anew, left)


def _fitting(theirs: Shapes, ours: Shapes) -> list[str]:
    """Return the keys of one name and shape."""
    return [key for key, shape in ours.items() if theirs.get(key) == shape]
