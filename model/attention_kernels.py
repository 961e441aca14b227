"""What an attention kernel is, and those by the definition, which support any call.

Shapes: query [B, H, T, D]; key and value [B, KV, S, D] with KV dividing H; mask broadcastable to
[B, H, T, S], bool and True where a key is visible, or floats that are added to the scores
-> [B, H, T, D].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from model.recompute import recomputed

MaskKind = Literal["none", "keys", "full"]
"""Kind of mask: none, keys (one row for all queries), or full (one row for each query)."""

SHORT = 128
"""Number of queries and keys from which on a kernel that starts slowly is worth it."""

BLOCK = 128
"""Number of queries that `blockwise` computes at once."""


@dataclass(frozen=True)
class Call:
    """Properties of a call that decide which kernels support it."""

    device: str
    """Type of the device, such as "cuda"."""
    dtype: torch.dtype
    head_dim: int
    grouped: bool
    """Whether several query heads share a key/value head."""
    mask: MaskKind
    is_causal: bool
    dropout: bool
    """Whether attention weights are dropped."""
    short: bool = False
    """Whether there are fewer than SHORT queries or keys, on CUDA. Compilers are not told: what
    they make is for any length."""
    deterministic: bool = False
    """Whether the same bits are wanted each time (torch.use_deterministic_algorithms)."""


class Kernel(Protocol):
    """One way to compute attention."""

    name: str

    def refusal(self, call: Call) -> str | None:
        """Return why the kernel does not support `call`, None if it does."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        dropout: float,
    ) -> Tensor:
        """Return softmax(query key^T / sqrt(D)) value."""


def repeated(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values repeated for each query head, [B, H, S, D]."""
    group = query.shape[1] // key.shape[1]
    if group == 1:
        return key, value
    return key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)


def bias_of(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the floats that a mask adds to scores: 0 where a key is visible, else -inf."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))


def formula(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    dropout: float,
    first: int = 0,
) -> Tensor:
    """Compute attention by its definition (Vaswani et al. 2017, eq. 1).

    `first` is the position of the first query.
    """
    key, value = repeated(query, key, value)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if is_causal:
        positions = torch.arange(key.shape[-2], device=key.device)
        causal = positions <= positions[first : first + query.shape[-2], None]
        if mask is not None and mask.dtype != torch.bool:
            causal = bias_of(causal, mask.dtype) + mask
        elif mask is not None:
            causal = causal & mask
        mask = causal
    if mask is None:
        return F.dropout(scores.softmax(-1), dropout) @ value
    if mask.dtype != torch.bool:
        scores, mask = scores + mask, mask > float("-inf")
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    # A query without visible keys has equal weights on all of them; it gets zeros.
    return F.dropout(weights.masked_fill(~mask, 0.0), dropout) @ value


class Formula:
    """Attention by its definition: supports any call, memory is quadratic in the length."""

    name = "formula"

    def refusal(self, call: Call) -> str | None:
        return None

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        dropout: float,
    ) -> Tensor:
        return formula(query, key, value, mask, is_causal, dropout)


class Blockwise:
    """Attention by its definition for one block of queries after another.

    Blocks are recomputed in the backward pass. It supports any call, and memory is linear in the
    length.
    """

    name = "blockwise"

    def refusal(self, call: Call) -> str | None:
        return None

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        dropout: float,
    ) -> Tensor:
        if query.shape[2] <= BLOCK:
            return formula(query, key, value, mask, is_causal, dropout)
        outputs = []
        for first in range(0, query.shape[2], BLOCK):
            rows = slice(first, first + BLOCK)
            part = mask if mask is None or mask.shape[-2] == 1 else mask[..., rows, :]
            visible = slice(first + BLOCK if is_causal else None)  # no query of the block sees more
            part = part if part is None else part[..., visible]
            keys, values = key[:, :, visible], value[:, :, visible]
            arguments = (query[:, :, rows], keys, values, part, is_causal, dropout, first)
            compute = recomputed if torch.is_grad_enabled() else _directly
            outputs.append(compute(formula, *arguments))
        return torch.cat(outputs, dim=2)


def _directly(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call `function`, as `recomputed` does but without recomputation."""
    return function(*arguments)
