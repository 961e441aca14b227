"""Initialisation: each element of a weight depends on (seed, global name, its place) alone.

A rank draws just the shard that it holds, on its device, and every layout of ranks starts
bit-equal. A module that is made by itself draws its weights from torch's generator, as torch's
modules do.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from model.counter_generator import normal


@dataclass(frozen=True)
class Init:
    """How one parameter starts: normal around `mean`, truncated at three deviations of `std`."""

    std: float = 0.0
    """Standard deviation; with 0 all elements start as `mean`."""
    mean: float = 0.0


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
    if isinstance(module, nn.Linear) and not hasattr(module, "initial"):
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


BLOCK = 2**16, 2**24
"""Elements that are drawn at once, on a CPU and on other devices: temporaries stay small."""


def fill(tensor: Tensor, name: str, shard: Shard, init: Init, seed: int) -> None:
    """Fill `tensor` with `shard` of the initial value of the parameter with global name `name`."""
    if init.std == 0.0:
        tensor.fill_(init.mean)
        return
    key = seed_of(seed, name)
    flat = tensor if tensor.is_contiguous() else tensor.contiguous()
    into = flat.view(-1)
    block = BLOCK[0] if tensor.device.type == "cpu" else BLOCK[1]
    for start in range(0, into.numel(), block):
        stop = min(start + block, into.numel())
        elements = torch.arange(start, stop, device=tensor.device)
        drawn = normal(key, _in_whole(elements, shard))
        into[start:stop] = drawn.mul_(init.std).add_(init.mean)
    if flat is not tensor:
        tensor.copy_(flat)


def _in_whole(elements: Tensor, shard: Shard) -> Tensor:
    """Return the row-major indices in the whole parameter of elements of the shard."""
    inner = math.prod(shard.whole[shard.dim + 1 :])
    length, start = shard.whole[shard.dim] * inner, shard.start * inner
    if shard.dim == 0:  # the shard is one range of the whole
        return elements + start
    slices = elements.div(shard.size * inner, rounding_mode="floor")
    return elements + start + slices * (length - shard.size * inner)


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
            low, high = init.mean - 3 * init.std, init.mean + 3 * init.std
            if init.std:
                nn.init.trunc_normal_(tensor, init.mean, init.std, low, high)
            else:
                tensor.fill_(init.mean)


def keep_start(module: nn.Module) -> nn.Module:
    """Mark a user's module, which has started itself: `initialise` leaves it as it is."""
    cast(Any, module).keeps_start = True
    return module


Around = Callable[[str, nn.Module], AbstractContextManager[object]]


def initialise(
    network: nn.Module,
    seed: int,
    shards: Mapping[str, Shard] | None = None,
    around: Around = lambda name, module: nullcontext(),
) -> None:
    """Fill all parameters and buffers of `network` in place.

    `shards` gives, by global name, the shards of those that are not whole. Each module's own
    tensors are filled within `around` its name and itself, which may make room for them first and
    move them away afterwards.
    """
    kept = [name for name, module in network.named_modules() if hasattr(module, "keeps_start")]
    with torch.no_grad():
        for prefix, module in network.named_modules():
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            if any(f"{prefix}.".startswith(f"{name}.") for name in kept):
                continue
            if not own:
                continue
            rules = _rules(module)
            with around(prefix, module):
                for leaf, _ in own:
                    tensor = getattr(module, leaf)
                    name = f"{prefix}.{leaf}" if prefix else leaf
                    shard = (shards or {}).get(name) or Shard.all_of(tensor.shape)
                    fill(tensor, name, shard, rules[leaf], seed)
