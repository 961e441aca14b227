"""The fp32 weights and AdamW moments that a rank holds inside DeepSpeed's ZeRO optimizers.

The members that are read here are DeepSpeed's own, without a promise: parallel/private_members.py
lists each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model.init import Shard
from trainer.checkpoint.keys import AVERAGE, PARAMETER_KINDS, WEIGHTS, buffers_of, make_key
from trainer.checkpoint.partitions import Partition

Held = tuple[int, Callable[[str | None], Tensor]]
"""Where this rank's partition of a flattened shard begins, and its values by DeepSpeed's key."""


def kinds(*, averages: bool) -> tuple[str, ...]:
    """Return what is stored of each parameter; `averages` says whether its average is."""
    return (*PARAMETER_KINDS, AVERAGE) if averages else PARAMETER_KINDS


def shapes(network: nn.Module, *, averages: bool) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all that is kept of a whole network, by key."""
    kept = {
        make_key(kind, name): tuple(parameter.shape)
        for name, parameter in network.named_parameters()
        for kind in (kinds(averages=averages) if parameter.requires_grad else (WEIGHTS,))
    }
    return kept | {key: tuple(buffer.shape) for key, buffer in buffers_of(network).items()}


def partitions(
    network: nn.Module, optimizer: Any, shards: Mapping[str, Shard], rank: int
) -> dict[str, Partition]:
    """Return what this rank holds of each parameter, by key: views, so that loading fills them.

    `rank` counts the ranks that ZeRO partitions parameters over. Before the first step that moves
    the weights AdamW has no moments: they are made here, all zero.
    """
    averages = optimizer.optimizer.averages
    for flat in _flats(optimizer):
        if not optimizer.optimizer.state.get(flat):
            optimizer.optimizer.state[flat] = _moments(flat, 0, averages=averages)
    if _is_stage_3(optimizer):
        held = _held_of_each(network, optimizer, rank)
    else:
        held = _held_of_all(network, optimizer)
    return {
        # DeepSpeed calls the optimizer's states by its keys, and the weights None.
        make_key(kind, name): Partition(
            shards[name], start, values(None if kind == WEIGHTS else kind).detach()
        )
        for name, (start, values) in held
        for kind in kinds(averages=averages)
    }


def _trained(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, one) for name, one in network.named_parameters() if one.requires_grad)


def _held_of_all(network: nn.Module, optimizer: Any) -> Iterator[tuple[str, Held]]:
    """Under ZeRO 1 and 2: a rank's range of all parameters laid end to end."""
    # DeepSpeed itself links only the first group's moments with their parameters.
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()
    for name, parameter in _trained(network):
        linked = parameter._hp_mapping  # type: ignore[attr-defined]
        if linked is not None:
            yield name, (linked.lp_fragment_address.start, linked.get_hp_fragment)


def _held_of_each(network: nn.Module, optimizer: Any, rank: int) -> Iterator[tuple[str, Held]]:
    """Under ZeRO 3: a range of each parameter, the last ones padded."""
    for name, parameter in _trained(network):
        start, count = own_range(parameter, rank)
        if count:
            yield name, (start, _values(optimizer, parameter, count))


def own_range(parameter: Any, rank: int) -> tuple[int, int]:
    """Return where a rank's range of a parameter begins under ZeRO 3, and its number of elements.

    The last ranks' are padded, or nothing else.
    """
    size = parameter.ds_tensor.numel()
    return rank * size, max(0, min(size, parameter.ds_numel - rank * size))


def _values(optimizer: Any, parameter: nn.Parameter, count: int) -> Callable[[str | None], Tensor]:
    def values(key: str | None) -> Tensor:
        state, _ = optimizer._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=key
        )
        return state[:count]

    return values


def allocate(optimizer: Any, steps_applied: int) -> None:
    """Make the moments that AdamW would make in its first step, for a checkpoint to fill."""
    averages = optimizer.optimizer.averages
    for flat in _flats(optimizer):
        optimizer.optimizer.state[flat] = _moments(flat, steps_applied, averages=averages)


def _moments(flat: Tensor, steps_applied: int, *, averages: bool) -> dict[str, Tensor]:
    """Return AdamW's state of one tensor: its count of steps, moments of zero, and its average."""
    state = {
        "step": torch.tensor(float(steps_applied), device=flat.device),  # as fused AdamW has it
        "exp_avg": torch.zeros_like(flat.data),
        "exp_avg_sq": torch.zeros_like(flat.data),
    }
    return state | ({AVERAGE: flat.data.clone()} if averages else {})


def begin_average(optimizer: Any) -> None:
    """Have the average of the weights begin at what they are now, where one is kept."""
    for flat in _flats(optimizer) if optimizer.optimizer.averages else ():
        optimizer.optimizer.state[flat][AVERAGE].copy_(flat.data)


def swap_average(optimizer: Any) -> None:
    """Exchange the weights and their average, on all ranks."""
    for flat in _flats(optimizer):
        average = optimizer.optimizer.state[flat][AVERAGE]
        weights = flat.data.clone()
        flat.data.copy_(average)
        average.copy_(weights)
    refresh_weights(optimizer)


def refresh_weights(optimizer: Any) -> None:
    """Copy the fp32 weights into the network's, on all ranks."""
    if not _is_stage_3(optimizer):
        optimizer.update_lp_params()
        return
    pairs = zip(
        optimizer.fp32_partitioned_groups_flat, optimizer.fp16_partitioned_groups_flat, strict=True
    )
    for precise, used in pairs:
        used.data.copy_(precise.data)
    kept = optimizer.persistent_parameters
    if kept:  # small parameters stay whole on every rank, and are gathered only if they are not
        kept[0].partition(kept)
        kept[0].all_gather(kept)


def _is_stage_3(optimizer: Any) -> bool:
    return hasattr(optimizer, "fp32_partitioned_groups_flat")


def _flats(optimizer: Any) -> list[Tensor]:
    for name in ("fp32_partitioned_groups_flat", "fp32_groups_flat_partition"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return list(optimizer.single_partition_of_fp32_groups)
