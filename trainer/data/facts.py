"""What a forecaster must know of the series that it was trained on, without having them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from model.config import SeriesShape


@dataclass(frozen=True)
class SeriesFacts:
    """Kept beside weights, as JSON."""

    shape: SeriesShape
    channels: tuple[str, ...]
    mean: tuple[float, ...]
    """Of each channel's training part; what the network sees is (value - mean) / deviation."""
    deviation: tuple[float, ...]

    def content(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, content: dict[str, Any]) -> SeriesFacts:
        """Raises KeyError or TypeError where `content` is something else."""
        shape = content["shape"]
        return cls(
            SeriesShape(**{**shape, "calendar": tuple(shape["calendar"])}),
            tuple(content["channels"]), tuple(content["mean"]), tuple(content["deviation"]),
        )  # fmt: skip
