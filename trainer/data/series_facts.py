"""Facts about the series that a forecaster was trained on, for use without these series."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, TypeAdapter

from model.config import SeriesShape


@dataclass(frozen=True)
class SeriesFacts:
    """The series' shape, channels and scaling. Checkpoints and exports keep them as JSON."""

    shape: SeriesShape
    channels: tuple[str, ...]
    mean: tuple[FiniteFloat, ...]
    """Mean of each channel's training part; the network sees (value - mean) / deviation."""
    deviation: tuple[Annotated[FiniteFloat, Field(gt=0)], ...]
    """Standard deviation of each channel's training part."""

    def __post_init__(self) -> None:
        for name in ("channels", "mean", "deviation"):
            if len(getattr(self, name)) != self.shape.channels:
                raise ValueError(f"{name}: expected {self.shape.channels}, one for each channel")

    def content(self) -> dict[str, Any]:
        """Return the facts for a JSON file."""
        return asdict(self)

    @classmethod
    def of(cls, content: dict[str, Any]) -> SeriesFacts:
        """Return the facts of a JSON file's content.

        Raises pydantic's ValidationError where it is something else.
        """
        return _FACTS.validate_json(json.dumps(content))


_FACTS = TypeAdapter(SeriesFacts)
