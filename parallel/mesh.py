"""The mesh: a layout as one rank stands in it, and the process group of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from parallel import flight_recorder
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


LATE = timedelta(minutes=30)
"""How much later than others a rank may come to its first collective of a group."""


def init_mesh(
    layout: Layout,
    rank: int,
    device: torch.device,
    store: Store | None = None,
    backend: str = "gloo",
    seconds: float | None = None,
) -> Mesh:
    """Form the process group of all ranks, which have met at `store`; None where it is formed.

    A collective that takes longer than `seconds`, or else than the backend's own limit, fails.
    """
    if store is not None:
        flight_recorder.enable()
        # NCCL's groups meet at the store in their first collective, which one rank may reach long
        # before another; the store's own limit is the short one of the rendezvous.
        store.set_timeout(timedelta(seconds=seconds) if seconds else LATE)
        dist.init_process_group(
            backend,
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


def local_device(local_rank: int, kind: str = "auto") -> torch.device:
    """Return this rank's device, a CPU where `kind` is "cpu".

    Ranks beyond the number of GPUs share them.
    """
    if kind != "cpu" and torch.cuda.is_available():
        index = local_rank % torch.cuda.device_count()
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    return torch.device("cpu")


def device_name(device: torch.device) -> str:
    """Return what tells a device from all others of the run: a GPU's UUID; "cpu" for a CPU."""
    if device.type != "cuda":
        return device.type
    return str(torch.cuda.get_device_properties(device).uuid)


def backend_for(names: Sequence[str]) -> str:
    """Return nccl where each rank has a GPU of its own, else gloo, for CPUs and shared GPUs.

    `names` are the ranks' devices by `device_name`: a rank may see one GPU only, or another's.
    """
    return "gloo" if "cpu" in names or len(set(names)) < len(names) else "nccl"
