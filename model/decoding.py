"""The state of step-by-step decoding: keys and values of all tokens so far.

    {"layers": [{"self_attn": {"key", "value"}, "cross_attn": {"key", "value"}}, ...]}

Decoding starts with an empty dict; each tensor is [B, t, kv_heads * head_dim]. Those of
self-attention are views of buffers that grow ahead, so that a step costs the same early and late.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from model.errors import UserError

IncrementalState = dict[str, Any]
"""State of a decoder as above, of which users may replace the tensors."""


class KeyValueCache(dict[str, Tensor]):
    """Keys and values of one attention; `append` writes into buffers that grow by doubling."""

    _buffers: tuple[Tensor, Tensor] | None = None
    _views: tuple[Tensor, Tensor] | None = None

    def __copy__(self) -> KeyValueCache:
        """Return a branch that will append to buffers of its own."""
        return KeyValueCache(self)

    @property
    def length(self) -> int:
        """Number of tokens in the cache."""
        return self["key"].shape[1] if "key" in self else 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append key and value [B, t, width]; return those of all tokens so far."""
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
        """Return whether the tensors are still the buffers' own.

        A caller may have replaced them, to reorder the batch for example.
        """
        views = self._views
        return views is not None and self.get("key") is views[0] and self.get("value") is views[1]

    def _grow(self, like: Tensor, needed: int) -> None:
        """Replace the buffers by longer ones, for at least `needed` tokens."""
        capacity = max(64, 2 * needed)
        fresh = []
        for name in ("key", "value"):
            buffer = like.new_empty(like.shape[0], capacity, like.shape[2])
            if name in self:
                buffer[:, : self.length] = self[name]
            fresh.append(buffer)
        self._buffers = fresh[0], fresh[1]


def layer_caches(state: IncrementalState, layer: int) -> dict[str, KeyValueCache]:
    """Return the caches of layer number `layer` by attention, and make them on first use.

    Plain dicts of tensors in the state are replaced by caches.
    """
    layers = state.setdefault("layers", [])
    while len(layers) <= layer:
        layers.append({"self_attn": KeyValueCache(), "cross_attn": KeyValueCache()})
    caches: dict[str, KeyValueCache] = layers[layer]
    for name, cache in caches.items():
        if not isinstance(cache, KeyValueCache):
            caches[name] = KeyValueCache(cache)
    return caches


def length(state: IncrementalState) -> int:
    """Return the number of tokens decoded so far."""
    layers = state.get("layers") or []
    return int(layers[0]["self_attn"]["key"].shape[1]) if layers else 0


def check(state: IncrementalState, layers: int, memory: Tensor) -> None:
    """Raise UserError if the state is another decoder's or belongs to another memory."""
    caches = state.get("layers") or []
    if not caches:
        return
    if len(caches) != layers:
        raise UserError(
            f"incremental_state: it has {len(caches)} layers, and this decoder {layers}; "
            "start with an empty dict"
        )
    batch, tokens = caches[0]["cross_attn"]["key"].shape[:2]
    if (batch, tokens) != tuple(memory.shape[:2]):
        raise UserError(
            f"incremental_state: it is of {batch} sequences over a memory of {tokens} tokens, and "
            f"memory is {list(memory.shape)}; reorder both alike, or start with an empty dict"
        )


def reorder(state: IncrementalState, order: Tensor) -> IncrementalState:
    """Return the state of sequences order[0], order[1], ... of the batch.

    It serves beam search, or drops sequences that have ended. order [B'] holds indices; the given
    state stays as it is.
    """
    layers = [
        {name: _reordered(cache, order) for name, cache in caches.items()}
        for caches in state.get("layers", [])
    ]
    return {**state, "layers": layers}


def _reordered(cache: KeyValueCache, order: Tensor) -> KeyValueCache:
    return KeyValueCache({name: value.index_select(0, order) for name, value in cache.items()})
