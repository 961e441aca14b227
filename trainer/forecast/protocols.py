"""The literature's protocols: which points of a data set are scored, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import UserError
from trainer.data.series_set import SeriesSet
from trainer.data.set_format import Columns, Item
from trainer.data.set_writer import SetWriter


@dataclass(frozen=True)
class LongTerm:
    """A table of channels, forecast from every point of its test part (Zhou et al. 2021, Informer).

    Channels are standardised by their training part, and no window is dropped (Qiu et al. 2024,
    TFB, tell what dropping the last batch does to scores).
    """

    season: int
    rows: tuple[int, int, int] | None = None
    """Points for training, validation and test; None for 7, 1 and 2 tenths of all."""

    def settings(self, name: str, points: int, context: int) -> dict[str, Any]:
        """Return the settings of `data` for the table `name` of so many points.

        Where a context is shorter than the season, nothing can be repeated from it.

        Raises UserError where it has too few.
        """
        rows = self.rows
        if rows is None:
            training, test = int(points * 0.7), int(points * 0.2)
            rows = (training, points - training - test, test)
        if points < sum(rows):
            raise UserError(
                f"{name} has {points:,} rows, and the protocol divides {sum(rows):,}; name the "
                "whole table"
            )
        return {
            **WHOLE_TABLE,
            "data.split": list(rows),
            "data.score_every": "all",
            "data.scaling": "train",
            "data.season_lengths": [self.season] if self.season <= context else [],
        }


@dataclass(frozen=True)
class M4Group:
    """Series of one interval of the M4 competition (Makridakis et al. 2020)."""

    name: str
    """What its files begin with, as `Hourly` in Hourly-train.csv."""
    horizon: int
    season: int
    """Points of MASE's season; 1 for none."""
    freq: str


LONG_TERM = {
    "etth1": LongTerm(24, (8640, 2880, 2880)),
    "etth2": LongTerm(24, (8640, 2880, 2880)),
    "ettm1": LongTerm(96, (34560, 11520, 11520)),
    "ettm2": LongTerm(96, (34560, 11520, 11520)),
    "weather": LongTerm(144),
    "electricity": LongTerm(24),
    "traffic": LongTerm(24),
    "exchange": LongTerm(7),
}
"""Tables by name."""

M4 = {
    "m4_yearly": M4Group("Yearly", 6, 1, "YS"),
    "m4_quarterly": M4Group("Quarterly", 8, 4, "QS"),
    "m4_monthly": M4Group("Monthly", 18, 12, "MS"),
    "m4_weekly": M4Group("Weekly", 13, 1, "W"),
    "m4_daily": M4Group("Daily", 14, 1, "D"),
    "m4_hourly": M4Group("Hourly", 48, 24, "h"),
}
"""Groups by name."""

WHOLE_TABLE: dict[str, Any] = {
    "data.rows": None,
    "data.split_at": None,
    "data.split_last": None,
    "data.held_out": 0.0,
    "data.min_prediction_length": None,
    "data.context_lengths": None,
}
"""Settings of `data` by which a table is scored whole, whatever a run was trained on."""


def write_channels_apart(series: SeriesSet, folder: Path) -> None:
    """Write each channel of each item as an item of its own, into the new set `folder`.

    All have the item's columns that are known in advance, or up to the present.
    """
    columns = Columns(("value",), series.columns.known, series.columns.past)
    with SetWriter(folder, columns, series.info.dtype) as writer:
        for number in range(len(series)):
            item = series.item(number)
            for name, channel in zip(series.columns.target, item.target, strict=True):
                name_apart = name if len(series) == 1 else f"{item.item_id} {name}"
                writer.add(
                    Item(name_apart, item.start, item.freq, channel[None], item.known, item.past)
                )
        writer.finish(timezone=series.timezone)


def m4_files(group: M4Group, folder: Path) -> tuple[Path, Path]:
    """Return a group's training and test file. Raises UserError where they are not there."""
    found = [
        next((file for file in _candidates(folder, f"{group.name}-{part}") if file.is_file()), None)
        for part in ("train", "test")
    ]
    train, test = found
    if train is None or test is None:
        part = "train" if train is None else "test"
        raise UserError(
            f"{folder} has no {group.name}-{part}.csv; name the folder of the competition's files, "
            "from https://github.com/Mcompetitions/M4-methods"
        )
    return train, test


def _candidates(folder: Path, stem: str) -> Sequence[Path]:
    return [folder / f"{stem}.csv", folder / f"{stem}.csv.gz"]
