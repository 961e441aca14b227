"""What is needed of series, whether they are read, made or in memory."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from trainer.data.arrays import Indices
from trainer.data.set_format import Columns, Values

Role = Literal["target", "known", "past"]


class Series(Protocol):
    """Items by number."""

    lengths: Indices
    """Points of each item."""
    starts: npt.NDArray[np.datetime64]
    """Time of each item's first point; NaT where its points are only numbered."""

    @property
    def name(self) -> str:
        """The source in sentences."""

    @property
    def columns(self) -> Columns:
        """The names of what each item has."""

    @property
    def timezone(self) -> str | None:
        """Zone of the series, see SetInfo."""

    @property
    def points(self) -> int:
        """Points of all items."""

    def __len__(self) -> int: ...

    def item_id(self, item: int) -> str:
        """Return the name of an item."""

    def item_ids(self) -> npt.NDArray[np.object_]:
        """Return the names of all items."""

    def freq(self, item: int) -> str | None:
        """Return the interval of an item as an offset of pandas."""

    def freqs(self) -> list[str | None]:
        """Return the interval of every item."""

    def target(self, item: int) -> Values:
        """Return the channels of an item [C, T]."""

    def known(self, item: int) -> Values:
        """Return the covariates of an item that are known in advance [F, T]."""

    def past(self, item: int) -> Values:
        """Return the covariates of an item that are known up to the present [P, T]."""


class SeriesSource(Series, Protocol):
    """Items that a dataset can be made of, with windows of their values."""

    present: Indices
    """Values of each item's target that are not missing."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what was found in the sources."""

    @property
    def digest(self) -> str:
        """A hash that changes with any value, name or time."""

    def statistics(self, name: str) -> npt.NDArray[np.float64]:
        """Return each item's `mean`, `deviation`, `minimum` or `maximum`, NaN for none."""

    def windows(self, items: Indices, first: Indices, length: int, role: Role = ...) -> Values:
        """Return [B, C, length]: windows of a role, each from the point `first` of its item."""
