"""Sums over the windows of a split, of which all scores are made.

Shapes: R quantities, I items, C channels, H steps of the horizon, W windows, B of them in a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from trainer.data.arrays import Doubles, Indices

Key = tuple[str, str | float]
"""What is summed, and the forecast or the level that it is of."""


@dataclass(frozen=True)
class Sums:
    """Sums of quantities that each point of each window has."""

    keys: tuple[Key, ...]
    """Names of the R quantities."""
    by_item: Doubles
    """[R, I, C]"""
    by_step: Doubles
    """[R, H]"""
    by_window: Doubles
    """[R, W]"""

    @classmethod
    def zero(
        cls, keys: Sequence[Key], items: int, channels: int, horizon: int, windows: int
    ) -> Sums:
        """Return sums over no window."""
        shapes = ((items, channels), (horizon,), (windows,))
        return cls(tuple(keys), *(np.zeros((len(keys), *shape)) for shape in shapes))

    def add(self, values: Mapping[Key, Doubles], items: Indices, windows: Indices) -> None:
        """Add quantities [B, H, C] of windows, by the places of these and of their items."""
        for row, key in enumerate(self.keys):
            each = values[key]
            np.add.at(self.by_item[row], items, each.sum(1))
            self.by_step[row] += each.sum((0, 2))
            self.by_window[row, windows] += each.sum((1, 2))

    def flat(self) -> Doubles:
        """Return all sums as one vector, so that one collective sums over ranks."""
        return np.concatenate([getattr(self, field.name).ravel() for field in fields(self)[1:]])

    def of_flat(self, values: Doubles) -> Sums:
        """Return the sums of these shapes that `flat` made a vector of."""
        arrays = [getattr(self, field.name) for field in fields(self)[1:]]
        parts = np.split(values, np.cumsum([array.size for array in arrays])[:-1])
        shaped = (part.reshape(array.shape) for part, array in zip(parts, arrays, strict=True))
        return Sums(self.keys, *shaped)

    def of_items(self, what: str, of: str | float = "") -> Doubles:
        """Return a quantity of each item and channel [I, C]."""
        return np.asarray(self.by_item[self.keys.index((what, of))])

    def of_steps(self, what: str, of: str | float = "") -> Doubles:
        """Return a quantity of each step of the horizon [H]."""
        return np.asarray(self.by_step[self.keys.index((what, of))])

    def of_windows(self, what: str, of: str | float = "") -> Doubles:
        """Return a quantity of each window [W]."""
        return np.asarray(self.by_window[self.keys.index((what, of))])
