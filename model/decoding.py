"""The state of step-by-step decoding.

    {"layers": [{"self_attn": {"key", "value"}, "cross_attn": {"key", "value"}}, ...]}

An empty dict starts; each tensor is [B, t, kv_heads * head_dim]. Self-attention's are views of
buffers that grow ahead, so that a step costs the same early and late.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.errors import UserError

State = dict[str, Any]


class KeyValue(dict[str, Tensor]):
    """Keys and values of one attention; `append` writes into buffers that grow by doubling."""

    _buffers: tuple[Tensor, Tensor] | None = None
    _views: tuple[Tensor, Tensor] | None = None

    def __copy__(self) -> KeyValue:
        """A branch with buffers of its own: both may append."""
        return KeyValue(self)

    @property
    def length(self) -> int:
        return self["key"].shape[1] if "key" in self else 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """key and value [B, t, width]; returns all so far."""
        start, stop = self.length, self.length + key.shape[1]
        if self._buffers is None or not self._is_current() or stop > self._buffers[0].shape[1]:
            self._grow(key, stop)
        assert self._buffers is not None
        for buffer, new in zip(self._buffers, (key, value), strict=True):
            buffer[:, start:stop] = new
        self._views = self._buffers[0][:, :stop], self._buffers[1][:, :stop]
        self["key"], self["value"] = self._views
        return self._views

    def _is_current(self) -> bool:
        """Nobody has put other tensors in, to reorder the batch for example."""
        views = self._views
        return views is not None and self.get("key") is views[0] and self.get("value") is views[1]

    def _grow(self, like: Tensor, needed: int) -> None:
        capacity = max(64, 2 * needed)
        fresh = []
        for name in ("key", "value"):
            buffer = like.new_empty(like.shape[0], capacity, like.shape[2])
            if name in self:
                buffer[:, : self.length] = self[name]
            fresh.append(buffer)
        self._buffers = fresh[0], fresh[1]


def layer_state(state: State, layer: int) -> dict[str, KeyValue]:
    """The state of one layer, made on its first use; plain dicts of tensors are taken too."""
    layers = state.setdefault("layers", [])
    while len(layers) <= layer:
        layers.append({"self_attn": KeyValue(), "cross_attn": KeyValue()})
    entry: dict[str, KeyValue] = layers[layer]
    for name, held in entry.items():
        if not isinstance(held, KeyValue):
            entry[name] = KeyValue(held)
    return entry


def length(state: State) -> int:
    """Tokens decoded so far."""
    layers = state.get("layers") or []
    return int(layers[0]["self_attn"]["key"].shape[1]) if layers else 0


def check(state: State, layers: int, memory: Tensor) -> None:
    """Raises UserError where a state was made by another decoder or from another memory."""
    held = state.get("layers") or []
    if not held:
        return
    if len(held) != layers:
        raise UserError(
            f"incremental_state: it has {len(held)} layers, and this decoder {layers}; "
            "start with an empty dict"
        )
    batch, tokens = held[0]["cross_attn"]["key"].shape[:2]
    if (batch, tokens) != tuple(memory.shape[:2]):
        raise UserError(
            f"incremental_state: it is of {batch} sequences over a memory of {tokens} tokens, and "
            f"memory is {list(memory.shape)}; reorder both alike, or start with an empty dict"
        )


def reorder(state: State, order: Tensor) -> State:
    """The state of sequences order[0], order[1], ... of the batch: for beam search or to drop
    sequences that have ended. order [B'] of indices; the given state stays as it is."""
    layers = [
        {
            name: KeyValue({k: torch.index_select(v, 0, order) for k, v in held.items()})
            for name, held in layer.items()
        }
        for layer in state.get("layers", [])
    ]
    return {**state, "layers": layers}
