"""Encodings of positions against their formula."""

from __future__ import annotations

import torch

from model.embedding import sinusoidal


def test_sinusoidal_positions_are_the_formula() -> None:
    table = sinusoidal(2, 5, 6, torch.device("cpu"))
    for row, position in enumerate(range(2, 5)):
        for i in range(3):
            angle = torch.tensor(position / 10_000 ** (2 * i / 6))
            torch.testing.assert_close(table[row, 2 * i], angle.sin(), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(table[row, 2 * i + 1], angle.cos(), rtol=1e-5, atol=1e-6)
