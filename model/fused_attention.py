"""Fused attention kernels, of torch and of packages: which calls each supports.

Shapes are those of `model.attention_kernels`. No kernel is chosen by a switch that other threads
would see.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from model.attention_kernels import SHORT, Call, Kernel, bias_of, repeated
from model.sentences import first_line

HIDDEN = -30_000.0
"""Score of a hidden key that still leaves a finite softmax over hidden keys alone."""


def _needs_gradient(*tensors: Tensor) -> bool:
    """Return whether a backward pass may follow, for which a kernel keeps what it needs."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


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
        if call.deterministic:
            return "its backward pass is not deterministic"
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
        key, value = repeated(query, key, value)
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
        key, value = repeated(query, key, value)
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
        wanted = torch.are_deterministic_algorithms_enabled()
        output: Tensor = function(
            *length_first, dropout_p=dropout, causal=is_causal, deterministic=wanted
        )
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
        if call.deterministic:
            return "its backward pass is not deterministic"
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
    here: torch.device | str = device
    if device == "cuda" and torch.cuda.is_available():
        here = torch.device(device, torch.cuda.current_device())
    # In a thread of its own: the first call of a kind may come inside a block under recomputation
    # or another mode of the caller's thread, which would take the trial for a part of it.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_try, kernel, here, dtype, head_dim, is_causal, dropout).result()


def _try(
    kernel: Kernel,
    device: torch.device | str,
    dtype: torch.dtype,
    head_dim: int,
    is_causal: bool,
    dropout: bool,
) -> str | None:
    """Return why one small call of the kernel fails, forward and backward, if it does."""
    # What a trial drops is not to change what the caller draws.
    generators = torch.random.fork_rng([device] if isinstance(device, torch.device) else [])
    try:
        with generators, torch.enable_grad():
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
