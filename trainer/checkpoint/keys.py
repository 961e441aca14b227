"""The keys of a state: `kind/global.name`. Only this module composes and splits them.

weights/encoder.layers.0.attention.query     fp32 master weights
exp_avg/...  exp_avg_sq/...                  AdamW's moments of the same parameter
ema/...                                      its moving average, where train.ema_decay keeps one
buffers/encoder.positions.table              tensors that are no parameters
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS, BUFFERS, AVERAGE = "weights", "buffers", "ema"

PARAMETER_KINDS = (WEIGHTS, "exp_avg", "exp_avg_sq")
"""Kinds that are stored of each parameter, beside its average where one is kept."""

NETWORK_KINDS = (WEIGHTS, BUFFERS)
"""Kinds that a network consists of: all that another run or an export takes."""

Value = TypeVar("Value")


def make_key(kind: str, name: str) -> str:
    """Return the key of the tensor that is `kind` of the parameter or buffer `name`."""
    return f"{kind}/{name}"


def split_key(key: str) -> tuple[str, str]:
    """Return the kind and the global name of a key."""
    kind, _, name = key.partition("/")
    return kind, name


def global_name(key: str) -> str:
    """Return a key's global name: `encoder.x` of `weights/encoder.x`."""
    return split_key(key)[1]


def averaged(key: str) -> str:
    """Return the key of a weight's moving average; any other key as it is."""
    kind, name = split_key(key)
    return make_key(AVERAGE, name) if kind == WEIGHTS else key


ADAPTERS = ".adapters."
"""Part of the global names of low-rank adapters."""


def is_of_adapter(key: str) -> bool:
    """Whether a key is of a factor of an adapter."""
    return ADAPTERS in key


def factors_of(key: str) -> tuple[str, str]:
    """Return the keys of the two factors of a matrix's adapter: down and up."""
    module, _, leaf = key.rpartition(".")
    return f"{module}{ADAPTERS}{leaf}.down", f"{module}{ADAPTERS}{leaf}.up"


def of_kinds(state: Mapping[str, Value], *kinds: str) -> dict[str, Value]:
    """Return the entries of a state whose keys are of one of `kinds`."""
    return {key: value for key, value in state.items() if split_key(key)[0] in kinds}


def buffers_of(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's buffers by their keys."""
    return {make_key(BUFFERS, name): buffer for name, buffer in network.named_buffers()}


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's weights and buffers by their keys, detached."""
    weights = {make_key(WEIGHTS, name): p.detach() for name, p in network.named_parameters()}
    return weights | buffers_of(network)
