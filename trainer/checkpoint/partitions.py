"""ZeRO's partitions of globally named tensors, as torch.distributed.checkpoint stores them.

ZeRO leaves a rank a contiguous range of each flattened parameter, or of the shard of it that the
tensor or expert axis leaves the rank: a partition. In the shard's own shape such a range is a few
boxes: the end of a first row, whole rows, the beginning of a last one. Moved to the shard's offset
in the global tensor, a box is what torch.distributed.checkpoint calls a chunk: each rank writes
just what it holds, and any other division of the same global tensors reads it back.
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
"""A box of a tensor: offsets and sizes along its dims."""


def chunks_of(shape: Sequence[int], start: int, stop: int) -> Iterator[Chunk]:
    """Yield the boxes of the row-major range start..stop-1 of a tensor, in the range's order.

    Elements 1..6 of a (3, 3) tensor are ((0, 1), (1, 2)), ((1, 0), (1, 3)) and ((2, 0), (1, 1)).
    """
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
    """Yield the boxes of the range start..stop-1 within one row; none if it begins past the row."""
    width = math.prod(shape[1:])
    if start < width:
        for offsets, sizes in chunks_of(shape[1:], start, stop):
            yield (row, *offsets), (1, *sizes)


class Partition(torch.Tensor):
    """The range of a shard that `data` holds, as a tensor of the global shape.

    torch.distributed.checkpoint calls `__create_write_items__`, `__create_chunk_list__` and
    `__get_tensor_shard__` for its chunks.
    """

    shard: Shard
    start: int
    """Row-major index in the shard of the first element."""
    data_1d: Tensor
    """The elements."""
    chunks: dict[torch.Size, Tensor]
    """Views of the elements by the chunks' offsets in the global tensor."""

    @staticmethod
    def __new__(cls, shard: Shard, start: int, data: Tensor) -> Partition:
        partition = torch.Tensor._make_wrapper_subclass(
            cls, torch.Size(shard.whole), dtype=data.dtype, device=data.device
        )
        partition.shard, partition.start, partition.data_1d = shard, start, data
        partition.chunks, position = {}, 0
        for offsets, sizes in chunks_of(shard.shape, start, start + data.numel()):
            count = math.prod(sizes)
            offset = [*offsets]
            offset[shard.dim] += shard.start
            partition.chunks[torch.Size(offset)] = data[position : position + count].view(sizes)
            position += count
        return partition

    def with_data(self, data: Tensor) -> Partition:
        """Return the same range, held by other memory."""
        return Partition(self.shard, self.start, data)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(f"{func} of a partition")

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        """Return what to write of the global tensor `fqn`: each chunk."""
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
        """Return the chunks to read."""
        return [ChunkStorageMetadata(o, chunk.shape) for o, chunk in self.chunks.items()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        """Return the memory of one chunk."""
        assert index.offset is not None
        return self.chunks[torch.Size(index.offset)]


def local_numel(tensor: Tensor) -> int:
    """Return the number of elements that this rank holds of a global tensor."""
    return tensor.data_1d.numel() if isinstance(tensor, Partition) else tensor.numel()


def add(tensor: Tensor, whole: Tensor) -> None:
    """Add to `tensor` what it holds of the global tensor `whole`."""
    if not isinstance(tensor, Partition):
        tensor.add_(whole)
        return
    for offsets, chunk in tensor.chunks.items():
        chunk.add_(whole[tuple(slice(o, o + s) for o, s in zip(offsets, chunk.shape, strict=True))])


def fill(tensor: Tensor, whole: Any) -> None:
    """Copy into `tensor` what it holds of `whole`, and read no more of it.

    `whole` is the global tensor as a file has it: an object that is read where it is indexed.
    """
    if not isinstance(tensor, Partition):
        tensor.copy_(whole[...])
        return
    for offsets, chunk in tensor.chunks.items():
        region = tuple(slice(o, o + s) for o, s in zip(offsets, chunk.shape, strict=True))
        chunk.copy_(whole[region] if region else whole[...])
