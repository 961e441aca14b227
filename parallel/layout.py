"""Ranks as one grid, by pure arithmetic.

The axes from outermost to innermost are pipeline, data, tensor: consecutive ranks share a layer
(their traffic stays inside a node), stages lie across nodes. Expert groups are consecutive ranks
of one stage.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.errors import UserError


@dataclass(frozen=True)
class Coordinates:
    """A rank's place on each axis."""

    pipeline: int
    data: int
    tensor: int


@dataclass(frozen=True)
class Layout:
    """The sizes of the axes; their product is the world."""

    pipeline: int
    data: int
    tensor: int = 1
    expert: int = 1

    @classmethod
    def of(cls, world: int, *, pipeline: int, tensor: int = 1, expert: int = 1) -> Layout:
        """Data parallelism is what is left of `world`.

        Raises UserError where the world is no multiple of the other axes.
        """
        fixed = pipeline * tensor
        if world % fixed:
            raise UserError(
                f"{world} ranks cannot form {pipeline} pipeline stages x {tensor} tensor ranks; "
                f"the number of ranks must be a multiple of {fixed}"
            )
        return cls(pipeline=pipeline, data=world // fixed, tensor=tensor, expert=expert)

    @property
    def world(self) -> int:
        return self.pipeline * self.data * self.tensor

    def coordinates(self, rank: int) -> Coordinates:
        outer, tensor = divmod(rank, self.tensor)
        pipeline, data = divmod(outer, self.data)
        return Coordinates(pipeline=pipeline, data=data, tensor=tensor)

    def sizes(self) -> dict[str, int]:
        """The world and each axis, as runs and checkpoints record them."""
        return {"world": self.world, "pipeline": self.pipeline, "data": self.data,
                "tensor": self.tensor, "expert": self.expert}  # fmt: skip

    def __str__(self) -> str:
        return describe(self.sizes())


def describe(sizes: dict[str, int]) -> str:
    """The axes in words."""
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items() if axis != "world")
