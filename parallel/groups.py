"""The process groups of a run, and what one rank is in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from parallel.layout import Coordinates, Layout


@dataclass(frozen=True)
class Mesh:
    """This rank in its layout."""

    layout: Layout
    rank: int
    device: torch.device

    @property
    def coordinates(self) -> Coordinates:
        return self.layout.coordinates(self.rank)

    @property
    def is_main(self) -> bool:
        """The rank that writes what is written once."""
        return self.rank == 0

    @property
    def sees_output(self) -> bool:
        """Of each data-parallel replica, one rank gets the network's output."""
        here = self.coordinates
        return here.pipeline == self.layout.pipeline - 1 and here.tensor == 0


@dataclass(frozen=True)
class Groups:
    """The process groups that this rank is in."""

    tensor: dist.ProcessGroup
    data: dist.ProcessGroup
    expert: dist.ProcessGroup
    replica: dist.ProcessGroup
    """All stages and tensor ranks that compute the same samples."""


def make_groups(mesh: Mesh) -> Groups:
    """Collective: all ranks make all groups, in one order."""
    layout = mesh.layout
    axes = (
        layout.tensor_groups(),
        layout.data_groups(),
        layout.expert_groups(),
        layout.replica_groups(),
    )
    return Groups(*(_own(axis, mesh.rank) for axis in axes))


def _own(axis: list[list[int]], rank: int) -> dist.ProcessGroup:
    groups = {tuple(ranks): dist.new_group(ranks) for ranks in axis}
    return next(group for ranks, group in groups.items() if rank in ranks)


def local_device(local_rank: int) -> torch.device:
    """Ranks beyond the number of GPUs share them."""
    if torch.cuda.is_available():
        index = local_rank % torch.cuda.device_count()
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    return torch.device("cpu")


def backend(device: torch.device, local_world: int) -> str:
    """NCCL wants a GPU for each rank; gloo takes ranks that share one, and CPUs."""
    own = device.type == "cuda" and local_world <= torch.cuda.device_count()
    return "nccl" if own else "gloo"


def is_joined() -> bool:
    return dist.is_initialized()


def join(
    layout: Layout,
    rank: int,
    local_rank: int,
    local_world: int,
    store: Store | None,
    seconds: float | None = None,
) -> Mesh:
    """Form the process group of all ranks, which have met at `store`; None where it is formed.

    A collective that takes longer than `seconds`, or else than the backend's own limit, fails.
    """
    device = local_device(local_rank)
    if store is not None:
        dist.init_process_group(
            backend(device, local_world),
            store=PrefixStore("world", store),
            rank=rank,
            world_size=layout.world,
            timeout=timedelta(seconds=seconds) if seconds else None,
        )
    return Mesh(layout, rank, device)


def leave() -> None:
    """All ranks together: none takes its sockets from another that still needs them."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def barrier() -> None:
    """Until all ranks have come here."""
    dist.barrier()


def sum_over_ranks(mesh: Mesh, values: Tensor) -> Tensor:
    """The sum of `values` over all ranks, in fp64."""
    total = values.to(mesh.device, torch.float64)
    dist.all_reduce(total)
    return total


def from_each(mesh: Mesh, number: float) -> Tensor:
    """The number of each rank, [world] in fp64, the same on all."""
    numbers = torch.zeros(mesh.layout.world, dtype=torch.float64)
    numbers[mesh.rank] = number
    return sum_over_ranks(mesh, numbers)


def any_rank(mesh: Mesh, flag: bool) -> bool:
    """Whether `flag` is set on some rank: the same answer on all."""
    return any_of(mesh, [flag])[0]


def any_of(mesh: Mesh, flags: Sequence[bool]) -> list[bool]:
    """Of each flag, whether it is set on some rank."""
    total = sum_over_ranks(mesh, torch.tensor([float(flag) for flag in flags]))
    return [bool(count > 0) for count in total]


def join_records(mesh: Mesh, record: dict[str, str]) -> dict[str, str]:
    """What all ranks have recorded, by key; the same on all."""
    records: list[dict[str, str]] = [{} for _ in range(mesh.layout.world)]
    dist.all_gather_object(records, record)
    return {key: text for one in records for key, text in sorted(one.items())}
