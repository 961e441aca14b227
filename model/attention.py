"""Multi-head attention with grouped-query heads.

Weights are stored by key/value head: splitting the heads over ranks cuts dimension 0, so that a
rank's shard is one slice of the whole. The number of heads is read off the weights, so a module
whose heads were split works unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.adapters import Adapters, adapted, make_adapters
from model.attention_backends import Choice, attend, choose_for
from model.attention_kernels import bias_of
from model.config import AttentionType, TransformerConfig
from model.decoding import KeyValueCache
from model.frequency import frequency_attention
from model.init import Init, start_parameters
from model.norm import EPSILON
from model.rotary import rotate
from model.tracing import is_traced


def merge_masks(padding: Tensor | None, attention_mask: Tensor | None = None) -> Tensor | None:
    """Merge users' masks into a kernel's.

    Users' are bool and True where a key is hidden, or floats that are added to the scores:
    padding [B, S], attention_mask [T, S] or [B, T, S], or [B, H, T, S] for each head. Kernels'
    are bool and True where a key is visible, or floats: [B or 1, H or 1, T or 1, S]. Returns None
    where no mask is given.
    """
    masks = []
    if padding is not None:
        masks.append(padding[:, None, None, :])
    if attention_mask is not None:
        while attention_mask.ndim < 4:
            attention_mask = attention_mask.unsqueeze(0 if attention_mask.ndim == 2 else 1)
        masks.append(attention_mask)
    floats = [mask.dtype for mask in masks if mask.dtype != torch.bool]
    visible = [~mask if mask.dtype == torch.bool else mask for mask in masks]
    if len(visible) < 2:
        return visible[0] if visible else None
    if floats:
        return bias_of(visible[0], floats[0]) + bias_of(visible[1], floats[0])
    return visible[0] & visible[1]


class Attention(nn.Module):
    """Base of self- and cross-attention: the kernel and the output projection."""

    adapters: Adapters

    def __init__(self, config: TransformerConfig, att_type: AttentionType) -> None:
        super().__init__()
        self.att_type, self.strict = att_type, config.strict_attention
        self.dropout = config.attention_dropout
        self.rotary = config.position == "rotary"
        self.choice: Choice | None = None
        """Kernel of the last forward, and why it was chosen; None before the first."""
        self.group = config.nhead // config.kv_heads
        heads = (config.kv_heads, self.group)
        self.output = nn.Parameter(torch.empty(config.d_model, *heads, config.head_dim))
        gains = config.kv_heads * (self.group + 1) * config.head_dim
        self.query_key_gain = nn.Parameter(torch.empty(gains)) if config.qk_norm else None
        self.frequency_mix = (
            nn.Parameter(torch.empty(*heads, config.freq_modes, config.head_dim, 2))
            if att_type == "frequency"
            else None
        )

    def initial(self) -> Mapping[str, Init]:
        """Return how the module's own parameters start, by name."""
        std = self.output.shape[0] ** -0.5
        rules = {name: Init(std=std) for name, _ in self.named_parameters(recurse=False)}
        return rules | {"frequency_mix": Init(std=0.02), "query_key_gain": Init(mean=1.0)}

    @property
    def kernel(self) -> str | None:
        """Name of the last forward's kernel, with why it was chosen; None before the first."""
        if self.att_type == "frequency":
            return "torch.fft"
        return None if self.choice is None else str(self.choice)

    def _normalised(self, heads: Tensor, first: int) -> Tensor:
        """Return heads [B, T, KV, n, D] over their root mean square, if that is wanted.

        Of each group of queries and their key they are those from `first` on.
        """
        if self.query_key_gain is None:
            return heads
        count, size = heads.shape[3:]
        gain = self.query_key_gain.view(-1, self.group + 1, size)[:, first : first + count]
        return F.rms_norm(heads, (size,), eps=EPSILON) * gain

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        """Compute attention and the output projection.

        query [B, T, KV, G, D]; key and value [B, S, KV, D] -> [B, T, d_model].
        """
        dropout = self.dropout if self.training else 0.0
        q, k, v = (x.transpose(1, 2) for x in (query.flatten(2, 3), key, value))
        if self.frequency_mix is not None:
            k, v = (x.repeat_interleave(self.group, 1) for x in (k, v))
            mix = self.frequency_mix.flatten(0, 1)
            y = frequency_attention(q, k, v, mix, mask=mask, dropout=dropout)
        else:
            options: dict[str, Any] = {"mask": mask, "is_causal": is_causal, "dropout": dropout}
            choice = choose_for(q, k, att_type=self.att_type, strict=self.strict, **options)
            if not is_traced():
                self.choice = choice
            y = attend(choice.kernel, q, k, v, **options)
        joined = y.transpose(1, 2).flatten(2)
        return adapted(self.adapters, "output", F.linear(joined, self.output.flatten(1)), joined)


class SelfAttention(Attention):
    """Self-attention: softmax(q k^T / sqrt(D)) v of one sequence (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, config: TransformerConfig, att_type: AttentionType | None = None) -> None:
        super().__init__(config, att_type or config.att_type)
        self.query_key_value = nn.Parameter(
            torch.empty(config.kv_heads, self.group + 2, config.head_dim, config.d_model)
        )
        self.adapters = make_adapters(config, self, {"query_key_value": 1, "output": 3})
        start_parameters(self)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        start: int = 0,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Compute self-attention of x [B, T, d_model] at positions start, start + 1, ...

        mask is one that `merge_masks` returned. With a cache, T is 1, and the query attends to
        itself and to all that the cache holds.
        """
        joined = F.linear(x, self.query_key_value.flatten(0, 2))
        joined = adapted(self.adapters, "query_key_value", joined, x)
        joined = joined.unflatten(-1, self.query_key_value.shape[:3])
        if self.query_key_gain is not None:
            heads, values = joined.split([self.group + 1, 1], dim=3)
            joined = torch.cat([self._normalised(heads, 0), values], 3)
        if self.rotary:
            joined = rotate(joined, start, self.group + 1)
        query, key, value = joined.split([self.group, 1, 1], dim=3)
        key, value = key.squeeze(3), value.squeeze(3)
        if self.frequency_mix is not None and mask is not None and mask.dtype == torch.bool:
            # Each mode mixes all queries, so padded ones would reach the others.
            query = query.masked_fill(~mask[:, 0, 0, :, None, None, None], 0.0)
        if cache is not None:
            past = cache.append(key.flatten(2), value.flatten(2))
            key, value = (cached.unflatten(-1, key.shape[2:]) for cached in past)
        return self._attend(query, key, value, mask, is_causal)


class CrossAttention(Attention):
    """Cross-attention of one sequence to another, the memory."""

    def __init__(
        self,
        config: TransformerConfig,
        att_type: AttentionType | None = None,
        *,
        on_one_axis: bool = False,
    ) -> None:
        """Make the layer's parameters.

        `on_one_axis` says that both sequences share one time axis, on which the memory starts at
        0: rotary positions then rotate queries and keys here too.
        """
        super().__init__(config, att_type or config.att_type)
        self.rotary = self.rotary and on_one_axis
        d = config.d_model
        self.query = nn.Parameter(torch.empty(config.kv_heads, self.group, config.head_dim, d))
        self.key_value = nn.Parameter(torch.empty(config.kv_heads, 2, config.head_dim, d))
        matrices = {"query": 1, "key_value": 1, "output": 3}
        self.adapters = make_adapters(config, self, matrices)
        start_parameters(self)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        mask: Tensor | None = None,
        *,
        start: int = 0,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Compute attention of x [B, T, d_model], from position start on, to the memory.

        memory [B, S, d_model]; the cache keeps its keys and values, so that they are computed
        once. Returns [B, T, d_model].
        """
        query = adapted(self.adapters, "query", F.linear(x, self.query.flatten(0, 2)), x)
        query = self._normalised(query.unflatten(-1, self.query.shape[:3]), 0)
        if self.rotary:
            query = rotate(query, start)
        if cache is None or cache.length == 0:
            key, value = self.keys_and_values(memory)
            if cache is not None:
                cache["key"], cache["value"] = key.flatten(2), value.flatten(2)
        else:
            shape = self.key_value.shape[0], self.key_value.shape[2]
            key, value = (cache[name].unflatten(-1, shape) for name in ("key", "value"))
        return self._attend(query, key, value, mask, is_causal=False)

    def keys_and_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [B, S, KV, D] of the memory [B, S, d_model]."""
        joined = F.linear(memory, self.key_value.flatten(0, 2))
        joined = adapted(self.adapters, "key_value", joined, memory)
        key, value = joined.unflatten(-1, self.key_value.shape[:3]).split(1, dim=3)
        key = self._normalised(key, self.group)
        if self.rotary:
            key = rotate(key, 0)
        return key.squeeze(3), value.squeeze(3)
