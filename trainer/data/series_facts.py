"""Facts about the series that a forecaster was trained on, for use without these series."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, TypeAdapter

from model.network_config import SeriesShape
from model.sentences import shortened
from trainer.data.frequency import Frequency

Positive = Annotated[FiniteFloat, Field(gt=0)]


@dataclass(frozen=True)
class SourceFacts:
    """A source that was trained on."""

    name: str
    digest: str
    """A hash of all that its set holds."""
    items: int
    windows: int
    """Windows that it was trained on."""
    held_out: int
    """Items of it that were not trained on."""
    intervals: tuple[str, ...] = field(default=(), compare=False)
    """Intervals of its series, as offsets of pandas; () in files of older versions."""

    def in_words(self) -> str:
        """Return what of it was trained on."""
        which = f"all but {self.held_out:,}" if self.held_out else "all"
        return f"{self.windows:,} windows of {which} of its series"


@dataclass(frozen=True)
class SeriesFacts:
    """The series' shape, channels and scaling. Checkpoints and exports keep them as JSON."""

    shape: SeriesShape
    channels: tuple[str, ...]
    mean: tuple[FiniteFloat, ...]
    """Mean of each channel's training part; the network sees (value - mean) / deviation."""
    deviation: tuple[Positive, ...]
    """Standard deviation of each channel's training part."""
    covariate_mean: tuple[FiniteFloat, ...] = ()
    """Mean of each covariate's training part, 0 for calendar features; () where none is scaled."""
    covariate_deviation: tuple[Positive, ...] = ()
    """Standard deviation of each covariate's training part, 1 for calendar features."""
    scaling: Literal["none", "table", "item"] = "table"
    """What `mean` and `deviation` are of: nothing; the only series; or each of many series has its
    own, and a forecast takes those of its context."""
    known: tuple[str, ...] = ()
    """Names of the columns known in advance, which are the last of the covariates; () in files of
    older versions."""
    past: tuple[str, ...] = ()
    """Names of the columns known up to the present."""
    past_mean: tuple[FiniteFloat, ...] = ()
    """Mean of the training part of each of them."""
    past_deviation: tuple[Positive, ...] = ()
    """Standard deviation of the training part of each of them."""
    sources: tuple[SourceFacts, ...] = ()
    """What was trained on; () in files of older versions, which do not say it."""

    def __post_init__(self) -> None:
        for name in ("channels", "mean", "deviation"):
            if len(getattr(self, name)) != self.shape.channels:
                raise ValueError(f"{name}: expected {self.shape.channels}, one for each channel")
        for name in ("past", "past_mean", "past_deviation"):
            if len(getattr(self, name)) != self.shape.past:
                raise ValueError(f"{name}: expected {self.shape.past}, one for each such column")
        for name in ("covariate_mean", "covariate_deviation"):
            if len(getattr(self, name)) not in (0, self.shape.covariates):
                raise ValueError(
                    f"{name}: expected {self.shape.covariates}, one for each covariate"
                )

    def moved(self, other: SeriesFacts) -> str | None:
        """Return a covariate, known in advance or up to the present, that has another place there.

        Of another number of columns weights are no one's: their shapes differ.
        """
        for ours, theirs in ((self.known, other.known), (self.past, other.past)):
            places = {name: place for place, name in enumerate(ours)}
            if len(ours) == len(theirs):
                for place, name in enumerate(theirs):
                    if places.get(name, place) != place:
                        return name
        return None

    def trained_on(self, other: SeriesFacts) -> list[str]:
        """Return a sentence about each source of `other` that was trained on, as far as known."""
        if not self.sources:
            return ["it is not known what was trained on: the weights are of an older version"]
        ours = {source.digest: source for source in self.sources}
        return [
            f"{source.name} was trained on: {ours[source.digest].in_words()}"
            for source in other.sources
            if source.digest in ours
        ]

    @property
    def intervals(self) -> set[str]:
        """Intervals of the series of all sources, as far as known."""
        return {name for source in self.sources for name in source.intervals}

    def other_intervals(self, intervals: Iterable[str | None]) -> list[str]:
        """Return a sentence where series of `intervals` have none of those trained on."""
        known, given = self.intervals, {name for name in intervals if name is not None}
        lengths = ({Frequency.parse(name).length for name in names} for names in (known, given))
        if not known or not given or set.intersection(*lengths):
            return []
        ours, theirs = (shortened(sorted(names), " or ") for names in (known, given))
        return [
            f"the network was trained on series of the interval {ours}, and these have {theirs}: "
            "it may not know their seasons"
        ]

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
