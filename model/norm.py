"""Norms over the last dimension: LayerNorm, RMSNorm, and one between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.config import TransformerConfig
from model.init import Init

EPSILON = 1e-5


class _Normalise(torch.autograd.Function):
    """Computes `normalise` of [N, D] in few passes and little memory; torch has no CPU kernel.

    The backward pass is LayerNorm's with a mean of zero. That subtracts the mean of
    gradient * gain from each row, which is added back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, removed: Tensor | None) -> Tensor:
        centred, mean = x, None
        if removed is not None:
            mean = x.mean(-1, keepdim=True)
            centred = torch.addcmul(x, mean, removed, value=-1)
        norm = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
        inverse_rms = norm.square_().div_(len(gain)).add_(EPSILON).rsqrt_()
        ctx.save_for_backward(x, gain, removed, mean, inverse_rms)
        y = x * inverse_rms if mean is None else centred.mul_(inverse_rms)
        return y.mul_(gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, gain, removed, mean, inverse_rms = ctx.saved_tensors
        gradient, size = gradients[0].contiguous(), len(gain)
        centred = x if mean is None else torch.addcmul(x, mean, removed, value=-1)
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
        if mean is None:
            return grad_x, grad_gain, None
        grad_removed = torch.mv(grad_x.t(), mean.squeeze(-1)).neg_()
        grad_x -= torch.mv(grad_x, removed).unsqueeze(-1).div_(size)
        return grad_x, grad_gain, grad_removed


def normalise(x: Tensor, gain: Tensor, removed: Tensor | None = None) -> Tensor:
    """Return gain * c / sqrt(mean(c^2) + eps) with c = x - removed * mean(x).

    Means are over the last dimension. x [..., D], gain and removed [D] -> [..., D].
    """
    if x.device.type == "cpu" and x.dtype == gain.dtype in (torch.float32, torch.float64):
        flat: Tensor = _Normalise.apply(x.reshape(-1, len(gain)), gain, removed)
        return flat.view(x.shape)
    centred = x if removed is None else x - removed * x.mean(-1, keepdim=True)
    return F.rms_norm(centred, gain.shape, gain, EPSILON)


class RMSNorm(nn.Module):
    """Computes x / rms(x) * gain (Zhang & Sennrich 2019): LayerNorm without the mean."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_model))

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
        norm = kind(config.d_model)
        if not isinstance(norm, nn.Module):
            raise TypeError(f"use_adaptive_ln: {kind} made a {type(norm).__name__}, not a module")
        return norm
    if kind == "rms":
        return RMSNorm(config.d_model)
    if kind == "adaptive":
        return AdaptiveNorm(config.d_model)
    return nn.LayerNorm(config.d_model, eps=EPSILON)
