"""Parts of globally named tensors, as torch.distributed.checkpoint stores them.

ZeRO gives a rank a contiguous range of each flattened parameter, or of the part of it that the
tensor or expert axis has left the rank. In the part's own shape such a range is a few boxes: the
end of a first row, whole rows, the beginning of a last one. Moved to the part's place in the whole,
a box is what torch.distributed.checkpoint calls a chunk: each rank writes just what it holds, and
any other division of the same global tensors reads it back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from model.init import Shard

Chunk = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes."""


def chunks_of(shape: Sequence[int], start: int, stop: int) -> Iterator[Chunk]:
    """The boxes of the row-major range start..stop-1 of a tensor, in the range's order."""
    if start >= stop:
        return
    if len(shape) <= 1:
        yield ((start,), (stop - start,)) if shape else ((), ())
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:  # within one row
        yield from _in_row(shape, last, start - last * row, stop - last * row)
        return
    yield from _in_row(shape, first - 1, start - (first - 1) * row, row)
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    yield from _in_row(shape, last, 0, stop - last * row)


def _in_row(shape: Sequence[int], row: int, start: int, stop: int) -> Iterator[Chunk]:
    width = math.prod(shape[1:])
    if start < width:
        for offsets, sizes in chunks_of(shape[1:], start, stop):
            yield (row, *offsets), (1, *sizes)


class Partition(torch.Tensor):
    """The range of a part of a global tensor that `data` holds, `start` its first element.

    torch.distributed.checkpoint asks a tensor for its chunks by the three methods below.
    """

    shard: Shard
    start: int
    data_1d: Tensor
    chunks: dict[torch.Size, Tensor]
    """By their offsets in the whole."""

    @staticmethod
    def __new__(cls, shard: Shard, start: int, data: Tensor) -> Partition:
        partition = torch.Tensor._make_wrapper_subclass(
            cls, torch.Size(shard.whole), dtype=data.dtype, device=data.device
        )
        partition.shard, partition.start, partition.data_1d = shard, start, data
        partition.chunks, position = {}, 0
        for offsets, sizes in chunks_of(shard.shape, start, start + data.numel()):
            count = math.prod(sizes)
            place = [*offsets]
            place[shard.dim] += shard.start
            partition.chunks[torch.Size(place)] = data[position : position + count].view(sizes)
            position += count
        return partition

    def holding(self, data: Tensor) -> Partition:
        """The same range, held by other memory."""
        return Partition(self.shard, self.start, data)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(f"{func} of a fragment")

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(fqn, offsets, index),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(offsets, chunk.shape),
                    properties=TensorProperties.create_from_tensor(chunk),
                    size=self.shape,
                ),
            )
            for index, (offsets, chunk) in enumerate(self.chunks.items())
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(o, chunk.shape) for o, chunk in self.chunks.items()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self.chunks[torch.Size(index.offset)]


def elements(tensor: Tensor) -> int:
    """That are held here of a global tensor."""
    return tensor.data_1d.numel() if isinstance(tensor, Partition) else tensor.numel()


def fill(tensor: Tensor, whole: Any) -> None:
    """From a whole tensor that is read where it is indexed, no more of it than is held here."""
    if not isinstance(tensor, Partition):
        tensor.copy_(whole[...])
        return
    for offsets, chunk in tensor.chunks.items():
        region = tuple(slice(o, o + s) for o, s in zip(offsets, chunk.shape, strict=True))
        chunk.copy_(whole[region] if region else whole[...])
