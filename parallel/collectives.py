"""Small sums, flags and records over all ranks. Each function is called by all of them together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.mesh import Mesh


def sum_over_ranks(mesh: Mesh, values: Tensor) -> Tensor:
    """Return the sum of `values` over all ranks, in fp64."""
    total = values.to(mesh.device, torch.float64)
    dist.all_reduce(total)
    return total


def from_each(mesh: Mesh, number: float) -> Tensor:
    """Return the number of each rank, [world] in fp64, the same on all."""
    numbers = torch.zeros(mesh.layout.world, dtype=torch.float64)
    numbers[mesh.rank] = number
    return sum_over_ranks(mesh, numbers)


def any_rank(mesh: Mesh, flag: bool) -> bool:
    """Return whether `flag` is set on some rank."""
    return any_of(mesh, [flag])[0]


def any_of(mesh: Mesh, flags: Sequence[bool]) -> list[bool]:
    """Return of each flag whether it is set on some rank."""
    total = sum_over_ranks(mesh, torch.tensor([float(flag) for flag in flags]))
    return [bool(count > 0) for count in total]


def join_records(mesh: Mesh, record: dict[str, str]) -> dict[str, str]:
    """Return what all ranks have recorded, by key; the same on all."""
    records: list[dict[str, str]] = [{} for _ in range(mesh.layout.world)]
    dist.all_gather_object(records, record)
    return {key: text for one in records for key, text in sorted(one.items())}
