"""Which attention kernel computes a call, and why.

`standard`, `xformer` and `flash` are the same mathematics. Each is a list of kernels, best first;
the first that supports a call computes it. A kernel whose memory is linear in the length never
falls back to a quadratic one: where no fused kernel supports the call (attention dropout on a
CPU), `blockwise` computes it, in linear memory but slower.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from model.attention_kernels import SHORT, Blockwise, Call, Formula, Kernel, MaskKind
from model.errors import UserError
from model.fused_attention import (
    FlashAttnPackage,
    TorchCudnn,
    TorchEfficient,
    TorchFlash,
    XformersPackage,
)
from model.tracing import is_traced

log = logging.getLogger("forescale")

KERNELS: dict[str, tuple[Kernel, ...]] = {
    "standard": (Formula(),),
    "xformer": (XformersPackage(), TorchEfficient(), TorchFlash(), Blockwise()),
    "flash": (FlashAttnPackage(), TorchCudnn(), TorchFlash(), TorchEfficient(), Blockwise()),
}
"""Kernels of each att_type, best first; the last supports any call."""


@dataclass(frozen=True)
class Choice:
    """The kernel for a call, and why those before it in the list were not chosen."""

    kernel: Kernel
    refusals: tuple[str, ...]
    """Name and reason of each kernel that was not chosen."""

    def __str__(self) -> str:
        """Return the kernel's name, and in brackets why the ones before it were not chosen."""
        reasons = f" ({'; '.join(self.refusals)})" if self.refusals else ""
        return f"{self.kernel.name}{reasons}"


def choose_for(
    query: Tensor,
    key: Tensor,
    *,
    att_type: str,
    mask: Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
    strict: bool = False,
) -> Choice:
    """Return the kernel of `att_type` for these tensors; shapes as in `model.attention_kernels`.

    With `strict`, raises UserError if the first kernel of the list does not support them.
    """
    kind: MaskKind = "none" if mask is None else "keys" if mask.shape[-2] == 1 else "full"
    call = Call(
        device=query.device.type,
        dtype=query.dtype,
        head_dim=query.shape[-1],
        grouped=key.shape[1] != query.shape[1],
        mask=kind,
        is_causal=is_causal,
        dropout=dropout > 0,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        short=query.is_cuda and not is_traced() and min(query.shape[2], key.shape[2]) < SHORT,
    )
    # Compilers see a pure function of constants; else it is asked once for each kind of call.
    return (choose if is_traced() else _choose_once)(att_type, call, strict)


def attend(
    kernel: Kernel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Return softmax(query key^T / sqrt(D)) value [B, H, T, D], computed by `kernel`.

    A query whose keys are all masked gets zeros.
    """
    if mask is None:
        return kernel(query, key, value, None, is_causal, dropout)
    visible = mask if mask.dtype == torch.bool else mask > float("-inf")
    if is_causal:
        output = kernel(query, key, value, mask, True, dropout)
        return output.masked_fill(~_has_past_keys(visible), 0.0)
    has_keys = visible.any(-1, keepdim=True)
    some = mask | ~has_keys if mask.dtype == torch.bool else mask.masked_fill(~has_keys, 0.0)
    output = kernel(query, key, value, some, is_causal, dropout)
    return output.masked_fill(~has_keys, 0.0)


def _has_past_keys(visible: Tensor) -> Tensor:
    """Return whether each query sees a key at its own position or before, [B or 1, H or 1, T, 1].

    visible [B or 1, H or 1, T or 1, T].
    """
    if visible.shape[-2] == 1:
        return (visible.cumsum(-1) > 0).transpose(-2, -1)
    return visible.tril().any(-1, keepdim=True)


@lru_cache(maxsize=1024)
def _choose_once(att_type: str, call: Call, strict: bool) -> Choice:
    """Return what `choose` does, and log it where it is not known yet."""
    choice = choose(att_type, call, strict)
    _tell_once(f"attention {att_type} on {call.device}: {choice}")
    return choice


@lru_cache(maxsize=1024)
def _tell_once(sentence: str) -> None:
    log.info(sentence)


def choose(att_type: str, call: Call, strict: bool = False) -> Choice:
    """Return the first kernel of `att_type` that supports `call`.

    With `strict`, raises UserError if that is not the first of the list.
    """
    refusals: list[str] = []
    for kernel in KERNELS[att_type]:
        reason = kernel.refusal(call)
        if reason is None:
            return Choice(kernel, tuple(refusals))
        refusals.append(f"{kernel.name}: {reason}")
        if strict:
            break
    others = [f"{k.name}: {k.refusal(call) or 'would do'}" for k in KERNELS[att_type][1:]]
    raise UserError(
        f"strict_attention: att_type {att_type}: {'; '.join([*refusals, *others])}; "
        "set strict_attention: false to take the next that can"
    )
