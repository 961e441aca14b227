"""Ranks as one grid, by pure arithmetic.

The axes from outermost to innermost are pipeline, data, tensor: the ranks that share a layer's
heads are neighbours (their traffic stays inside a node), stages lie across nodes. An expert group
is `expert` consecutive ranks of one stage, over its tensor and data axes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Coordinates:
    """A rank's place on each axis."""

    pipeline: int
    data: int
    tensor: int
    expert: int
    """Which part of the experts it holds."""


@dataclass(frozen=True)
class Layout:
    """The sizes of the axes; pipeline x data x tensor is the world."""

    pipeline: int
    data: int
    tensor: int = 1
    expert: int = 1

    @classmethod
    def of(cls, world: int, *, pipeline: int, tensor: int = 1, expert: int = 1) -> Layout:
        """Data parallelism is what is left of `world`.

        Raises ValueError where the axes do not divide the world.
        """
        layout = cls(pipeline, world // (pipeline * tensor), tensor, expert)
        if layout.world != world or layout.stage % expert:
            raise ValueError(f"{layout} does not divide {world} ranks")
        return layout

    @property
    def world(self) -> int:
        return self.pipeline * self.stage

    @property
    def stage(self) -> int:
        """Ranks of one pipeline stage."""
        return self.data * self.tensor

    def coordinates(self, rank: int) -> Coordinates:
        pipeline, within = divmod(rank, self.stage)
        data, tensor = divmod(within, self.tensor)
        return Coordinates(pipeline, data, tensor, within % self.expert)

    def tensor_groups(self) -> list[list[int]]:
        """Ranks that share each layer's heads and hidden width."""
        return _consecutive(self.world, self.tensor)

    def data_groups(self) -> list[list[int]]:
        """Ranks that hold the same parameters, experts aside."""
        return [
            [(stage * self.data + data) * self.tensor + tensor for data in range(self.data)]
            for stage in range(self.pipeline)
            for tensor in range(self.tensor)
        ]

    def expert_groups(self) -> list[list[int]]:
        """Ranks that hold all experts of a stage between them."""
        return _consecutive(self.world, self.expert)

    def stage_groups(self) -> list[list[int]]:
        return _consecutive(self.world, self.stage)

    def replica_groups(self) -> list[list[int]]:
        """Ranks that compute the same samples between them."""
        return [
            [
                stage * self.stage + data * self.tensor + tensor
                for stage in range(self.pipeline)
                for tensor in range(self.tensor)
            ]
            for data in range(self.data)
        ]

    def sizes(self) -> dict[str, int]:
        """The world and each axis, as runs and checkpoints record them."""
        return {
            "world": self.world,
            "pipeline": self.pipeline,
            "data": self.data,
            "tensor": self.tensor,
            "expert": self.expert,
        }

    def __str__(self) -> str:
        return describe(self.sizes())


def _consecutive(world: int, size: int) -> list[list[int]]:
    return [list(range(first, first + size)) for first in range(0, world, size)]


def describe(sizes: dict[str, int]) -> str:
    """The axes in words."""
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items() if axis != "world")
