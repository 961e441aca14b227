"""Norms over the last dimension: LayerNorm, RMSNorm, and one between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.config import TransformerConfig
from model.init import Init, keep_start, postponed, start_parameters
from model.tracing import is_traced

EPSILON = 1e-5


BLOCK = 256
"""Number of rows in half precision that are computed in fp32 at once, to stay in the cache."""


class _Normalise(torch.autograd.Function):
    """Computes `normalise` of [N, D] in few passes and little memory; torch has no CPU kernel.

    It computes in the gain's type, which is fp32 for x in bf16 or fp16.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, removed: Tensor | None) -> Tensor:
        if x.dtype == gain.dtype:
            y, mean, inverse_rms = _forward(x, gain, removed)
        else:
            y, parts = torch.empty_like(x), []
            for rows, into in zip(x.split(BLOCK), y.split(BLOCK), strict=True):
                block, *statistics = _forward(rows.to(gain.dtype), gain, removed)
                into.copy_(block)
                parts.append(statistics)
            means, inverses = zip(*parts, strict=True)
            mean = None if removed is None else torch.cat(means)
            inverse_rms = torch.cat(inverses)
        ctx.save_for_backward(x, gain, removed, mean, inverse_rms)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, gain, removed, mean, inverse_rms = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        if x.dtype == gain.dtype:
            return _backward(gradient, x, gain, removed, mean, inverse_rms)
        grad_x, grad_gain = torch.empty_like(x), torch.zeros_like(gain)
        grad_removed = None if removed is None else torch.zeros_like(removed)
        for first in range(0, len(x), BLOCK):
            rows = slice(first, first + BLOCK)
            precise = gradient[rows].to(gain.dtype), x[rows].to(gain.dtype)
            of_rows = None if mean is None else mean[rows]
            block = _backward(*precise, gain, removed, of_rows, inverse_rms[rows])
            grad_x[rows] = block[0]
            grad_gain += block[1]
            if grad_removed is not None and block[2] is not None:
                grad_removed += block[2]
        return grad_x, grad_gain, grad_removed


def _forward(
    x: Tensor, gain: Tensor, removed: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return y, the rows' means if any of them is removed, and one over their deviations."""
    centred, mean = x, None
    if removed is not None:
        mean = x.mean(-1, keepdim=True)
        centred = torch.addcmul(x, mean, removed, value=-1)
    norm = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    inverse_rms = norm.square_().div_(len(gain)).add_(EPSILON).rsqrt_()
    y = x * inverse_rms if mean is None else centred.mul_(inverse_rms)
    return y.mul_(gain), mean, inverse_rms


def _backward(
    gradient: Tensor,
    x: Tensor,
    gain: Tensor,
    removed: Tensor | None,
    mean: Tensor | None,
    inverse_rms: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of x, gain and removed.

    They are LayerNorm's with a mean of zero. That subtracts the mean of gradient * gain from each
    row, which is added back.
    """
    size = len(gain)
    centred = x if mean is None or removed is None else torch.addcmul(x, mean, removed, value=-1)
    grad_x, grad_gain, _ = torch.ops.aten.native_layer_norm_backward(
        gradient,
        centred,
        gain.shape,
        torch.zeros_like(inverse_rms),
        inverse_rms,
        gain,
        None,
        [True, True, False],
    )
    grad_x += torch.mv(gradient, gain).unsqueeze(-1).mul_(inverse_rms).div_(size)
    if mean is None or removed is None:
        return grad_x, grad_gain, None
    grad_removed = torch.mv(grad_x.t(), mean.squeeze(-1)).neg_()
    grad_x -= torch.mv(grad_x, removed).unsqueeze(-1).div_(size)
    return grad_x, grad_gain, grad_removed


def normalise(x: Tensor, gain: Tensor, removed: Tensor | None = None) -> Tensor:
    """Return gain * c / sqrt(mean(c^2) + eps) with c = x - removed * mean(x).

    Means are over the last dimension. x [..., D], gain and removed [D] -> [..., D].
    """
    if x.device.type == "cpu" and x.dtype == gain.dtype and not is_traced():
        flat = x.reshape(-1, len(gain))
        if x.dtype in (torch.bfloat16, torch.float16):
            gain, removed = gain.float(), None if removed is None else removed.float()
        y: Tensor = _Normalise.apply(flat, gain, removed)
        return y.view(x.shape)
    centred = x if removed is None else x - removed * x.mean(-1, keepdim=True)
    return F.rms_norm(centred, gain.shape, gain, EPSILON)


class RMSNorm(nn.Module):
    """Computes x / rms(x) * gain (Zhang & Sennrich 2019): LayerNorm without the mean."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_model))
        start_parameters(self)

    def initial(self) -> Mapping[str, Init]:
        """Return how the module's own parameters start, by name."""
        return {"weight": Init(mean=1.0)}

    def forward(self, x: Tensor) -> Tensor:
        return normalise(x, self.weight)


class AdaptiveNorm(nn.Module):
    """A norm that learns, per channel, how much of the mean to remove.

    It computes gain * c / sqrt(mean(c^2) + eps) with c = x - removed * mean(x), which is RMSNorm
    where `removed` is 0 and LayerNorm (without a shift) where it is 1; it starts at 0.5. A
    condition adds a gain and a shift, which are zero at first (Peebles & Xie 2023, adaLN-Zero).
    """

    def __init__(self, d_model: int, condition_size: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_model))
        self.removed = nn.Parameter(torch.empty(d_model))
        self.condition = (
            nn.Parameter(torch.empty(2, d_model, condition_size)) if condition_size else None
        )
        start_parameters(self)

    def initial(self) -> Mapping[str, Init]:
        """Return how the module's own parameters start, by name."""
        return {"weight": Init(mean=1.0), "removed": Init(mean=0.5), "condition": Init()}

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Normalise x [B, T, d_model].

        The condition is [B, T, condition_size], or [B, condition_size] for whole sequences.
        """
        y = normalise(x, self.weight, self.removed)
        if condition is None:
            return y
        if self.condition is None:
            raise ValueError("a condition was given, but condition_size is 0")
        if condition.ndim == x.ndim - 1:  # one for the whole sequence
            condition = condition.unsqueeze(-2)
        gain, shift = F.linear(condition, self.condition.flatten(0, 1)).chunk(2, dim=-1)
        return y * (1 + gain) + shift


def make_norm(config: TransformerConfig) -> nn.Module:
    """Return a norm of the kind that `config` names."""
    kind = config.use_adaptive_ln
    if callable(kind):
        with postponed(False):
            norm = kind(config.d_model)
        if not isinstance(norm, nn.Module):
            raise TypeError(f"use_adaptive_ln: {kind} made a {type(norm).__name__}, not a module")
        return keep_start(norm)
    if kind == "rms":
        return RMSNorm(config.d_model)
    if kind == "adaptive":
        return AdaptiveNorm(config.d_model)
    return nn.LayerNorm(config.d_model, eps=EPSILON)
