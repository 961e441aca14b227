"""What one division of a tensor over ranks writes, any other reads."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from model.init import Shard
from tests import ranks
from trainer.checkpoint.partitions import Partition, chunks_of
from trainer.checkpoint.tensor_files import Storage, read


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 4), (2, 1, 2, 3), (1, 5), (5, 1, 2)])
def test_boxes_cover_each_range_in_its_order(shape: tuple[int, ...]) -> None:
    count = math.prod(shape)
    whole = torch.arange(count).view(shape)
    for start, stop in itertools.combinations(range(count + 1), 2):
        parts = list(chunks_of(shape, start, stop))
        slices = [tuple(map(slice, o, map(sum, zip(o, s, strict=True)))) for o, s in parts]
        found = torch.cat([whole[region].flatten() for region in slices])
        assert found.tolist() == list(range(start, stop))
        assert len(parts) <= max(1, 2 * len(shape) - 1)


WHOLE = torch.Size([6, 12, 4])


DIVISIONS: dict[str, list[tuple[Shard, int, int]]] = {
    "whole": [(Shard.all_of(WHOLE), 0, 288)],
    "uneven ranges": [
        (Shard.all_of(WHOLE), 0, 101),
        (Shard.all_of(WHOLE), 101, 133),
        (Shard.all_of(WHOLE), 133, 288),
    ],
    "experts": [(Shard(WHOLE, 0, first, 2), 0, 96) for first in (0, 2, 4)],
    "width, two ranges each": [
        (Shard(WHOLE, 1, first, 6), start, stop)
        for first in (0, 6)
        for start, stop in ((0, 31), (31, 144))
    ],
    "last dimension": [(Shard(WHOLE, 2, first, 1), 0, 72) for first in range(4)],
}
"""Of each rank: which part it holds, and which range of that part's elements."""


def _save_division(rank: int, world: int, folder: Path, division: str) -> None:
    dist.init_process_group("gloo")
    shard, start, stop = DIVISIONS[division][rank]
    whole = torch.arange(WHOLE.numel(), dtype=torch.float32).view(WHOLE)
    held = whole.narrow(shard.dim, shard.start, shard.size).flatten()[start:stop].clone()
    if rank == 0:
        folder.mkdir()
    dist.barrier()
    Storage().write(folder, {"x": Partition(shard, start, held)}, {"x": tuple(WHOLE)}, None)


def _load_division(rank: int, world: int, folder: Path, division: str) -> bool:
    dist.init_process_group("gloo")
    shard, start, stop = DIVISIONS[division][rank]
    partition = Partition(shard, start, torch.zeros(stop - start))
    read(folder, {"x": partition})
    whole = torch.arange(WHOLE.numel(), dtype=torch.float32).view(WHOLE)
    expected = whole.narrow(shard.dim, shard.start, shard.size).flatten()[start:stop]
    return torch.equal(partition.data_1d, expected)


@pytest.mark.parametrize("saved", DIVISIONS)
def test_one_division_of_a_tensor_is_read_by_any_other(tmp_path: Path, saved: str) -> None:
    ranks.run(_save_division, len(DIVISIONS[saved]), tmp_path / "c", saved)
    for division, members in DIVISIONS.items():
        assert all(ranks.run(_load_division, len(members), tmp_path / "c", division)), division
