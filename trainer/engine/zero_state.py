"""The fp32 weights and AdamW moments that a rank holds inside DeepSpeed's ZeRO optimizers.

They touch members that DeepSpeed does not promise to keep; PRIVATE_MEMBERS lists each, and a
test names the ones that another version has moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model.init import Shard
from trainer.checkpoint.partitions import Partition

PRIVATE_MEMBERS = {
    "deepspeed.runtime.zero.stage_1_and_2": (
        "_hp_optimizer_states_linked",
        "_lazy_init_hp_params_optimizer_state",
        "single_partition_of_fp32_groups",
        "_global_grad_norm",
        "update_lp_params",
    ),
    "deepspeed.runtime.zero.stage3": (
        "_get_fp32_opt_state_partition",
        "_global_grad_norm",
        "fp16_partitioned_groups_flat",
        "fp32_partitioned_groups_flat",
        "persistent_parameters",
    ),
    "deepspeed.runtime.zero.partition_parameters": ("ds_numel", "ds_tensor"),
    "deepspeed.runtime.bf16_optimizer": (
        "_hp_optimizer_states_linked",
        "_lazy_init_hp_params_optimizer_state",
        "fp32_groups_flat_partition",
        "_global_grad_norm",
        "update_lp_params",
    ),
    "deepspeed.utils.tensor_fragment": ("lp_fragment_address", "get_hp_fragment"),
    "deepspeed.utils.mixed_precision_linkage": ("_hp_mapping",),
    "deepspeed.ops": ("__compatible_ops__",),
    "deepspeed.runtime.pipe.engine": ("total_loss",),
    "deepspeed.runtime.pipe.module": ("tied_comms", "tied_modules", "ds_pipe_replicated"),
}
"""Module -> names that are used of it or of its objects."""

KINDS = {"weights": None, "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
"""What is stored of a parameter -> DeepSpeed's key for it."""

Held = tuple[int, Callable[[str | None], Tensor]]
"""Of a parameter's flattened part, where what this rank holds begins, and the kinds of it."""


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of all that is kept of a whole network, by `kind/global.name`."""
    kept = {
        f"{kind}/{name}": tuple(parameter.shape)
        for name, parameter in network.named_parameters()
        for kind in KINDS
    }
    return kept | {f"buffers/{name}": tuple(b.shape) for name, b in network.named_buffers()}


def partitions(
    network: nn.Module, optimizer: Any, shards: Mapping[str, Shard], rank: int
) -> dict[str, Partition]:
    """`kind/global.name` -> what this rank holds of it; views, so that loading fills them.

    `rank` counts the ranks that ZeRO spreads parameters over.
    """
    held = (
        _held_whole(network, optimizer, rank)
        if _is_stage_3(optimizer)
        else _held(network, optimizer)
    )
    return {
        f"{kind}/{name}": Partition(shards[name], start, data(key).detach())
        for name, (start, data) in held
        for kind, key in KINDS.items()
    }


def _held(network: nn.Module, optimizer: Any) -> Iterator[tuple[str, Held]]:
    """ZeRO 1 and 2: a rank's share of all parameters laid end to end."""
    # DeepSpeed itself links only the first group's moments with their parameters.
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()
    for name, parameter in network.named_parameters():
        linked = parameter._hp_mapping  # type: ignore[attr-defined]
        if linked is not None:
            yield name, (linked.lp_fragment_address.start, linked.get_hp_fragment)


def _held_whole(network: nn.Module, optimizer: Any, rank: int) -> Iterator[tuple[str, Held]]:
    """ZeRO 3: a share of each parameter, the last ones padded."""
    for name, parameter in network.named_parameters():
        share = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        start = rank * share
        count = min(share, parameter.ds_numel - start)  # type: ignore[attr-defined]
        if count > 0:
            yield name, (start, _share(optimizer, parameter, count))


def _share(optimizer: Any, parameter: nn.Parameter, count: int) -> Callable[[str | None], Tensor]:
    def data(key: str | None) -> Tensor:
        state, _ = optimizer._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=key
        )
        return state[:count]

    return data


def allocate(optimizer: Any, steps_applied: int) -> None:
    """Make the moments that AdamW would make in its first step, for a checkpoint to fill."""
    for flat in _flats(optimizer):
        optimizer.optimizer.state[flat] = {
            "step": torch.tensor(float(steps_applied)),
            "exp_avg": torch.zeros_like(flat.data),
            "exp_avg_sq": torch.zeros_like(flat.data),
        }


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
    if kept:  # small parameters stay whole on every rank
        kept[0].all_gather(kept)


def _is_stage_3(optimizer: Any) -> bool:
    return hasattr(optimizer, "fp32_partitioned_groups_flat")


def _flats(optimizer: Any) -> list[Tensor]:
    for name in ("fp32_partitioned_groups_flat", "fp32_groups_flat_partition"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return list(optimizer.single_partition_of_fp32_groups)
