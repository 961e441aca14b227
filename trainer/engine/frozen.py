"""The weights that are not trained: DeepSpeed's optimizers do not hold them, the network does."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from model.init import Shard
from parallel.mesh import Mesh
from parallel.sharding import is_expert, is_sharded
from trainer.checkpoint.keys import WEIGHTS, global_name, make_key
from trainer.checkpoint.partitions import Partition
from trainer.engine.zero_state import own_range


def held(network: nn.Module, shards: Mapping[str, Shard], rank: int) -> dict[str, Partition]:
    """Return what this rank holds of them, by key: views, so that loading fills them.

    That is a range of each under ZeRO 3, where `rank` counts the ranks that share it, and otherwise
    all of its shard. They are of the type that the network computes with: there is no other copy.
    """
    found = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            continue
        values, start = parameter.data.view(-1), 0
        if hasattr(parameter, "ds_tensor"):
            start, count = own_range(parameter, rank)
            values = parameter.ds_tensor.data[:count]
        if len(values):
            found[make_key(WEIGHTS, name)] = Partition(shards[name], start, values)
    return found


def written(
    parts: Mapping[str, Partition], mesh: Mesh, *, is_partitioned: bool
) -> dict[str, Partition]:
    """Return what this rank writes of them: ranks that hold the same write a range each.

    `is_partitioned` says that each rank holds its own range already.
    """
    layout, rank = mesh.layout, mesh.rank % mesh.layout.stage
    result = {}
    for key, part in parts.items():
        name = global_name(key)
        if mesh.coordinates.tensor > 0 and not is_sharded(name, layout):
            continue
        if is_partitioned:
            result[key] = part
            continue
        # Of a stage's ranks the neighbours hold different shards between them.
        different = layout.expert if is_expert(name) and layout.expert > 1 else layout.tensor
        alike, values = layout.stage // different, part.data_1d
        size = -(-len(values) // alike)
        begin = min(rank // different * size, len(values))
        values = values[begin : begin + size]
        if len(values):
            result[key] = Partition(part.shard, part.start + begin, values)
    return result
