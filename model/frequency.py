"""Attention between the lowest Fourier modes along time (after Zhou et al. 2022, FEDformer).

Queries, keys and values are transformed along time, their lowest modes attend to each other, and
the result is transformed back: O(L log L) for a fixed number of modes. Each mode depends on the
whole input, so this attention cannot be causal.

Three things keep its output alike for every length: scores are cosines, the answer is brought to
a root mean square of one, and each mode attends with a phase of its own. Without these phases,
modes that attend to all modes alike would come out alike, and add up to a spike at the first point.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from model.errors import UserError

EPSILON = 1e-6


def frequency_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mix: Tensor,
    *,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return attention between the lowest modes of queries, keys and values, as a series of time.

    With Q, K and V the modes, and q and k those of unit root mean square over D:

        Y = conj(p) * softmax(|q k^H| / sqrt(D)) (p * V) * (1 + mix),    p_m = exp(i pi m^2 / modes)

    It is divided by its root mean square over modes and D, and transformed back. Computed in
    fp32, or in fp64 for fp64. Shapes: query [B, H, T, D]; key and value [B, H, S, D]; mix
    [H, modes, D, 2], real and imaginary part; mask broadcastable to [B, 1, 1, S] bool, True where
    a key is visible -> [B, H, T, D]. Raises UserError for another mask.
    """
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape[-2] != 1:
            raise UserError(
                "mask: frequency attention sees all or nothing and takes no mask per query and "
                "none of floats; use att_type standard, xformer or flash"
            )
        visible = mask.transpose(-2, -1)
        key, value = key.masked_fill(~visible, 0.0), value.masked_fill(~visible, 0.0)
    if query.numel() == 0:  # torch.fft takes no empty batch
        return query.clone()
    length, modes = query.shape[2], mix.shape[1]
    q, k, v = (_lowest_modes(x, modes) for x in (query, key, value))
    unit_q, unit_k = (x * _inverse_rms(x, (-1,)) for x in (q, k))
    scores = (unit_q @ unit_k.conj().transpose(-2, -1)).abs() * query.shape[-1] ** -0.5
    weights = scores.softmax(-1)
    kept, of_keys = q.shape[2], k.shape[2]
    phases = _phases(max(kept, of_keys), modes, v)
    learned = torch.view_as_complex(mix.to(v.real.dtype).contiguous())
    factor, v = phases[:kept].conj() * (1 + learned[:, :kept]), phases[:of_keys] * v
    mixed = factor * (weights.to(v.dtype) @ v)
    scale = _inverse_rms(mixed, (-2, -1)) * kept**-0.5
    if dropout:  # the scale stays, so that the mean does
        mixed = factor * (F.dropout(weights, dropout).to(v.dtype) @ v)
    spectrum = torch.view_as_real(mixed * scale)
    padded = F.pad(spectrum, (0, 0, 0, 0, 0, length // 2 + 1 - kept))
    spectrum = torch.view_as_complex(padded.contiguous())
    # A real series holds each mode but the first twice, its conjugate being the other.
    answer = torch.fft.irfft(spectrum, n=length, dim=2, norm="forward") * 0.5**0.5
    return answer.to(query.dtype)


def _lowest_modes(x: Tensor, modes: int) -> Tensor:
    """Return amplitudes of the lowest modes of x along time, complex.

    torch.fft has no half precision.
    """
    precise = x if x.dtype == torch.float64 else x.float()
    return torch.fft.rfft(precise, dim=2, norm="forward")[:, :, :modes]


def _inverse_rms(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return 1 / the root mean square of complex x over `dims`; finite where that is zero."""
    square = torch.view_as_real(x).square().sum(-1)
    return (square.mean(dims, keepdim=True) + EPSILON**2).rsqrt()


def _phases(count: int, modes: int, like: Tensor) -> Tensor:
    """Return exp(i pi m^2 / modes) for m from 0, [count, 1] (Schroeder 1970).

    Equal modes with these phases are a sweep of constant envelope.
    """
    m = torch.arange(count, dtype=like.real.dtype, device=like.device)
    angle = (math.pi / modes) * m.square()
    return torch.complex(angle.cos(), angle.sin()).unsqueeze(-1)
