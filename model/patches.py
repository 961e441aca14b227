"""Patches: consecutive points of a series that become one token (Nie et al. 2023, PatchTST)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Align = Literal["start", "end"]
"""The side at which patches are whole: "end" for a context, so that zeros fill its oldest patch,
and "start" for a future, so that they fill its furthest one."""


def to_patches(x: Tensor, patch_length: int, *, align: Align) -> Tensor:
    """Cut x [B, T, C] into [B, patches, patch_length * C], with zeros in a partial patch."""
    missing = -x.shape[1] % patch_length
    x = F.pad(x, (0, 0, missing, 0) if align == "end" else (0, 0, 0, missing))
    return x.unflatten(1, (-1, patch_length)).flatten(2)


def value_patches(values: Tensor, patch_length: int, *, align: Align) -> tuple[Tensor, Tensor]:
    """Cut values [R, T, C], NaN where missing, into patches with a flag for each valid point.

    Returns values and flags [R, patches, 2 * patch_length * C], where missing values are 0, and
    padding [R, patches] bool, True where a patch has no valid point.
    """
    valid = (~values.isnan()).to(values.dtype)
    padding = (to_patches(valid, patch_length, align=align) == 0).all(-1)
    both = torch.cat([values.nan_to_num(), valid], -1)
    return to_patches(both, patch_length, align=align), padding
