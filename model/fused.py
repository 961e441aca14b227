"""Whether a fused CUDA kernel computes a call; else torch's own operators do."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from model.tracing import is_plain


def fused_for(x: Tensor) -> ModuleType | None:
    """Return `model.triton_kernels` if its kernels take `x`, None if they do not.

    They take contiguous tensors of up to 32 bits an element, with 32-bit indices, on CUDA; no
    tensors that only pretend to have elements.
    """
    takes = (
        x.device.type == "cuda"
        and is_plain(x)
        and x.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and x.is_contiguous()
        and 0 < x.numel() < 2**31
    )
    return _kernels() if takes else None


@cache
def _kernels() -> ModuleType | None:
    """Return the kernels where Triton is there, which comes with torch's CUDA builds."""
    try:
        return importlib.import_module("model.triton_kernels")
    except ImportError:
        return None
