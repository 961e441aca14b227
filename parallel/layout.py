"""The layout: the ranks as one grid. Pure arithmetic, no torch.

The axes from outermost to innermost are pipeline, data, tensor: the ranks that share a layer's
heads are neighbours (their traffic stays inside a node), stages lie across nodes. An expert group
is `expert` consecutive ranks of one stage, over its data and tensor axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Group = list[int]
"""Ranks that communicate along one axis."""


@dataclass(frozen=True)
class Coordinates:
    """A rank's index on each axis."""

    pipeline: int
    data: int
    tensor: int
    expert: int
    """Which part of the experts the rank holds."""


@dataclass(frozen=True)
class Layout:
    """The sizes of the axes; pipeline x data x tensor is the world.

    Layout(pipeline=2, data=2, tensor=2).coordinates(5) is pipeline 1, data 0, tensor 1.
    """

    pipeline: int
    data: int
    tensor: int = 1
    expert: int = 1

    @classmethod
    def of(cls, world: int, *, pipeline: int, tensor: int = 1, expert: int = 1) -> Layout:
        """Return the layout whose data axis is what the others leave of `world` ranks.

        Layout.of(8, pipeline=2, tensor=2) has a data axis of 2. Raises ValueError where the axes
        do not divide the world.
        """
        layout = cls(pipeline, world // (pipeline * tensor), tensor, expert)
        if layout.world != world or layout.stage % expert:
            raise ValueError(f"{layout} does not divide {world} ranks")
        return layout

    @property
    def world(self) -> int:
        """The number of ranks."""
        return self.pipeline * self.stage

    @property
    def stage(self) -> int:
        """The number of ranks of one pipeline stage."""
        return self.data * self.tensor

    def coordinates(self, rank: int) -> Coordinates:
        """Return the position of `rank` on each axis."""
        pipeline, within = divmod(rank, self.stage)
        data, tensor = divmod(within, self.tensor)
        return Coordinates(pipeline, data, tensor, within % self.expert)

    def _grid(self) -> npt.NDArray[np.int64]:
        """Return the ranks as [pipeline, data, tensor]."""
        return np.arange(self.world).reshape(self.pipeline, self.data, self.tensor)

    def tensor_groups(self) -> list[Group]:
        """Return the groups of ranks that share each layer's heads and hidden width."""
        return _rows(self._grid(), self.tensor)

    def data_groups(self) -> list[Group]:
        """Return the groups of ranks that hold the same parameters, experts aside."""
        return _rows(self._grid().transpose(0, 2, 1), self.data)

    def expert_groups(self) -> list[Group]:
        """Return the groups of ranks that hold all experts of a stage between them."""
        return _rows(self._grid(), self.expert)

    def stage_groups(self) -> list[Group]:
        """Return the groups of ranks that hold the same layers."""
        return _rows(self._grid(), self.stage)

    def replica_groups(self) -> list[Group]:
        """Return the groups of ranks that compute the same samples between them."""
        return _rows(self._grid().transpose(1, 0, 2), self.pipeline * self.tensor)

    def sizes(self) -> dict[str, int]:
        """Return the world and each axis, as runs and checkpoints record them."""
        return {
            "world": self.world,
            "pipeline": self.pipeline,
            "data": self.data,
            "tensor": self.tensor,
            "expert": self.expert,
        }

    def __str__(self) -> str:
        return describe(self.sizes())


def _rows(grid: npt.NDArray[np.int64], size: int) -> list[Group]:
    """Return the grid's ranks in order, `size` to a group."""
    groups: list[Group] = grid.reshape(-1, size).tolist()
    return groups


def describe(sizes: dict[str, int]) -> str:
    """Return the axes in words: pipeline 2 x data 2 x tensor 1 x expert 1."""
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items() if axis != "world")
