"""The table of which weight is sharded how over the ranks of a stage.

Words: an *axis* is the mesh's, a *dim* a tensor's. A *shard* is the slice of a parameter that the
tensor or expert axis leaves a rank; a *partition* is the range of the flattened shard that ZeRO
leaves it; a *chunk* is a box of a global tensor as a checkpoint stores it.

Names are global names as `TimeSeriesTransformer` has them. The model's weights are stored so that
every shard is a slice of one dim: attention by key/value head, feed-forwards and experts by hidden
width.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from model.init import Shard
from parallel.layout import Coordinates, Layout


@dataclass(frozen=True)
class Sharding:
    """How a parameter is sharded; it is replicated where neither dim is given."""

    tensor_dim: int | None = None
    """The dim that the tensor axis shards."""
    expert_dim: int | None = None
    """The dim that counts experts, which the expert axis shards instead."""


REPLICATED = Sharding()

TABLE: tuple[tuple[str, Sharding], ...] = (
    # Of an adapter the factor with the dim that shards its matrix.
    ("*attention.adapters.output.down", Sharding(tensor_dim=1)),  # [rank, KV, G, D]
    ("*attention.adapters.output.up", REPLICATED),  # [d_model, rank]
    ("*attention.adapters.*.up", Sharding(tensor_dim=0)),  # [KV, ..., D, rank]
    ("*.experts.adapters.input.up", Sharding(tensor_dim=2, expert_dim=0)),  # [E, 1 or 2, width, r]
    ("*.experts.adapters.output.down", Sharding(tensor_dim=2, expert_dim=0)),  # [E, r, width]
    ("*.experts.adapters.*", Sharding(expert_dim=0)),  # [E, rank, d_model], [E, d_model, rank]
    ("*.feed_forward*.adapters.gate_value.up", Sharding(tensor_dim=1)),  # [2, width, rank]
    ("*.feed_forward*.adapters.input.up", Sharding(tensor_dim=0)),  # [width, rank]
    ("*.feed_forward*.adapters.output.down", Sharding(tensor_dim=1)),  # [rank, width]
    ("*.adapters.*", REPLICATED),
    ("*attention.query_key_value", Sharding(tensor_dim=0)),  # [KV, G + 2, D, d_model]
    ("*attention.query", Sharding(tensor_dim=0)),  # [KV, G, D, d_model]
    ("*attention.key_value", Sharding(tensor_dim=0)),  # [KV, 2, D, d_model]
    ("*attention.output", Sharding(tensor_dim=1)),  # [d_model, KV, G, D]
    ("*attention.query_key_gain", Sharding(tensor_dim=0)),  # [KV * (G + 1) * D]
    ("*attention.frequency_mix", Sharding(tensor_dim=0)),  # [KV, G, modes, D, 2]
    ("*.experts.input", Sharding(tensor_dim=2, expert_dim=0)),  # [E, 1 or 2, width, d_model]
    ("*.experts.output", Sharding(tensor_dim=2, expert_dim=0)),  # [E, d_model, width]
    ("*.router.*", REPLICATED),
    ("*.feed_forward*.gate_value", Sharding(tensor_dim=1)),  # [2, width, d_model]
    ("*.feed_forward*.input", Sharding(tensor_dim=0)),  # [width, d_model]
    ("*.feed_forward*.output", Sharding(tensor_dim=1)),  # [d_model, width]
    ("*_norm.*", REPLICATED),
    ("*.input_projection.*", REPLICATED),
    ("query_projection.*", REPLICATED),
    ("*.positions.table", REPLICATED),
    ("*_embedding.weight", REPLICATED),
    ("head.*", REPLICATED),
)
"""Pattern of global names -> how they are sharded; the first that fits counts.

`feed_forward*` is a shared expert, too."""


def sharding(name: str) -> Sharding:
    """Return how the parameter `name` is sharded; raise LookupError for one that is not here."""
    for pattern, found in TABLE:
        if fnmatchcase(name, pattern):
            return found
    raise LookupError(f"{name} is not in the sharding table: how is it sharded over ranks?")


def shard_of(name: str, whole: torch.Size, layout: Layout, here: Coordinates) -> Shard:
    """Return the shard that the rank at `here` holds of a parameter of shape `whole`."""
    dim, shards, index = _axis(name, layout, here)
    if shards == 1:
        return Shard.all_of(whole)
    size, rest = divmod(whole[dim], shards)
    assert not rest, f"{name}: {whole[dim]} do not divide into {shards}"
    return Shard(tuple(whole), dim, index * size, size)


def _axis(name: str, layout: Layout, here: Coordinates) -> tuple[int, int, int]:
    """Return the dim, the number of shards, and which of them is held at `here`."""
    how = sharding(name)
    if how.expert_dim is not None and layout.expert > 1:
        return how.expert_dim, layout.expert, here.expert
    if how.tensor_dim is not None:
        return how.tensor_dim, layout.tensor, here.tensor
    return 0, 1, 0


def is_sharded(name: str, layout: Layout) -> bool:
    """Whether the ranks of one tensor group hold different shards of the parameter."""
    how = sharding(name)
    if how.expert_dim is not None and layout.expert > 1:
        return layout.tensor > 1
    return how.tensor_dim is not None and layout.tensor > 1


def is_expert(name: str) -> bool:
    """Whether the parameter holds a weight of each expert."""
    return sharding(name).expert_dim is not None


def shard_parameters(network: nn.Module, layout: Layout, here: Coordinates) -> dict[str, Shard]:
    """Make every parameter of `network`, on the meta device, as large as its shard.

    Returns the shards by global name.
    """
    shards = {}
    for prefix, module in network.named_modules():
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            name = f"{prefix}.{leaf}"
            shard = shard_of(name, parameter.shape, layout, here)
            held = parameter.narrow(shard.dim, shard.start, shard.size)
            made = nn.Parameter(torch.empty_like(held), requires_grad=parameter.requires_grad)
            setattr(module, leaf, made)
            shards[name] = shard
    return shards
