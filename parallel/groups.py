"""The process group of a run, and what one rank is in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.layout import Coordinates, Layout


@dataclass(frozen=True)
class Place:
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


def local_device(local_rank: int) -> torch.device:
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def join(layout: Layout, rank: int, local_rank: int) -> Place:
    """Meet the other ranks at MASTER_ADDR:MASTER_PORT, over NCCL on GPUs and gloo on CPUs."""
    device = local_device(local_rank)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=layout.world)
    return Place(layout, rank, device)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(place: Place, values: Tensor) -> Tensor:
    """The sum of `values` over all ranks, in fp64."""
    total = values.to(place.device, torch.float64)
    dist.all_reduce(total)
    return total


def any_rank(place: Place, flag: bool) -> bool:
    """Whether `flag` is set on some rank: the same answer on all."""
    return bool(sum_over_ranks(place, torch.tensor(float(flag))) > 0)


def join_records(place: Place, record: dict[str, str]) -> dict[str, str]:
    """What all ranks have recorded, by key; the same on all."""
    records: list[dict[str, str]] = [{} for _ in range(place.layout.world)]
    dist.all_gather_object(records, record)
    return {key: text for one in records for key, text in sorted(one.items())}


def agree(place: Place, what: str, value: int) -> None:
    """Raises RuntimeError naming the ranks that have another `value` than rank 0."""
    values = torch.zeros(place.layout.world)
    values[place.rank] = value
    seen = [int(v) for v in sum_over_ranks(place, values)]
    others = {rank: v for rank, v in enumerate(seen) if v != seen[0]}
    if others:
        raise RuntimeError(
            f"the ranks disagree on {what}: rank 0 has {seen[0]}, "
            f"{', '.join(f'rank {rank} {v}' for rank, v in others.items())}; "
            "do all machines see the same run folder?"
        )
