"""Rotary positions: queries and keys are rotated by angles that grow with the position."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.fused import fused_for
from model.tracing import is_plain, is_traced


def rotate(x: Tensor, start: int, rotated: int | None = None) -> Tensor:
    """Rotate pairs of channels by their position's angle (Su et al. 2021, RoFormer, eq. 34).

    x [B, T, groups, heads, D] lies at positions start, start + 1, ...; pairs are (i, i + D/2). Of
    each group's heads the first `rotated` are, all by default. Computed in fp32, or in fp64 for
    fp64.
    """
    rotated = x.shape[3] if rotated is None else rotated
    if is_traced() or not is_plain(x):
        cos, sin = _angles(start, start + x.shape[1], x.shape[-1] // 2, x.device)
        turned, others = x.split([rotated, x.shape[3] - rotated], dim=3)
        return torch.cat([_formula(turned, cos, sin), others], 3)
    cos, sin = _kept_angles(start + x.shape[1], x.shape[-1] // 2, x.device)
    result: Tensor = _Rotate.apply(x, cos[start:], sin[start:], rotated)
    return result


class _Rotate(torch.autograd.Function):
    """Computes `rotate`; its gradient is rotated back, and nothing of the size of x is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, rotated: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.rotated = rotated
        return _compute(x, cos, sin, rotated, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _compute(gradients[0].contiguous(), cos, sin, ctx.rotated, -1.0), None, None, None


def _compute(x: Tensor, cos: Tensor, sin: Tensor, rotated: int, sign: float) -> Tensor:
    fused = fused_for(x)
    if fused is not None:
        result: Tensor = fused.rotate(x, cos, sin, rotated, sign)
        return result
    result = torch.empty_like(x)
    result[:, :, :, rotated:] = x[:, :, :, rotated:]
    turned, into = x[:, :, :, :rotated], result[:, :, :, :rotated]
    if x.dtype in (torch.bfloat16, torch.float16):
        into.copy_(_rotated(turned.float(), cos, sin, sign))
    else:
        _rotated(turned, cos, sin, sign, into)
    return result


def _rotated(
    x: Tensor, cos: Tensor, sin: Tensor, sign: float, into: Tensor | None = None
) -> Tensor:
    """Rotate all heads of x [B, T, groups, heads, D] by sign * angles [T, D / 2]."""
    into = torch.empty_like(x) if into is None else into
    cos, sin = (t[: x.shape[1], None, None].to(x.dtype) for t in (cos, sin))
    (first, second), (into_first, into_second) = x.chunk(2, dim=-1), into.chunk(2, dim=-1)
    torch.mul(first, cos, out=into_first).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=into_second).addcmul_(first, sin, value=sign)
    return into


def _formula(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return what `_rotated` does, by operators that torch can differentiate and compile."""
    cos, sin = cos[:, None, None], sin[:, None, None]
    precise = x if x.dtype == torch.float64 else x.float()
    first, second = precise.chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.to(x.dtype)


def _angles(start: int, stop: int, half: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [stop - start, half] of the angles, in fp32."""
    position = torch.arange(start, stop, dtype=torch.float32, device=device)
    rate = torch.arange(half, dtype=torch.float32, device=device)
    angle = position.unsqueeze(1) * torch.exp(rate * (-math.log(10_000.0) / half))
    return angle.cos(), angle.sin()


def _kept_angles(stop: int, half: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the angles of positions from 0 to at least stop - 1, computed once for all layers."""
    return _table(max(64, 1 << (stop - 1).bit_length()), half, device)


@lru_cache(maxsize=16)
def _table(stop: int, half: int, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.no_grad():
        return _angles(0, stop, half, device)
