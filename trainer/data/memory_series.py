"""Series in memory, as other libraries hand them over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trainer.data.arrays import Indices
from trainer.data.set_format import Columns, Item, Values


class MemorySeries:
    """Items by number, see trainer.data.series_source.Series.

    Their times are taken as they stand. Covariates known in advance may go on after the targets.
    """

    timezone: str | None = None

    def __init__(self, items: Sequence[Item], columns: Columns, name: str = "the series") -> None:
        self._items, self.columns, self.name = items, columns, name
        self.lengths: Indices = np.array([item.length for item in items], np.int64)
        starts = [np.datetime64("NaT") if item.start is None else item.start for item in items]
        self.starts: npt.NDArray[np.datetime64] = np.array(starts, "datetime64[us]")

    @property
    def points(self) -> int:
        """Points of all items."""
        return int(self.lengths.sum())

    def __len__(self) -> int:
        return len(self._items)

    def item_id(self, item: int) -> str:
        """Return the name of an item."""
        return self._items[item].item_id

    def item_ids(self) -> npt.NDArray[np.object_]:
        """Return the names of all items."""
        return np.array([item.item_id for item in self._items], object)

    def freq(self, item: int) -> str | None:
        """Return the interval of an item as an offset of pandas."""
        return self._items[item].freq

    def freqs(self) -> list[str | None]:
        """Return the interval of every item."""
        return [item.freq for item in self._items]

    def target(self, item: int) -> Values:
        """Return the channels of an item [C, T]."""
        return self._items[item].target

    def known(self, item: int) -> Values:
        """Return the covariates of an item that are known in advance [F, T]."""
        return self._items[item].known

    def past(self, item: int) -> Values:
        """Return the covariates of an item that are known up to the present [P, T]."""
        return self._items[item].past
