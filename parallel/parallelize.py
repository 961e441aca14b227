"""All parallelism, applied to a network in one place, from top to bottom.

The network's own code knows of none of it. What is left on a rank: of all layers its stage's, of
each parameter its shard, and around some modules' forward the collectives that complete it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from model.init import Shard, initialise
from model.network import TimeSeriesTransformer
from model.sequential import Layer
from parallel.consistency import agree
from parallel.deepspeed_adapter import (
    ModelParallelUnit,
    Partitioner,
    announce_experts,
    mark_parameters,
)
from parallel.expert_parallel import apply_expert_parallel
from parallel.groups import Groups, make_groups
from parallel.mesh import Mesh
from parallel.pipeline_parallel import Stage, keep_only, pipeline_module, split_layers, tied_modules
from parallel.sharding import shard_parameters
from parallel.tensor_parallel import apply_tensor_parallel


@dataclass(frozen=True)
class Parallelized:
    """A network as one rank holds it."""

    module: nn.Module
    """What DeepSpeed runs: the network itself, or a pipeline module around this rank's stage."""
    shards: Mapping[str, Shard]
    """This rank's shard of each parameter of its stage, by global name."""
    stages: list[list[Layer]]
    """The layers of all stages."""
    groups: Groups
    unit: ModelParallelUnit | None
    """The tensor axis as DeepSpeed asks for it, where no pipeline tells it."""

    def copies_on(self, stage: int) -> tuple[str, ...]:
        """Return the modules of `stage`, by global name, that an earlier stage holds, too."""
        tied = tied_modules(self.stages).items()
        return tuple(name for name, holders in tied if stage in holders[1:])


def parallelize(
    network: TimeSeriesTransformer, mesh: Mesh, seed: int, zero_3: tuple[Any, torch.dtype] | None
) -> Parallelized:
    """Spread `network`, made on the meta device, over the ranks and draw its first weights.

    `zero_3` is DeepSpeed's configuration and the weights' type where ZeRO partitions these.

    Collective over all ranks. Raises RuntimeError where the ranks of a stage would hold other
    parameters than each other.
    """
    layout, here = mesh.layout, mesh.coordinates
    groups = make_groups(mesh)

    # Pipeline axis: of all layers, those of this rank's stage.
    stages = split_layers(network, layout.pipeline)
    keep_only(network, stages[here.pipeline])

    # DeepSpeed reads the tensor axis off a pipeline's module, or else off a unit.
    unit = None
    if layout.pipeline == 1 and layout.tensor > 1:
        unit = ModelParallelUnit(mesh, groups)

    # Tensor and expert axes: of each parameter this rank's shard, drawn as part of the whole.
    shards = shard_parameters(network, layout, here)
    partition = Partitioner(*zero_3, unit) if zero_3 is not None else None

    @contextmanager
    def made(name: str, module: nn.Module) -> Iterator[None]:
        module.to_empty(device=mesh.device, recurse=False)
        yield
        mark_parameters(name, module, layout)
        if partition is not None:
            partition(module)

    initialise(network, seed, shards, around=made)
    if layout.tensor > 1:
        apply_tensor_parallel(network, layout, groups.tensor)
    if layout.expert > 1:
        apply_expert_parallel(network, groups.expert)
    _agree_on_parameters(mesh, shards)

    # What DeepSpeed sees: its pipeline's module, its groups of experts, its tensor axis.
    module: nn.Module = network
    if layout.pipeline > 1:
        stage = Stage(network, stages[here.pipeline])
        module = pipeline_module(stages, stage, mesh, network.loss)
    if layout.expert > 1:
        experts = announce_experts(layout, network.config.num_experts)
        module.add_module("experts_announced", experts)
    return Parallelized(module, shards, stages, groups, unit)


def _agree_on_parameters(mesh: Mesh, shards: Mapping[str, Shard]) -> None:
    """Check that the ranks of each stage hold parameters of the same names and shapes.

    DeepSpeed starts its collectives parameter by parameter: ranks that have others would wait for
    ever.
    """
    first = mesh.coordinates.pipeline * mesh.layout.stage
    shapes = {name: str(shard.whole) for name, shard in shards.items()}
    claims = {"parameters": len(shapes), **shapes}
    agree(mesh, claims, list(range(first, first + mesh.layout.stage)))
