"""A network as a sequence of layers, so that a pipeline stage is a slice of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

LayerState = tuple[Tensor, Tensor]
"""What a layer hands to the next: states [R, S, d_model], and the padding [R, attended tokens]
bool, True on padding; R rows, S tokens."""


@dataclass(frozen=True)
class Layer:
    """One element of the sequence: the smallest thing that a pipeline stage can hold."""

    name: str
    """Name of the layer, unique in the network."""
    modules: tuple[str, ...]
    """Global names of the modules whose parameters the layer uses."""
    run: Callable[..., LayerState | Tensor]
    """The layer's computation on what the layer before it returned."""
    tokens: tuple[int, ...]
    """Tokens per row that each of those modules computes."""
    memory: int = 0
    """Tokens per row whose keys and values the layer's attention reads."""
    is_block: bool = False
    """Whether it is a transformer layer, rather than what goes before or after those."""
