"""Activation checkpointing of one block, and how a module knows that it is being recomputed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal

from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

Recompute = Literal["none", "block", "selective"]
"""Of a block's forward pass the backward pass repeats nothing, all, or what is cheap."""

_RECOMPUTING: ContextVar[bool] = ContextVar("recomputing", default=False)


def is_recomputing() -> bool:
    """True in a block's second forward: statistics were counted in the first."""
    return _RECOMPUTING.get()


@contextmanager
def _recomputation() -> Iterator[None]:
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
)
"""Operators whose answers selective recomputation keeps: those that cost most to do again."""


def _keep(context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    name = operator.name().removeprefix("aten::").partition(".")[0]
    if name in KEPT:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _plain() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _recomputation()


def _selective() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    first, again = create_selective_checkpoint_contexts(_keep)
    return first, _both(again)


@contextmanager
def _both(context: AbstractContextManager[Any]) -> Iterator[None]:
    with _recomputation(), context:
        yield


def recomputed(
    block: Callable[..., Any], *arguments: Any, selective: bool = False, **options: Any
) -> Any:
    """block(...), keeping only its inputs for the backward pass (Chen et al. 2016); with
    `selective` the answers of matrix products and attention too (Korthikanti et al. 2022)."""
    return checkpoint(
        block,
        *arguments,
        use_reentrant=False,
        context_fn=_selective if selective else _plain,
        **options,
    )
