"""Activation checkpointing of one block, and whether a block is being recomputed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, Literal, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import (
    CheckpointPolicy,
    _detach_helper,
    _VersionWrapper,
    checkpoint,
    create_selective_checkpoint_contexts,
)

Recompute = Literal["none", "block", "selective"]
"""Part of a block's forward pass that the backward pass repeats: none of it, the whole block, or
only cheap operations (selective)."""

T = TypeVar("T")


class _Memory:
    """What one block has asked to remember, in the order in which it asked."""

    def __init__(self) -> None:
        self._kept: list[Any] = []
        self._next: int | None = None
        """Number of the result that a repetition asks for next; None in the first pass."""

    def begin(self, *, again: bool) -> None:
        self._next = 0 if again else None

    def ask(self, compute: Callable[[], T]) -> T:
        if self._next is None:
            self._kept.append(compute())
            kept: T = self._kept[-1]
            return kept
        self._next += 1
        kept = self._kept[self._next - 1]
        return kept


_PASS: ContextVar[tuple[_Memory, bool] | None] = ContextVar("recomputation", default=None)
"""Memory of the block that runs under recomputation, and whether it runs again."""


def is_recomputing() -> bool:
    """Return whether a block's forward pass is being repeated.

    Statistics were counted in the first pass and must not be counted again.
    """
    if torch.compiler.is_compiling():
        return False
    here = _PASS.get()
    return here is not None and here[1]


def remembered(compute: Callable[[], T]) -> T:
    """Return compute(), or in a repetition what it returned in the first pass.

    For what is small, has no gradient, and costs many operations or a wait for the device.
    """
    here = None if torch.compiler.is_compiling() else _PASS.get()
    return compute() if here is None else here[0].ask(compute)


class _Pass(AbstractContextManager[None]):
    """Marks what runs inside as the first pass of a block, or as a repetition of it."""

    def __init__(
        self, memory: _Memory, inner: AbstractContextManager[Any] | None, *, again: bool
    ) -> None:
        self._memory, self._inner, self._again = memory, inner, again

    def __enter__(self) -> None:
        self._memory.begin(again=self._again)
        self._token = _PASS.set((self._memory, self._again))
        if self._inner is not None:
            self._inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._inner is not None:
            self._inner.__exit__(*error)
        _PASS.reset(self._token)


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


@cache
def _is_kept(operator: Any) -> bool:
    """Return whether the results of an operator are kept."""
    return operator.name().removeprefix("aten::").partition(".")[0] in KEPT


def _policy(context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    """Return the policy for the result of one operator, as torch's compiler asks for it."""
    if _is_kept(operator):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


class _Keeping(TorchDispatchMode):
    """Keeps the results of operators in the first pass of a block.

    torch's own mode counts every operator, so that it fails where a repetition runs others: those
    by which ZeRO 3 gathers a parameter that it has let go of in between.
    """

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self._keeps_last = last
        self.results: list[tuple[Any, Any]] = []
        """Each operator that was kept, and its results; None in place of those of the last one,
        where they are not wanted."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        if _is_kept(func):
            kept = tree_map(lambda one: _VersionWrapper(_detach_helper(one)), results)
            self.results.append((func, kept))
        return results

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if not self._keeps_last and self.results:
            self.results[-1] = self.results[-1][0], None


class _Returning(TorchDispatchMode):
    """Returns what `_Keeping` has kept, operator by operator, in a repetition."""

    def __init__(self, keeping: _Keeping) -> None:
        super().__init__()
        self._results, self._next = keeping.results, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not _is_kept(func):
            return func(*args, **(kwargs or {}))
        kept, results = self._results[self._next]
        if kept is not func:
            raise RuntimeError(f"a block computed {kept} first and {func} when it was repeated")
        self._next += 1
        if results is None:
            return func(*args, **(kwargs or {}))
        return tree_map(lambda one: one.get_val(False), results)

    def __enter__(self) -> Any:
        self._next = 0  # a graph that is kept is repeated from its beginning
        return super().__enter__()


def _whole_block() -> tuple[_Pass, _Pass]:
    """Return the contexts of the first pass and of a repetition of everything."""
    memory = _Memory()
    return _Pass(memory, None, again=False), _Pass(memory, None, again=True)


def _selective(*, last: bool) -> tuple[_Pass, _Pass]:
    """Return the contexts of the first pass and of a repetition of cheap operations only."""
    memory = _Memory()
    first: Any
    again: Any
    if torch.compiler.is_compiling():
        first, again = create_selective_checkpoint_contexts(_policy)
    else:
        first = _Keeping(last=last)
        again = _Returning(first)
    return _Pass(memory, first, again=False), _Pass(memory, again, again=True)


def recomputed(
    block: Callable[..., Any],
    *arguments: Any,
    selective: bool = False,
    keeps_last: bool = True,
    **options: Any,
) -> Any:
    """Call `block` and keep only its inputs for the backward pass (Chen et al. 2016).

    With `selective` the results of matrix products and attention are kept too (Korthikanti et al.
    2022); not that of the last product where `keeps_last` is unset, as the backward pass of a block
    that only adds to it does not need it.
    """
    return checkpoint(
        block,
        *arguments,
        use_reentrant=False,
        context_fn=partial(_selective, last=keeps_last) if selective else _whole_block,
        **options,
    )
