"""Attention kernels: which calls each supports, and how it computes them.

Shapes: query [B, H, T, D]; key and value [B, KV, S, D] with KV dividing H; mask broadcastable to
[B, H, T, S], bool and True where a key is visible, or floats that are added to the scores
-> [B, H, T, D]. No kernel is chosen by a switch that other threads would see.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from model.recompute import recomputed
from model.sentences import first_line

MaskKind = Literal["none", "keys", "full"]
"""Kind of mask: none, keys (one row for all queries), or full (one row for each query)."""

SHORT = 128
"""Number of queries and keys from which on a kernel that starts slowly is worth it."""

HIDDEN = -30_000.0
"""Score of a hidden key that still leaves a finite softmax over hidden keys alone."""

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
    """Whether there are fewer than SHORT queries or keys."""


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


def _repeated(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values repeated for each query head, [B, H, S, D]."""
    group = query.shape[1] // key.shape[1]
    if group == 1:
        return key, value
    return key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)


def _needs_gradient(*tensors: Tensor) -> bool:
    """Return whether a backward pass may follow, for which a kernel keeps what it needs."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


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
    key, value = _repeated(query, key, value)
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


class TorchFlash:
    """FlashAttention in torch: FlashAttention-2 on CUDA, its counterpart on the CPU."""

    name = "torch flash"

    def refusal(self, call: Call) -> str | None:
        if call.dropout and call.device == "cpu":
            return "the CPU kernel has no dropout"
        if call.mask != "none" and call.device == "cuda":
            return "the CUDA kernel takes no mask"
        if call.mask != "none" and call.is_causal:
            return "it takes a mask or the causal order, not both"
        if call.device == "cuda" and call.dtype not in (torch.float16, torch.bfloat16):
            return f"the CUDA kernel takes fp16 and bf16, not {_short(call.dtype)}"
        if call.device == "cuda" and (call.head_dim > 256 or call.head_dim % 8):
            return f"the CUDA kernel takes head dimensions up to 256 by 8, not {call.head_dim}"
        return None if call.device in ("cpu", "cuda") else f"no kernel for {call.device}"

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        dropout: float,
    ) -> Tensor:
        if query.device.type == "cuda":
            # The public function would choose by switches of the process and by the card.
            output: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
                query, key, value, dropout, is_causal
            )[0]
            return output
        grouped = key.shape[1] != query.shape[1]
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(query.dtype)
        # On a CPU the public function takes this kernel for every call that is not refused above.
        return F.scaled_dot_product_attention(
            query, key, value, mask, dropout, is_causal, enable_gqa=grouped
        )


class TorchCudnn:
    """cuDNN's fused attention in torch: the fastest on Hopper and later."""

    name = "torch cuDNN"

    def refusal(self, call: Call) -> str | None:
        if call.device != "cuda":
            return f"CUDA only, not {call.device}"
        if call.mask != "none":
            return "masks are left to other kernels"
        if call.dtype not in (torch.float16, torch.bfloat16):
            return f"fp16 and bf16 only, not {_short(call.dtype)}"
        if call.head_dim > 128 or call.head_dim % 8:
            return f"head dimensions up to 128 by 8, not {call.head_dim}"
        if call.short:
            return f"fewer than {SHORT} queries or keys are left to other kernels"
        if _is_before_hopper():
            return "slower than others before Hopper"
        return _failure(self, call)

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        dropout: float,
    ) -> Tensor:
        key, value = _repeated(query, key, value)
        output: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(
            query, key, value, None, _needs_gradient(query, key, value), dropout, is_causal, False
        )[0]
        return output


class TorchEfficient:
    """Memory-efficient attention in torch, which came from xformers."""

    name = "torch memory-efficient"

    def refusal(self, call: Call) -> str | None:
        if call.device != "cuda":
            return f"CUDA only, not {call.device}"
        if call.dtype == torch.float64:
            return "it takes no fp64"
        by = 16 // call.dtype.itemsize
        if call.head_dim % by:
            return f"it takes head dimensions by {by}, not {call.head_dim}"
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
        key, value = _repeated(query, key, value)
        bias = None
        if mask is not None:
            # The kernel reads rows that start at 16-byte boundaries; a row for all queries stays
            # one in memory.
            keys, bias = mask.shape[-1], bias_of(mask, query.dtype)
            if is_causal:  # a query that sees no key may get anything, but no NaN
                bias = bias.clamp(min=HIDDEN)
            bias = F.pad(bias, (0, -keys % 16))[..., :keys].expand(*query.shape[:3], keys)
        output: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, _needs_gradient(query, key, value), dropout, is_causal
        )[0]
        return output


class FlashAttnPackage:
    """The package flash-attn, flash_attn.flash_attn_func (Dao 2023)."""

    name = "flash-attn"

    def refusal(self, call: Call) -> str | None:
        if call.device != "cuda":
            return f"CUDA only, not {call.device}"
        if call.dtype not in (torch.float16, torch.bfloat16):
            return f"fp16 and bf16 only, not {_short(call.dtype)}"
        if call.mask != "none":
            return "it takes no mask"
        if call.head_dim > 256:
            return f"head dimensions up to 256, not {call.head_dim}"
        return _failure(self, call)

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        dropout: float,
    ) -> Tensor:
        function = importlib.import_module("flash_attn").flash_attn_func
        length_first = (t.transpose(1, 2) for t in (query, key, value))
        output: Tensor = function(*length_first, dropout_p=dropout, causal=is_causal)
        return output.transpose(1, 2)


class XformersPackage:
    """The package xformers, xformers.ops.memory_efficient_attention (Lefaudeux et al. 2022)."""

    name = "xformers"

    def refusal(self, call: Call) -> str | None:
        if call.device != "cuda":
            return f"CUDA only, not {call.device}"
        if call.mask != "none":
            return "masks are left to torch's kernel"
        if call.grouped:
            return "grouped heads are left to torch's kernel"
        return _failure(self, call)

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        dropout: float,
    ) -> Tensor:
        from xformers.ops import LowerTriangularMask, memory_efficient_attention

        bias = LowerTriangularMask() if is_causal else None
        length_first = (t.transpose(1, 2) for t in (query, key, value))
        output: Tensor = memory_efficient_attention(*length_first, attn_bias=bias, p=dropout)
        return output.transpose(1, 2)


Function = TypeVar("Function", bound=Callable[..., Any])


def _constant(function: Function) -> Function:
    """Have compilers take the function's result for a constant.

    That is torch.compiler.assume_constant_result, which would load the compiler for this alone.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def _failure(kernel: Kernel, call: Call) -> str | None:
    """Return why a kernel fails at a small call of this kind, if it does.

    A package may be installed and fail to load, or come without the kernels of this card.
    """
    properties = (call.device, call.dtype, call.head_dim, call.is_causal, call.dropout)
    return _failure_of(type(kernel).__name__, *properties)


@_constant
@lru_cache
def _failure_of(
    name: str, device: str, dtype: torch.dtype, head_dim: int, is_causal: bool, dropout: bool
) -> str | None:
    kernel: Kernel = globals()[name]()
    try:
        with torch.enable_grad():
            like = torch.zeros(1, 2, SHORT, head_dim, device=device, dtype=dtype)
            heads = like.requires_grad_()
            drops = 0.5 if dropout else 0.0
            kernel(heads, heads, heads, None, is_causal, drops).sum().backward()
    except Exception as error:  # whatever is raised, the kernel is of no use here
        return f"not usable: {first_line(error)}"
    return None


@_constant
@lru_cache
def _is_before_hopper() -> bool:
    """Return whether the current CUDA device is of an older generation."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0)


def _short(dtype: torch.dtype) -> str:
    """Return the name of `dtype` without "torch."."""
    return str(dtype).removeprefix("torch.")
