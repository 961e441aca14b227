"""Patches of contexts and futures."""

from __future__ import annotations

import torch

from model.patches import to_patches


def test_patches_are_cut_from_the_side_that_is_next_to_now() -> None:
    x = torch.arange(1.0, 6.0).view(1, 5, 1)
    assert to_patches(x, 2, align="end").tolist() == [[[0, 1], [2, 3], [4, 5]]]
    assert to_patches(x, 2, align="start").tolist() == [[[1, 2], [3, 4], [5, 0]]]
