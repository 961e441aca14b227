"""One rank's part of a network: its stage, and of that its heads, widths and experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model.init import Shard, initialise
from model.network import Layer, TimeSeriesTransformer
from parallel.deepspeed_adapter import mark
from parallel.expert_parallel import apply_expert_parallel
from parallel.groups import Groups, Mesh
from parallel.pipeline_parallel import Stage, keep_only, split_layers
from parallel.sharding import shard_parameters
from parallel.tensor_parallel import apply_tensor_parallel


@dataclass(frozen=True)
class Spread:
    """What a rank holds of a network."""

    stage: Stage
    shards: Mapping[str, Shard]
    """Of each parameter of the stage, by global name."""
    stages: list[list[Layer]]
    """The layers of all stages."""


def spread(network: TimeSeriesTransformer, mesh: Mesh, groups: Groups, seed: int) -> Spread:
    """Cut `network`, made on the meta device, down to this rank's part and give it its first
    weights."""
    layout, here = mesh.layout, mesh.coordinates
    stages = split_layers(network, layout.pipeline)
    layers = stages[here.pipeline]
    keep_only(network, layers)
    shards = shard_parameters(network, layout, here)
    network.to_empty(device="cpu")
    initialise(network, seed, shards)
    mark(network, layout)
    if layout.tensor > 1:
        apply_tensor_parallel(network, layout, groups.tensor)
    if layout.expert > 1:
        apply_expert_parallel(network, groups.expert)
    network.to(mesh.device)
    return Spread(Stage(network, layers), shards, stages)
