"""The fp32 weights and AdamW moments that a rank holds inside DeepSpeed's ZeRO optimizers.

They touch members that DeepSpeed does not promise to keep; PRIVATE_MEMBERS lists each, and a
test names the ones that another version has moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trainer.checkpoint.fragments import Fragment

PRIVATE_MEMBERS = {
    "deepspeed.runtime.zero.stage_1_and_2": (
        "_hp_optimizer_states_linked",
        "_lazy_init_hp_params_optimizer_state",
        "single_partition_of_fp32_groups",
        "update_lp_params",
    ),
    "deepspeed.runtime.bf16_optimizer": (
        "_hp_optimizer_states_linked",
        "_lazy_init_hp_params_optimizer_state",
        "fp32_groups_flat_partition",
        "update_lp_params",
    ),
    "deepspeed.utils.tensor_fragment": ("lp_fragment_address", "get_hp_fragment"),
    "deepspeed.utils.mixed_precision_linkage": ("_hp_mapping",),
    "deepspeed.ops": ("__compatible_ops__",),
    "deepspeed.runtime.pipe.engine": ("total_loss",),
}
"""Module -> names that are used of it or of its objects."""

KINDS = {"weights": None, "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
"""What is stored of a parameter -> DeepSpeed's key for it."""


def fragments(network: nn.Module, optimizer: Any) -> dict[str, Fragment]:
    """`kind/global.name` -> what this rank holds of it; views, so that loading fills them."""
    _link(optimizer)
    return {
        f"{kind}/{name}": Fragment(parameter.shape, held.lp_fragment_address.start,
                                   held.get_hp_fragment(key).detach())
        for name, parameter, held in _held(network)
        for kind, key in KINDS.items()
    }  # fmt: skip


def _held(network: nn.Module) -> Iterator[tuple[str, nn.Parameter, Any]]:
    for name, parameter in network.named_parameters():
        if parameter._hp_mapping is not None:  # type: ignore[attr-defined]
            yield name, parameter, parameter._hp_mapping  # type: ignore[attr-defined]


def allocate(optimizer: Any, steps_done: int) -> None:
    """Make the moments that AdamW would make in its first step, for a checkpoint to fill."""
    for flat in _flats(optimizer):
        optimizer.optimizer.state[flat] = {
            "step": torch.tensor(float(steps_done)),
            "exp_avg": torch.zeros_like(flat.data),
            "exp_avg_sq": torch.zeros_like(flat.data),
        }


def refresh_weights(optimizer: Any) -> None:
    """Copy the fp32 weights into the network's, on all ranks."""
    optimizer.update_lp_params()


def _flats(optimizer: Any) -> list[Tensor]:
    if hasattr(optimizer, "fp32_groups_flat_partition"):
        return list(optimizer.fp32_groups_flat_partition)
    return list(optimizer.single_partition_of_fp32_groups)


def _link(optimizer: Any) -> None:
    """Connect parameters with their moments; DeepSpeed itself links only the first group's."""
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()
