"""The state of step-by-step decoding: keys and values of all tokens so far.

    {"layers": [{"self_attn": {"key", "value"}, "cross_attn": {"key", "value"}}, ...]}

(without "cross_attn" where there is no memory). Decoding starts with an empty dict; each tensor is
[B, t, kv_heads * head_dim]. Those of self-attention are views of buffers that grow ahead, so that a
step costs the same early and late.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from model.errors import UserError

IncrementalState = dict[str, Any]
"""State of a decoder as above, of which users may replace the tensors."""


class KeyValueCache(dict[str, Tensor]):
    """Keys and values of one attention; `append` writes into buffers that grow by doubling."""

    _buffers: tuple[Tensor, Tensor] | None = None
    _views: tuple[Tensor, Tensor] | None = None
    source: weakref.ref[Tensor] | None = None
    """The memory that keys and values were computed from, where that is known."""

    def __copy__(self) -> KeyValueCache:
        """Return a branch that will append to buffers of its own."""
        return KeyValueCache(self)

    def __reduce__(self) -> tuple[type[KeyValueCache], tuple[dict[str, Tensor]]]:
        """Return what a pickle and a deep copy hold: the tensors alone."""
        return KeyValueCache, (dict(self),)

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


def layer_caches(
    state: IncrementalState, layer: int, attentions: Sequence[str] = ("self_attn", "cross_attn")
) -> dict[str, KeyValueCache]:
    """Return the caches of layer number `layer` by attention, and make them on first use.

    Plain dicts of tensors in the state are replaced by caches.
    """
    layers = state.setdefault("layers", [])
    while len(layers) <= layer:
        layers.append({attention: KeyValueCache() for attention in attentions})
    caches: dict[str, KeyValueCache] = layers[layer]
    for name, cache in caches.items():
        if not isinstance(cache, KeyValueCache):
            caches[name] = KeyValueCache(cache)
    return caches


def length(state: IncrementalState) -> int:
    """Return the number of tokens decoded so far."""
    layers = state.get("layers") or []
    return int(layers[0]["self_attn"]["key"].shape[1]) if layers else 0


@contextmanager
def unchanged_on_error(state: IncrementalState) -> Iterator[None]:
    """Within, a step is made; where it fails, the state is again what it was before."""
    had_layers = "layers" in state
    layers = list(state.get("layers") or [])
    caches = [(entry, name, cache) for entry in layers for name, cache in entry.items()]
    before = [
        (dict(cache), cache.source, cache._buffers, cache._views)
        if isinstance(cache, KeyValueCache)
        else None
        for _, _, cache in caches
    ]
    try:
        yield
    except BaseException:
        for (entry, name, cache), content in zip(caches, before, strict=True):
            entry[name] = cache
            if content is not None:
                tensors, cache.source, cache._buffers, cache._views = content
                cache.clear()
                cache.update(tensors)
        state.pop("layers", None)
        if had_layers:
            state["layers"] = layers
        raise


def check(
    state: IncrementalState, layers: int, batch: int, memory_length: int | None = None
) -> None:
    """Raise UserError if the state is another decoder's, or of another batch or memory.

    `memory_length` is None where a decoder has no memory.
    """
    caches = state.get("layers") or []
    if not caches:
        return
    if len(caches) != layers:
        raise UserError(
            f"incremental_state: it has {len(caches)} layers, and this decoder {layers}; "
            "start with an empty dict"
        )
    if ("cross_attn" in caches[0]) != (memory_length is not None):
        has = "has a memory" if memory_length is None else "has no memory"
        raise UserError(
            f"incremental_state: it is of a decoder that {has}; start with an empty dict"
        )
    tokens = caches[0]["self_attn"]["key"].shape[1]
    for entry in caches:
        for name, length_here in (("self_attn", tokens), ("cross_attn", memory_length)):
            for part, tensor in entry.get(name, {}).items():
                if tuple(tensor.shape[:2]) != (batch, length_here):
                    raise UserError(_mismatch(name, part, tensor, batch, length_here))


def _mismatch(name: str, part: str, tensor: Tensor, batch: int, expected: int | None) -> str:
    """Return the sentence for a tensor of the state whose sizes are others than the call's."""
    tokens = "tokens so far" if name == "self_attn" else "tokens of memory"
    return (
        f"incremental_state: its {part}s of {name} are of {tensor.shape[0]} sequences and "
        f"{tensor.shape[1]} {tokens}, and the call of {batch} and {expected}; reorder both alike "
        "(forescale.reorder), or start with an empty dict"
    )


def check_memory(cache: KeyValueCache, memory: Tensor, key: Tensor) -> None:
    """Raise UserError if the cached keys are not `key` [B, S, KV, D], the memory's own."""
    cached = cache["key"]
    error = (cached - key.flatten(2)).abs().max() if cached.numel() else torch.zeros(())
    if not bool(error <= 1e-2 * cached.abs().max()):
        raise UserError(
            "incremental_state: it belongs to another memory of the same size; pass the memory "
            "that decoding began with, or start with an empty dict"
        )
    cache.source = weakref.ref(memory)


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
