"""The scale of a causal decoder: each patch by what has been seen up to its end, nothing later.

So a loss at every position leaks nothing, and the last position's scale is that of the whole
context (Cohen et al. 2024, Toto, section 3.1). Letters as in `network`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from model.running_max import running_max
from model.window_scale import RESOLUTION, WindowScale, from_first_valid


def whole_patches(x: Tensor, patch_length: int) -> Tensor:
    """Return x [B, T, C] with NaN before it, so that patches are whole: [B, M P, C]."""
    return F.pad(x, (0, 0, -x.shape[1] % patch_length, 0), value=torch.nan)


def running_scale(
    context: Tensor, patch_length: int, *, is_squashed: bool = False
) -> tuple[WindowScale, Tensor]:
    """Return the scales of the patches of context [B, L, C], for values [B, M, T, C].

    Each is the mean and the deviation of all valid points up to the patch's end, 0 and 1 before the
    first, and a deviation of 1 while nothing has varied. Beside it, where there has been a valid
    point [B, M, 1, C], bool.
    """
    padded = whole_patches(context, patch_length)
    valid, level, known = from_first_valid(padded)
    known = known.double()  # the variance is a difference of sums
    ends = slice(patch_length - 1, None, patch_length)
    count = valid.cumsum(1)[:, ends]
    shift = known.cumsum(1)[:, ends] / count.clamp(min=1)
    variance = known.square().cumsum(1)[:, ends] / count.clamp(min=1) - shift.square()
    deviation = variance.clamp(min=0).sqrt()
    largest = running_max(padded.abs().nan_to_num())[:, ends]
    varies = deviation > RESOLUTION * largest
    mean = (level + shift).to(context.dtype).where(count > 0, 0.0)
    scale = WindowScale(
        mean.unsqueeze(2),
        deviation.where(varies, 1.0).to(context.dtype).unsqueeze(2),
        is_squashed,
    )
    return scale, (count > 0).unsqueeze(2)


def following(x: Tensor, patches: int, patch_length: int, length: int) -> Tensor:
    """Return the `length` points after each patch: [B, M, length, C], NaN after the last point.

    x [B, M P + H, C] holds M whole patches, and what follows them.
    """
    missing = patches * patch_length + length - x.shape[1]
    x = F.pad(x, (0, 0, 0, missing), value=torch.nan)
    return x[:, patch_length:].unfold(1, length, patch_length).transpose(2, 3)
