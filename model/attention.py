"""Multi-head attention with grouped-query heads.

Weights are stored by key/value head: splitting the heads over ranks cuts dimension 0, and a
rank's part is one box of the whole. The number of heads is read off the weights, so a module
whose heads were split works unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import TransformerConfig
from model.init import Init


def _key_mask(mask: Tensor | None) -> Tensor | None:
    """[B, Tk] bool, True where a key may be seen -> [B, 1, 1, Tk] for SDPA.

    A row without any valid key sees all keys: its result is finite and masked out by whoever
    masked the row.
    """
    if mask is None:
        return None
    return (mask | ~mask.any(-1, keepdim=True))[:, None, None, :]


class _Attention(nn.Module):
    """What self- and cross-attention share: the kernel and the output projection."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.group = config.nhead // config.kv_heads
        self.output = nn.Parameter(
            torch.empty(config.d_model, config.kv_heads, self.group, config.head_dim)
        )

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        """query [B, T, KV, G, D]; key, value [B, S, KV, D]; returns [B, T, d_model]."""
        y = F.scaled_dot_product_attention(
            query.flatten(2, 3).transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2),
            attn_mask=_key_mask(mask), is_causal=is_causal, enable_gqa=self.group > 1,
        )  # fmt: skip
        return F.linear(y.transpose(1, 2).flatten(2), self.output.flatten(1))


class SelfAttention(_Attention):
    """softmax(q k^T / sqrt(D)) v of a sequence with itself (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.query_key_value = nn.Parameter(
            torch.empty(config.kv_heads, self.group + 2, config.head_dim, config.d_model)
        )

    def initial(self) -> Mapping[str, Init]:
        std = self.query_key_value.shape[-1] ** -0.5
        return {"query_key_value": Init(std=std), "output": Init(std=std)}

    def forward(self, x: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """x [B, T, d_model]; mask [B, T] bool, True where a position may be seen."""
        joined = F.linear(x, self.query_key_value.flatten(0, 2))
        joined = joined.unflatten(-1, self.query_key_value.shape[:3])
        query, key, value = joined.split([self.group, 1, 1], dim=3)
        return self._attend(query, key.squeeze(3), value.squeeze(3), mask, is_causal)


class CrossAttention(_Attention):
    """Attention of one sequence over another, the memory."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        d = config.d_model
        self.query = nn.Parameter(torch.empty(config.kv_heads, self.group, config.head_dim, d))
        self.key_value = nn.Parameter(torch.empty(config.kv_heads, 2, config.head_dim, d))

    def initial(self) -> Mapping[str, Init]:
        std = self.query.shape[-1] ** -0.5
        return {"query": Init(std=std), "key_value": Init(std=std), "output": Init(std=std)}

    def forward(self, x: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
        """x [B, T, d_model]; memory [B, S, d_model]; memory_mask [B, S] bool."""
        query = F.linear(x, self.query.flatten(0, 2)).unflatten(-1, self.query.shape[:3])
        joined = F.linear(memory, self.key_value.flatten(0, 2))
        key, value = joined.unflatten(-1, self.key_value.shape[:3]).unbind(3)
        return self._attend(query, key, value, memory_mask, is_causal=False)
