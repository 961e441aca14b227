"""Initialisation: weights that depend on (seed, global name, expert) alone.

Each parameter is drawn by its own CPU generator, so every layout of ranks starts bit-equal. A
module that is made by itself draws its weights from torch's generator, as torch's modules do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Init:
    """How one parameter starts: normal around `mean`, truncated at three deviations of `std`."""

    std: float = 0.0
    """Standard deviation; with 0 all elements start as `mean`."""
    mean: float = 0.0
    stacked: bool = False
    """Whether dimension 0 counts experts, each of which is drawn by its own generator."""


@dataclass(frozen=True)
class Shard:
    """The slice of a whole parameter that a rank holds where a layer is split over ranks."""

    whole: tuple[int, ...]
    """Shape of the whole parameter."""
    dim: int
    """Dimension that is split."""
    start: int
    """First index of the shard in `dim`."""
    size: int
    """Number of indices of the shard in `dim`."""

    @property
    def shape(self) -> torch.Size:
        """Shape of the shard."""
        return torch.Size([*self.whole[: self.dim], self.size, *self.whole[self.dim + 1 :]])

    @classmethod
    def all_of(cls, whole: torch.Size) -> Shard:
        """Return the shard of a parameter of shape `whole` that is not split."""
        return cls(tuple(whole), 0, 0, whole[0])


class Initialised(Protocol):
    """A module that defines how its own parameters start."""

    def initial(self) -> Mapping[str, Init]:
        """Return how the module's own parameters and buffers start, by their local names."""


def _rules(module: nn.Module) -> Mapping[str, Init]:
    """Return how the module's own parameters start, by their local names."""
    if isinstance(module, nn.Linear):
        return {"weight": Init(std=module.in_features**-0.5), "bias": Init()}
    if isinstance(module, nn.LayerNorm):
        return {"weight": Init(mean=1.0), "bias": Init()}
    return cast(Initialised, module).initial()


def seed_of(*parts: object) -> int:
    """Return a seed for a random generator that depends on all `parts` and on their order.

    Each part counts as its text. The seed has 63 bits, and is the same on every machine.
    """
    text = "/".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _generator(*parts: object) -> torch.Generator:
    """Return a CPU generator seeded by `seed_of` the parts."""
    return torch.Generator().manual_seed(seed_of(*parts))


def draw(name: str, shard: Shard, init: Init, seed: int) -> Tensor:
    """Return `shard` of the initial value, in fp32, of the parameter with global name `name`."""
    if init.std == 0.0:
        return torch.full(shard.shape, init.mean)
    if not init.stacked:
        value = _normal(shard.whole, init, _generator(seed, name, 0))
        return value.narrow(shard.dim, shard.start, shard.size)
    # Only the shard's experts are drawn: there may be many.
    first, last = (shard.start, shard.start + shard.size) if shard.dim == 0 else (0, shard.whole[0])
    value = torch.empty(shard.shape)
    for expert, into in zip(range(first, last), value.unbind(0), strict=True):
        drawn = _normal(shard.whole[1:], init, _generator(seed, name, expert))
        into.copy_(drawn.narrow(shard.dim - 1, shard.start, shard.size) if shard.dim else drawn)
    return value


def _normal(shape: tuple[int, ...], init: Init, generator: torch.Generator) -> Tensor:
    """Draw from the normal distribution of `init`."""
    return _normal_(torch.empty(shape), init, generator)


def _normal_(tensor: Tensor, init: Init, generator: torch.Generator | None = None) -> Tensor:
    """Fill `tensor` from the normal distribution of `init`."""
    low, high = init.mean - 3 * init.std, init.mean + 3 * init.std
    return nn.init.trunc_normal_(tensor, init.mean, init.std, low, high, generator=generator)


_IS_POSTPONED: ContextVar[bool] = ContextVar("initialisation is postponed", default=False)


@contextmanager
def postponed(value: bool = True) -> Iterator[None]:
    """Within, modules are made without drawing their weights: `initialise` draws them by name."""
    token = _IS_POSTPONED.set(value)
    try:
        yield
    finally:
        _IS_POSTPONED.reset(token)


def start_parameters(module: nn.Module) -> None:
    """Draw the module's own parameters and buffers from torch's generator, unless postponed.

    Modules that are used by themselves start by this, at the end of their constructors.
    """
    if _IS_POSTPONED.get():
        return
    rules = cast(Initialised, module).initial()
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    with torch.no_grad():
        for leaf, tensor in own:
            init = rules[leaf]
            if tensor.is_meta:
                continue
            if init.std:
                _normal_(tensor, init)
            else:
                tensor.fill_(init.mean)


def keep_start(module: nn.Module) -> nn.Module:
    """Mark a user's module, which has started itself: `initialise` leaves it as it is."""
    cast(Any, module).keeps_start = True
    return module


def initialise(network: nn.Module, seed: int, shards: Mapping[str, Shard] | None = None) -> None:
    """Fill all parameters and buffers of `network` in place.

    `shards` gives, by global name, the shards of those that are not whole.
    """
    kept = [name for name, module in network.named_modules() if hasattr(module, "keeps_start")]
    with torch.no_grad():
        for prefix, module in network.named_modules():
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            if any(f"{prefix}.".startswith(f"{name}.") for name in kept):
                continue
            rules = _rules(module) if own else {}
            for leaf, tensor in own:
                name = f"{prefix}.{leaf}" if prefix else leaf
                shard = (shards or {}).get(name) or Shard.all_of(tensor.shape)
                tensor.copy_(draw(name, shard, rules[leaf], seed))
