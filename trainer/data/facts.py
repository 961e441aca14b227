"""What a forecaster must know of the series that it was trained on, without having them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, TypeAdapter

from model.config import SeriesShape


@dataclass(frozen=True)
class SeriesFacts:
    """Kept beside weights, as JSON."""

    shape: SeriesShape
    channels: tuple[str, ...]
    mean: tuple[FiniteFloat, ...]
    """Of each channel's training part; what the network sees is (value - mean) / deviation."""
    deviation: tuple[Annotated[FiniteFloat, Field(gt=0)], ...]

    def __post_init__(self) -> None:
        for name in ("channels", "mean", "deviation"):
            if len(getattr(self, name)) != self.shape.channels:
                raise ValueError(f"{name}: expected {self.shape.channels}, one for each channel")

    def content(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, content: dict[str, Any]) -> SeriesFacts:
        """Raises pydantic's ValidationError where `content` is something else."""
        return _FACTS.validate_json(json.dumps(content))


_FACTS = TypeAdapter(SeriesFacts)
