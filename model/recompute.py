"""Activation checkpointing of one block, and whether a block is being recomputed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

Recompute = Literal["none", "block", "selective"]
"""Part of a block's forward pass that the backward pass repeats: none of it, the whole block, or
only cheap operations (selective)."""

_RECOMPUTING: ContextVar[bool] = ContextVar("recomputing", default=False)


def is_recomputing() -> bool:
    """Return whether a block's forward pass is being repeated.

    Statistics were counted in the first pass and must not be counted again.
    """
    return not torch.compiler.is_compiling() and _RECOMPUTING.get()


@contextmanager
def _recomputation() -> Iterator[None]:
    """Mark what runs inside as a repetition."""
    token = _RECOMPUTING.set(True)
    try:
        yield
    finally:
        _RECOMPUTING.reset(token)


KEPT = (
    "mm",
    "bmm",
    "addmm",
    "_grouped_mm",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_flash_attention_forward",
    "_efficient_attention_forward",
    "flash_attn::_flash_attn_forward",
    "xformers::efficient_attention_forward_cutlass",
    "xformers_flash::flash_fwd",
)
"""Operators whose results selective recomputation keeps, because they cost most to repeat."""


def _keep(context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    """Return the policy for the result of one operator."""
    name = operator.name().removeprefix("aten::").partition(".")[0]
    if name in KEPT:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _whole_block() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the contexts of the first pass and of a repetition of everything."""
    return nullcontext(), _recomputation()


def _selective() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the contexts of the first pass and of a repetition of cheap operations only."""
    first, again = create_selective_checkpoint_contexts(_keep)
    return first, _both(again)


@contextmanager
def _both(context: AbstractContextManager[Any]) -> Iterator[None]:
    """Enter `context` and mark what runs inside as a repetition."""
    with _recomputation(), context:
        yield


def recomputed(
    block: Callable[..., Any], *arguments: Any, selective: bool = False, **options: Any
) -> Any:
    """Call `block` and keep only its inputs for the backward pass (Chen et al. 2016).

    With `selective` the results of matrix products and attention are kept too (Korthikanti et al.
    2022).
    """
    return checkpoint(
        block,
        *arguments,
        use_reentrant=False,
        context_fn=_selective if selective else _whole_block,
        **options,
    )
