"""Gradients under ZeRO 1 in fp32: one copy on their way from the backward pass to AdamW.

DeepSpeed's own way serves all stages and precisions: it copies each gradient into a bucket that is
made anew in each step, from there into a partition, flattens what it has so collected, takes norms
by way of fp64 copies, and keeps fp32 weights twice. On a CPU that costs up to half as much as the
network's own arithmetic. Here a parameter's gradient is copied once, to its place in the flat
buffer that is reduced and that AdamW reads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.gloo import sum_partition

BLOCK = 4096
"""Elements that are summed in fp32; sums of blocks are added in fp64."""


class FlatGradients:
    """Takes over the gradients of DeepSpeed's ZeRO 1 optimizer, which must be built by then.

    AdamW moves the network's weights themselves from then on.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._flats = [torch.zeros_like(flat) for flat in optimizer.bit16_groups_flat]
        """Each parameter group's gradients, laid end to end as DeepSpeed lays its weights."""
        self._places = [
            list(zip(group, _views(group, weights, flat), strict=True))
            for group, weights, flat in zip(
                optimizer.bit16_groups, optimizer.bit16_groups_flat, self._flats, strict=True
            )
        ]
        self._partitions = [self._partition(number) for number in range(len(self._flats))]
        replicas = [dist.get_world_size(group) for group in optimizer.real_dp_process_group]
        self._room: Tensor | None = None
        """What other ranks' gradients arrive in, where they are summed by `parallel.gloo`."""
        if dist.get_backend() == "gloo" and max(replicas) > 1:
            self._room = torch.empty(max(flat.numel() for flat in self._flats))
        self._norm_of = optimizer.get_grad_norm_direct
        self._clip = optimizer.unscale_and_clip_grads
        self._share_weights()
        optimizer.reduce_gradients = self.reduce
        optimizer.get_grad_norm_direct = self.norm_of
        optimizer.unscale_and_clip_grads = self.clip

    def _share_weights(self) -> None:
        """Let the fp32 weights that AdamW moves be the network's, not copies of them."""
        optimizer = self._optimizer
        for number, weights in enumerate(optimizer.single_partition_of_fp32_groups):
            rank = _rank(optimizer, number)
            weights.data = optimizer.parallel_partitioned_bit16_groups[number][rank].data
        optimizer._link_all_hp_params()

    def reduce(self, pipeline_parallel: bool = False) -> None:
        """Bring the gradients' means over the data axis into this rank's partitions.

        Takes the place of `reduce_gradients`, which is called once a step.
        """
        from deepspeed import comm

        optimizer = self._optimizer
        replicas = comm.get_world_size(group=optimizer.dp_process_group)
        for number, places in enumerate(self._places):
            for parameter, place in places:
                if parameter.grad is None:
                    place.zero_()
                else:
                    torch.div(parameter.grad, replicas, out=place)
                parameter.grad = None
            group = optimizer.real_dp_process_group[number]
            if comm.get_world_size(group=group) > 1:
                if self._room is not None:
                    sum_partition(self._flats[number], self._room, group)
                else:
                    comm.all_reduce(self._flats[number], group=group)
            optimizer.averaged_gradients[number] = self._partitions[number]

    def _partition(self, number: int) -> list[Tensor]:
        """Return this rank's part of each parameter's gradient, for those it has a part of."""
        from deepspeed.runtime.zero.stage_1_and_2 import GradPartitionBufferGroup

        size = self._optimizer.partition_size[number]
        start = _rank(self._optimizer, number) * size
        flat = self._flats[number]
        parts = []
        for _, place in self._places[number]:
            begin = place.storage_offset()
            end = min(begin + place.numel(), start + size)
            begin = max(begin, start)
            if begin < end:
                parts.append(flat[begin:end])
        return GradPartitionBufferGroup(parts, flat[start : start + size])

    def norm_of(self, gradients: list[Tensor], parameters: Any, norm_type: float = 2) -> Tensor:
        """Return the norm over all ranks, by DeepSpeed's rules of what counts on which of them."""
        return self._norm_of([norm(gradient) for gradient in gradients], parameters, norm_type)

    def clip(self, flats: list[Tensor], total: Tensor) -> None:
        """Scale gradients whose norm is above the limit, and leave all others untouched."""
        if not 0 <= float(total) + 1e-6 <= self._optimizer.clip_grad:
            self._clip(flats, total)


def norm(tensor: Tensor) -> Tensor:
    """Return the Euclidean norm as fp64, without an fp64 copy of the tensor."""
    flat = tensor.reshape(-1)
    whole = flat.numel() - flat.numel() % BLOCK
    blocks = torch.linalg.vector_norm(flat[:whole].view(-1, BLOCK), dim=1)
    rest = torch.linalg.vector_norm(flat[whole:].double())
    return torch.linalg.vector_norm(torch.cat([blocks.double(), rest[None]]))


def _rank(optimizer: Any, number: int) -> int:
    """Return this rank's number among those that a parameter group is partitioned over."""
    from deepspeed import comm

    return comm.get_rank(group=optimizer.real_dp_process_group[number])


def _views(group: list[Tensor], weights: Tensor, flat: Tensor) -> list[Tensor]:
    """Return the places in `flat` of parameters whose data are views of `weights`."""
    start = weights.storage_offset()
    return [
        flat[offset : offset + parameter.numel()].view(parameter.shape)
        for parameter in group
        for offset in [parameter.data.storage_offset() - start]
    ]
