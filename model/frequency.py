"""Attention between the lowest Fourier modes along time (after Zhou et al. 2022, FEDformer).

Queries, keys and values are transformed along time, their lowest modes attend to each other, and
the result is transformed back: O(L log L) for a fixed number of modes. Each mode depends on the
whole input, so this attention cannot be causal.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from model.errors import UserError


def frequency_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mix: Tensor,
    *,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return softmax(|Q K^H| / sqrt(D)) V * (1 + mix) between modes, transformed back to time.

    It computes in fp32, or in fp64 for fp64. Shapes: query [B, H, T, D]; key and value
    [B, H, S, D]; mix [H, modes, D, 2], real and imaginary part; mask broadcastable to
    [B, 1, 1, S], True where a key is visible -> [B, H, T, D]. Raises UserError for a mask per
    query.
    """
    if mask is not None:
        if mask.shape[-2] != 1:
            raise UserError(
                "mask: frequency attention sees all or nothing and takes no mask per query; "
                "use att_type standard, xformer or flash"
            )
        visible = mask.transpose(-2, -1)
        key, value = key.masked_fill(~visible, 0.0), value.masked_fill(~visible, 0.0)
    length, modes = query.shape[2], mix.shape[1]
    q, k, v = (_lowest_modes(x, modes) for x in (query, key, value))
    scores = (q @ k.conj().transpose(-2, -1)).abs() * query.shape[-1] ** -0.5
    weights = F.dropout(scores.softmax(-1), dropout)
    mixed = weights.to(v.dtype) @ v
    kept = mixed.shape[2]
    learned = torch.view_as_complex(mix.to(mixed.real.dtype).contiguous())
    mixed = mixed * (1 + learned[:, :kept])
    padded = F.pad(torch.view_as_real(mixed), (0, 0, 0, 0, 0, length // 2 + 1 - kept))
    spectrum = torch.view_as_complex(padded.contiguous())
    return torch.fft.irfft(spectrum, n=length, dim=2, norm="ortho").to(query.dtype)


def _lowest_modes(x: Tensor, modes: int) -> Tensor:
    """Return the lowest modes of x along time, complex; torch.fft has no half precision."""
    precise = x if x.dtype == torch.float64 else x.float()
    return torch.fft.rfft(precise, dim=2, norm="ortho")[:, :, :modes]
