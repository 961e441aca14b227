"""Initial weights that depend on (seed, global name, expert) alone.

Each parameter is drawn by its own CPU generator, so every layout of ranks starts bit-equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Init:
    """How one parameter starts: normal with `std`, cut at three deviations, around `mean`."""

    std: float = 0.0
    mean: float = 0.0
    stacked: bool = False
    """Dimension 0 counts experts; each expert is drawn by a generator of its own."""


@dataclass(frozen=True)
class Part:
    """The slice of a whole parameter that is held where its layer is split over ranks."""

    whole: tuple[int, ...]
    dim: int
    start: int
    size: int

    @property
    def shape(self) -> torch.Size:
        return torch.Size([*self.whole[: self.dim], self.size, *self.whole[self.dim + 1 :]])

    @classmethod
    def all_of(cls, whole: torch.Size) -> Part:
        return cls(tuple(whole), 0, 0, whole[0])


class Initialised(Protocol):
    """A module that says how its own parameters start, by their local names."""

    def initial(self) -> Mapping[str, Init]: ...


def _rules(module: nn.Module) -> Mapping[str, Init] | None:
    """None: a module of the user's (a norm given as a callable), which starts itself."""
    if hasattr(module, "initial"):
        return cast(Initialised, module).initial()
    if isinstance(module, nn.Linear):
        return {"weight": Init(std=module.in_features**-0.5), "bias": Init()}
    if isinstance(module, nn.LayerNorm):
        return {"weight": Init(mean=1.0), "bias": Init()}
    return None


def _generator(seed: int, name: str, expert: int) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{name}/{expert}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw(name: str, part: Part, init: Init, seed: int) -> Tensor:
    """`part` of the fp32 initial value of the parameter with global name `name`."""
    if init.std == 0.0:
        return torch.full(part.shape, init.mean)
    if not init.stacked:
        value = _normal(part.whole, init, _generator(seed, name, 0))
        return value.narrow(part.dim, part.start, part.size)
    # Only the experts in the part are drawn: there may be many of them.
    first, last = (part.start, part.start + part.size) if part.dim == 0 else (0, part.whole[0])
    value = torch.empty(part.shape)
    for expert, into in zip(range(first, last), value.unbind(0), strict=True):
        drawn = _normal(part.whole[1:], init, _generator(seed, name, expert))
        into.copy_(drawn.narrow(part.dim - 1, part.start, part.size) if part.dim else drawn)
    return value


def _normal(shape: tuple[int, ...], init: Init, generator: torch.Generator) -> Tensor:
    return nn.init.trunc_normal_(
        torch.empty(shape),
        init.mean,
        init.std,
        init.mean - 3 * init.std,
        init.mean + 3 * init.std,
        generator=generator,
    )


def initialise(network: nn.Module, seed: int, parts: Mapping[str, Part] | None = None) -> None:
    """Fill all parameters and buffers of `network` in place; `parts` by global name, of those
    that are not whole."""
    with torch.no_grad():
        for prefix, module in network.named_modules():
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            rules = _rules(module) if own else {}
            if rules is None:
                _start_itself(module, _generator(seed, prefix, 0))
                continue
            for leaf, tensor in own:
                name = f"{prefix}.{leaf}" if prefix else leaf
                part = (parts or {}).get(name) or Part.all_of(tensor.shape)
                tensor.copy_(draw(name, part, rules[leaf], seed))


def _start_itself(module: nn.Module, generator: torch.Generator) -> None:
    """By its own reset_parameters, seeded; without one it stays as it was made."""
    if hasattr(module, "reset_parameters"):
        with torch.random.fork_rng([]):
            torch.set_rng_state(generator.get_state())
            cast(Any, module).reset_parameters()
