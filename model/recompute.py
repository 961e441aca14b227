"""Activation checkpointing of one block, and how a module knows that it is being recomputed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from torch.utils.checkpoint import checkpoint

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


def recomputed(block: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """block(...), keeping only its inputs for the backward pass (Chen et al. 2016)."""
    return checkpoint(
        block, *arguments, use_reentrant=False,
        context_fn=lambda: (nullcontext(), _recomputation()), **options,
    )  # fmt: skip
