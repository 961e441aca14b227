"""Which attention kernel computes a call, and why.

`standard`, `xformer` and `flash` are the same mathematics. Each is a list of kernels, best first;
the first that can answer a call is taken. A kernel that keeps memory linear in the length is
never replaced by one that does not: where no fused kernel can answer (attention dropout on a
CPU), `blockwise` does, which costs time instead.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from model.errors import UserError
from model.kernels import (
    Blockwise,
    Call,
    FlashAttnPackage,
    Formula,
    Kernel,
    MaskKind,
    TorchEfficient,
    TorchFlash,
    XformersPackage,
)

log = logging.getLogger("forescale")

KERNELS: dict[str, tuple[Kernel, ...]] = {
    "standard": (Formula(),),
    "xformer": (XformersPackage(), TorchEfficient(), TorchFlash(), Blockwise()),
    "flash": (FlashAttnPackage(), TorchFlash(), TorchEfficient(), Blockwise()),
}
"""Of each att_type, best first. The last can answer anything."""


@dataclass(frozen=True)
class Choice:
    """The kernel for a call, and why those before it in the list were not taken."""

    kernel: Kernel
    refusals: tuple[str, ...]

    def __str__(self) -> str:
        because = f" ({'; '.join(self.refusals)})" if self.refusals else ""
        return f"{self.kernel.name}{because}"


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
    """The kernel of `att_type` for these tensors.

    With `strict`, raises UserError where the first kernel of the list cannot answer.
    """
    kind: MaskKind = "none" if mask is None else "keys" if mask.shape[-2] == 1 else "full"
    call = Call(
        query.device.type,
        query.dtype,
        query.shape[-1],
        key.shape[1] != query.shape[1],
        kind,
        is_causal,
        dropout > 0,
    )
    return choose(att_type, call, strict)


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
    """softmax(query key^T / sqrt(D)) value by `kernel`, [B, H, T, D]."""
    if mask is None:
        return kernel(query, key, value, None, is_causal, dropout)
    sees = mask.any(-1, keepdim=True)
    answer = kernel(query, key, value, mask | ~sees, is_causal, dropout)
    return answer.masked_fill(~sees, 0.0)


@lru_cache(maxsize=1024)
def choose(att_type: str, call: Call, strict: bool = False) -> Choice:
    """The first kernel of `att_type` that can answer `call`; said once in the log."""
    refusals: list[str] = []
    for kernel in KERNELS[att_type]:
        reason = kernel.refusal(call)
        if reason is None:
            choice = Choice(kernel, tuple(refusals))
            log.info("attention %s on %s: %s", att_type, call.device, choice)
            return choice
        refusals.append(f"{kernel.name}: {reason}")
        if strict:
            break
    others = [f"{k.name}: {k.refusal(call) or 'would do'}" for k in KERNELS[att_type][1:]]
    raise UserError(
        f"strict_attention: att_type {att_type}: {'; '.join([*refusals, *others])}; "
        "set strict_attention: false to take the next that can"
    )
