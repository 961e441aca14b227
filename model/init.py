"""Initial weights that depend on (seed, global name, expert) alone.

Each parameter is drawn by its own CPU generator, so every layout of ranks starts bit-equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Init:
    """How one parameter starts: normal with `std`, cut at three deviations, around `mean`."""

    std: float = 0.0
    mean: float = 0.0
    stacked: bool = False
    """Dimension 0 counts experts; each expert is drawn by a generator of its own."""


class Initialised(Protocol):
    """A module that says how its own parameters start, by their local names."""

    def initial(self) -> Mapping[str, Init]: ...


def _rules(module: nn.Module) -> Mapping[str, Init]:
    if hasattr(module, "initial"):
        return cast(Initialised, module).initial()
    if isinstance(module, nn.Linear):
        return {"weight": Init(std=module.in_features**-0.5), "bias": Init()}
    if isinstance(module, nn.LayerNorm):
        return {"weight": Init(mean=1.0), "bias": Init()}
    raise TypeError(f"{type(module).__name__} has parameters and no rule for their initial values")


def _generator(seed: int, name: str, expert: int) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{name}/{expert}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw(name: str, shape: torch.Size, init: Init, seed: int) -> Tensor:
    """The whole fp32 initial value of the parameter with global name `name`."""
    if init.std == 0.0:
        return torch.full(shape, init.mean)
    value = torch.empty(shape)
    for expert, part in enumerate(value.unbind(0) if init.stacked else (value,)):
        nn.init.trunc_normal_(
            part, init.mean, init.std, init.mean - 3 * init.std, init.mean + 3 * init.std,
            generator=_generator(seed, name, expert),
        )  # fmt: skip
    return value


def initialise(network: nn.Module, seed: int) -> None:
    """Fill all parameters and buffers of `network` in place."""
    with torch.no_grad():
        for prefix, module in network.named_modules():
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            rules = _rules(module) if own else {}
            for leaf, tensor in own:
                name = f"{prefix}.{leaf}" if prefix else leaf
                tensor.copy_(draw(name, tensor.shape, rules[leaf], seed))
