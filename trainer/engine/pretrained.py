"""A new run's first weights from another run, a checkpoint or an export, as far as they fit."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from model.errors import UserError
from model.network import TimeSeriesTransformer
from model.network_config import SeriesShape
from model.sentences import shortened
from parallel.collectives import join_records
from parallel.mesh import Mesh
from trainer.checkpoint.keys import (
    NETWORK_KINDS,
    WEIGHTS,
    global_name,
    is_of_adapter,
    make_key,
    of_kinds,
    state_of,
)
from trainer.checkpoint.store import Checkpoint
from trainer.checkpoint.tensor_files import Shapes
from trainer.config.settings import Settings
from trainer.engine.engine import Engine
from trainer.logs.log import log
from trainer.weights.source import WeightsSource, all_damaged, find, following, passed_over


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
) -> WeightsSource:
    """Read every byte of `source`, by one rank or another, and check that some of it fits.

    Collective. Returns the source; where it was chosen of a run's checkpoints and is damaged, the
    next intact one, and a warning says so. Raises UserError, before anything is written.
    """
    for sentence in passed_over(source) if mesh.is_main else ():
        log.warning("model.init_from: %s", sentence)
    while found := damage(source, mesh):
        # The main rank's: a cluster's file system may show others an older list.
        other = following(source) if mesh.is_main else None
        record = join_records(mesh, {"path": str(other.path)} if other else {})
        if not record:
            raise UserError(f"model.init_from: {all_damaged(source, found)}")
        if mesh.is_main:
            name = Path(record["path"]).name
            log.warning("model.init_from: %s is damaged: %s; %s is used", source.path, found, name)
        source = replace(find(Path(record["path"])), run=source.run)
    with torch.device("meta"):
        network = TimeSeriesTransformer(settings.model, shape)
    check_fits(source, network)
    return source


SIZES = (
    "architecture",
    "d_model",
    "nhead",
    "num_kv_heads",
    "dim_feedforward",
    "use_swiglu",
    "use_moe",
    "num_experts",
    "share_layers",
)
"""Settings of `model` by which tensors have other names or shapes throughout."""


def check_fits(source: WeightsSource, network: TimeSeriesTransformer) -> None:
    """Raise UserError where nothing of a source fits into a network, on the meta device or not."""
    ours = {key: tuple(tensor.shape) for key, tensor in state_of(network).items()}
    taken = _fitting(source.shapes(), ours)
    frozen = [name for name, one in network.named_parameters() if not one.requires_grad]
    lacking = [name for name in frozen if make_key(WEIGHTS, name) not in taken]
    if taken and lacking:
        raise UserError(
            f"model.lora_rank: {source.path} does not have what would not be trained here: "
            f"{shortened(lacking)}; keep the layers' number and sizes, or set model.lora_rank=0"
        )
    if taken:
        return
    there, here = source.settings.model, network.config
    other = [key for key in SIZES if getattr(there, key) != getattr(here, key)]
    settings = " ".join(f"model.{key}={_text(getattr(there, key))}" for key in other)
    way_out = f"; set what it was trained with: {settings}" if other else ""
    raise UserError(
        f"model.init_from: nothing in {source.path} has the name and shape of anything here"
        f"{way_out}"
    )


def _text(value: object) -> str:
    """Return a setting's value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def damage(source: WeightsSource | Checkpoint, mesh: Mesh) -> str | None:
    """Return what some rank finds wrong with its share of a source's files. Collective."""
    wrong = source.verify(reader=mesh.rank, readers=mesh.layout.world)
    found = join_records(mesh, {str(mesh.rank): wrong} if wrong else {})
    return next(iter(found.values()), None)


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
        if key not in taken and not is_of_adapter(key)
    }
    left = sorted(set(map(global_name, theirs)) - set(map(global_name, ours)))
    return InitReport(str(source.path), source.step, list(map(global_name, taken)), anew, left)


def _fitting(theirs: Shapes, ours: Shapes) -> list[str]:
    """Return the keys of one name and shape."""
    return [key for key, shape in ours.items() if theirs.get(key) == shape]
