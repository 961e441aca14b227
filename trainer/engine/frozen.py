"""The weights that are not trained: DeepSpeed's optimizers do not hold them, the network does."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from model.init import Shard
from parallel.mesh import Mesh
from parallel.sharding import is_expert, is_sharded
from trainer.checkpoint.keys import WEIGHTS, global_name, make_key
from trainer.checkpoint.partitions import Partition


def held(network: nn.Module, shards: Mapping[str, Shard], rank: int) -> dict[str, Partition]:
    """Return what this rank holds of them, by key, in fp32.

    That is a range of each under ZeRO 3, where `rank` counts the ranks that share it, and otherwise
    all of its shard. In another precision it is a copy, which `bring_back` is for.
    """
    found = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            continue
        values, start = parameter.data.reshape(-1), 0
        if hasattr(parameter, "ds_tensor"):
            values, start = parameter.ds_tensor.data, rank * parameter.ds_tensor.numel()
            values = values[: max(0, parameter.ds_numel - start)]  # type: ignore[attr-defined]
        if len(values):
            found[make_key(WEIGHTS, name)] = Partition(shards[name], start, values.float())
    return found


def written(
    parts: Mapping[str, Partition], mesh: Mesh, *, is_partitioned: bool
) -> dict[str, Partition]:
    """Return which of them this rank writes; `is_partitioned` says that each has its own range."""
    layout, rank = mesh.layout, mesh.rank % mesh.layout.stage
    result = {}
    for key, part in parts.items():
        name = global_name(key)
        # The ranks of one stage that hold different shards between them come first.
        different = layout.expert if is_expert(name) and layout.expert > 1 else layout.tensor
        is_first = is_partitioned or rank < different
        if is_first and (mesh.coordinates.tensor == 0 or is_sharded(name, layout)):
            result[key] = part
    return result


def bring_back(network: nn.Module, parts: Mapping[str, Partition]) -> None:
    """Bring what `held` has returned, and a checkpoint has filled, back into the network."""
    for name, parameter in network.named_parameters():
        part = parts.get(make_key(WEIGHTS, name))
        if part is not None:
            sharded = getattr(parameter, "ds_tensor", parameter).data.view(-1)
            sharded[: part.data_1d.numel()].copy_(part.data_1d)
