"""The process groups of a mesh, one for each axis."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist

from parallel.mesh import Mesh


@dataclass(frozen=True)
class Groups:
    """The process groups that this rank is in."""

    tensor: dist.ProcessGroup
    data: dist.ProcessGroup
    expert: dist.ProcessGroup
    replica: dist.ProcessGroup
    """All stages and tensor ranks that compute the same samples."""


def make_groups(mesh: Mesh) -> Groups:
    """Make all groups on all ranks, in one order: a collective."""
    layout = mesh.layout
    axes = (
        layout.tensor_groups(),
        layout.data_groups(),
        layout.expert_groups(),
        layout.replica_groups(),
    )
    return Groups(*(_own_group(axis, mesh.rank) for axis in axes))


def _own_group(axis: list[list[int]], rank: int) -> dist.ProcessGroup:
    groups = {tuple(ranks): dist.new_group(ranks) for ranks in axis}
    return next(group for ranks, group in groups.items() if rank in ranks)
