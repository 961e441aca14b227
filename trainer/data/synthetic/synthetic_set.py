"""A source of series that are made when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from trainer.config.data_settings import SyntheticConfig
from trainer.data.arrays import Indices
from trainer.data.series_set import SeriesSet
from trainer.data.series_source import Role
from trainer.data.set_format import Columns, Values
from trainer.data.synthetic.components import coupled, intermittent, structured
from trainer.data.synthetic.gaussian_process import gaussian_process
from trainer.data.synthetic.mixup import mixed

VERSION = 1
"""Changes where the same seed makes other series than before."""
KEPT = 256
"""Series that are kept for the windows that are asked for next."""


class SyntheticSet:
    """Items that are functions of the seed and their number alone."""

    def __init__(self, config: SyntheticConfig, real: SeriesSet | None = None) -> None:
        """Make series as `config` says; those of `mixup` are of `real` ones."""
        self._config, self._real = config, real
        self.lengths: Indices = np.full(config.items, config.length)
        self.present: Indices = self.lengths * config.channels
        self.starts = np.full(config.items, np.datetime64("NaT"), "datetime64[us]")
        self._made = lru_cache(maxsize=KEPT)(self._make)

    @property
    def name(self) -> str:
        """The source in sentences."""
        return f"synthetic {self._config.kind}"

    @property
    def columns(self) -> Columns:
        """The names of what each item has."""
        return Columns(tuple(f"channel {n}" for n in range(1, self._config.channels + 1)))

    @property
    def timezone(self) -> str | None:
        """None: points are only numbered."""
        return None

    @property
    def points(self) -> int:
        """Points of all items."""
        return self._config.items * self._config.length

    @property
    def notes(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    @property
    def digest(self) -> str:
        """A hash of what the series are made by."""
        real = "" if self._real is None else self._real.digest
        text = f"{VERSION} {self._config.model_dump_json()} {real}"
        return hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        return self._config.items

    def item_id(self, item: int) -> str:
        """Return the name of an item."""
        return f"{self._config.kind} {self._config.seed} {item}"

    def item_ids(self) -> npt.NDArray[np.object_]:
        """Return the names of all items."""
        return np.array([self.item_id(item) for item in range(len(self))], object)

    def freq(self, item: int) -> str | None:
        """Return None: points are only numbered."""
        return None

    def freqs(self) -> list[str | None]:
        """Return None for every item."""
        return [None] * len(self)

    def statistics(self, name: str) -> npt.NDArray[np.float64]:
        """Return NaN for each item: no series is made before it is asked for."""
        return np.full(len(self), np.nan)

    def target(self, item: int) -> Values:
        """Return the channels of an item [C, T]."""
        return self._made(item)

    def known(self, item: int) -> Values:
        """Return no covariates [0, T]."""
        return np.empty((0, self._config.length), np.float32)

    def past(self, item: int) -> Values:
        """Return no columns known up to the present [0, T]."""
        return self.known(item)

    def windows(self, items: Indices, first: Indices, length: int, role: Role = "target") -> Values:
        """Return [B, C, length]: windows of items, each from its point `first`; NaN outside."""
        channels = self._config.channels if role == "target" else 0
        answer = np.full((len(items), channels, length), np.nan, np.float32)
        for row, (item, at) in enumerate(zip(items.tolist(), first.tolist(), strict=True)):
            begin, end = max(0, at), min(at + length, self._config.length)
            if channels and begin < end:
                answer[row, :, begin - at : end - at] = self._made(item)[:, begin:end]
        return answer

    def _make(self, item: int) -> Values:
        """Return an item [C, T]: block `item` of a counter-based generator makes it."""
        config = self._config
        rng = np.random.Generator(np.random.Philox(key=config.seed, counter=item << 64))
        if config.kind == "coupled":
            values = coupled(rng, config.length, config.channels)
        elif config.kind == "mixup":
            assert self._real is not None
            values = mixed(rng, self._real, config.length)
        else:
            make = _KINDS[config.kind]
            values = np.stack([make(rng, config.length) for _ in range(config.channels)])
        return values.astype(np.float32)


_KINDS: dict[str, Callable[[np.random.Generator, int], npt.NDArray[np.float64]]] = {
    "gaussian_process": gaussian_process,
    "structured": structured,
    "intermittent": intermittent,
}
