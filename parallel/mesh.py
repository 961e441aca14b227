"""The mesh: a layout as one rank stands in it, and the process group of all ranks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from parallel.layout import Coordinates, Layout


@dataclass(frozen=True)
class Mesh:
    """The mesh of all ranks, seen from one of them."""

    layout: Layout
    rank: int
    device: torch.device

    @property
    def coordinates(self) -> Coordinates:
        """This rank's position on each axis."""
        return self.layout.coordinates(self.rank)

    @property
    def is_main(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    @property
    def sees_output(self) -> bool:
        """Whether the network's output arrives here: at one rank of each replica."""
        here = self.coordinates
        return here.pipeline == self.layout.pipeline - 1 and here.tensor == 0


def init_mesh(
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


def is_initialised() -> bool:
    """Whether this process is in the process group of all ranks already."""
    return dist.is_initialized()


def destroy_mesh() -> None:
    """Leave the process group, all ranks together: none closes what another still reads from."""
    if dist.is_initialized():
        uses_nccl = dist.get_backend() == "nccl"
        dist.barrier(device_ids=[torch.cuda.current_device()] if uses_nccl else None)
        dist.destroy_process_group()


def local_device(local_rank: int) -> torch.device:
    """Return this rank's device; ranks beyond the number of GPUs share them."""
    if torch.cuda.is_available():
        index = local_rank % torch.cuda.device_count()
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    return torch.device("cpu")


def backend(device: torch.device, local_world: int) -> str:
    """Return nccl where each rank has a GPU of its own, else gloo, for CPUs and shared GPUs."""
    own = device.type == "cuda" and local_world <= torch.cuda.device_count()
    return "nccl" if own else "gloo"
