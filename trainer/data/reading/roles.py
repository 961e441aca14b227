"""Which column of a table is what: named by the user, or found by name and content, and said.

A column is forecast without being named only where nothing else could be meant by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from model.errors import SeveralSeriesError, UserError
from model.sentences import nearest, shortened
from trainer.config.table_settings import NO_ID, NO_TIME, TableConfig
from trainer.data.reading import number_format, time_format
from trainer.data.reading.cells import NumberColumn, TimeColumn
from trainer.data.reading.column_facts import ColumnFacts
from trainer.data.reading.number_format import NumberFormat
from trainer.data.reading.problems import no_target
from trainer.data.reading.time_format import TimeFormat, TimeKind
from trainer.data.reading.zoned_days import are_zoned_days, without_zone

TIME_NAMES = ("time", "date", "timestamp", "datetime", "ds", "date_time", "datetime_utc", "datum")
"""Usual names of the column of times, in small letters."""
ORDER_NAMES = ("t", "step", "time_idx", "time_index", "period", "index", "no", "n", "row")
"""Usual names of a column that counts the points of each series."""
ID_NAMES = ("unique_id", "item_id", "series_id")
"""Names that a column has only where it names the series."""
LIKELY_ID_NAMES = (
    "id",
    "ts_id",
    "series",
    "item",
    "sku",
    "store",
    "shop",
    "sensor",
    "station",
    "meter",
    "device",
    "symbol",
    "ticker",
    "group",
    "name",
)
"""Names of columns that name the series where times repeat without them."""
CALENDAR_NAMES = (
    "year",
    "quarter",
    "month",
    "week",
    "weekofyear",
    "weekday",
    "dayofweek",
    "day_of_week",
    "dayofyear",
    "day",
    "hour",
    "minute",
    "second",
)
"""Names of columns that repeat what the times say, in small letters."""


UNNAMED_INDEX = re.compile(r"index \d+")
"""Name of a level of pandas' index that has none."""


@dataclass(frozen=True)
class Roles:
    """What each column of a table is."""

    time: TimeColumn | None
    ids: tuple[str, ...]
    """Columns whose values together name the series; none where the table is one series."""
    targets: tuple[NumberColumn, ...]
    known: tuple[NumberColumn, ...]
    past: tuple[NumberColumn, ...]
    static_numbers: tuple[NumberColumn, ...]
    static_categories: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def numbers(self) -> tuple[NumberColumn, ...]:
        """All columns of numbers, as they are read."""
        return (*self.targets, *self.known, *self.past, *self.static_numbers)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns that have a role."""
        time = () if self.time is None else (self.time.name,)
        return (*time, *self.ids, *(c.name for c in self.numbers), *self.static_categories)


def find_roles(
    sample: pd.DataFrame,
    config: TableConfig,
    source: str,
    *,
    is_whole: bool,
    comma_is_likely: bool = False,
) -> Roles:
    """Return the roles of a table's columns, of whose rows `sample` has the first.

    Raises UserError, naming the setting, where a column could be meant in several ways.
    """
    return _Search(sample, config, source, is_whole, comma_is_likely).roles()


class _Search:
    """The search for roles: first the time, then what names the series, then the numbers."""

    def __init__(
        self,
        sample: pd.DataFrame,
        config: TableConfig,
        source: str,
        is_whole: bool,
        comma_is_likely: bool,
    ) -> None:
        self.sample, self.config, self.source = sample, config, source
        self.is_whole, self.comma_is_likely = is_whole, comma_is_likely
        self.facts = ColumnFacts(sample, config.decimal)
        self.columns = [str(column) for column in sample.columns]
        self.notes: list[str] = []
        ids = None if config.id_column == NO_ID else config.id_column
        self.given_ids = [ids] if isinstance(ids, str) else list(ids or [])
        self.named = {
            *self.given_ids,
            *(config.targets or []),
            *config.covariates,
            *config.past_covariates,
            *config.static,
        }

    def roles(self) -> Roles:
        """Return all roles."""
        config = self.config
        for key in ("targets", "covariates", "past_covariates", "static"):
            self._require(getattr(config, key) or [], key)
        self._require(self.given_ids, "id_column")
        time = self._time()
        ids = tuple(self.given_ids)
        if config.id_column is None:
            ids = self._ids(time)
        self._check_order_of(time, ids)
        targets = config.targets or self._targets(time, ids)
        static = [name for name in config.static if self.facts.is_numbers(name)]
        return Roles(
            time,
            ids,
            self._numbers(targets, "targets"),
            self._numbers(config.covariates, "covariates"),
            self._numbers(config.past_covariates, "past_covariates"),
            self._numbers(static, "static"),
            tuple(name for name in config.static if name not in static),
            tuple(self.notes),
        )

    def _require(self, names: Iterable[str], key: str) -> None:
        for name in names:
            if name not in self.columns:
                near = nearest(name, self.columns)
                has = f"did you mean {near!r}?" if near else f"it has {shortened(self.columns)}"
                raise UserError(f"data.{key}: {self.source} has no column {name!r}; {has}")

    def _numbers(self, names: Sequence[str], key: str) -> tuple[NumberColumn, ...]:
        forms = [self._form(name) for name in names]
        self.notes += [form.note for form in forms if form.note is not None]
        return tuple(
            NumberColumn(name, key, self.source, form)
            for name, form in zip(names, forms, strict=True)
        )

    def _form(self, name: str) -> NumberFormat:
        return number_format.decide(
            self.sample[name],
            f"{self.source}, column {name}",
            decimal=self.config.decimal,
            missing=self.config.missing,
            comma_is_likely=self.comma_is_likely,
        )

    # The time

    def _time(self) -> TimeColumn | None:
        """Return the column of times, and how they are written; None where there is none."""
        given = self.config.time_column
        if given == NO_TIME:
            return None
        if given is not None:
            self._require([given], "time_column")
            return self._time_column(given)
        free = [name for name in self.columns if name not in self.named]
        usual = [name for name in free if name.strip().lower() in TIME_NAMES]
        by_content = [name for name in free if self.facts.is_times(name)]
        first = sorted(by_content, key=lambda name: name not in usual)[:1] or usual[:1]
        if not first:
            first = [name for name in free if self._could_be_years(name)][:1]
        if first:
            found = self._time_column(first[0])
            if len(by_content) > 1 and first[0] not in usual:
                others = [name for name in by_content if name != first[0]]
                self.notes.append(
                    f"{self.source}: times are in {first[0]}, not in {shortened(others)}"
                )
            return found
        parts = [name for name in free if name.strip().lower() in CALENDAR_NAMES]
        if {"year", "month"} <= {name.strip().lower() for name in parts}:
            raise UserError(
                f"data.time_column: the times of {self.source} are spread over "
                f"{shortened(parts)}; join them into one column"
            )
        return self._counter(free)

    def _time_column(self, name: str) -> TimeColumn:
        column = self.sample[name].replace("", None)
        are_days = self.config.timezone is None and are_zoned_days(column)
        form = time_format.decide(
            without_zone(column) if are_days else column,
            f"{self.source}, column {name}",
            date_format=self.config.date_format,
            time_unit=self.config.time_unit,
        )
        if form.note is not None:
            self.notes.append(form.note)
        return TimeColumn(name, self.source, form, are_days)

    def _could_be_years(self, name: str) -> bool:
        """Return whether a column is called by the year, and holds years that do not repeat."""
        if name.strip().lower() not in ("year", "years", "yr"):
            return False
        others = {column.strip().lower() for column in self.columns}
        return not {"month", "quarter", "week"} & others and self.facts.is_whole(name)

    def _counter(self, free: list[str]) -> TimeColumn | None:
        """Return a column that counts the points of each series, which then gives their order."""
        for name in sorted(free, key=lambda name: name.strip().lower() not in ORDER_NAMES):
            may_order = name.strip().lower() in ORDER_NAMES or name.startswith("column ")
            if may_order and (self.facts.counts_rows(name) or self.facts.numbers_rows(name)):
                self.notes.append(f"{self.source}: {name} is taken for the order of the points")
                return TimeColumn(name, self.source, TimeFormat(TimeKind.NUMBERED))
        return None

    # The series' names

    def _ids(self, time: TimeColumn | None) -> tuple[str, ...]:
        """Return the column that names the series: one that is called so, or is needed."""
        free = [c for c in self.columns if c not in self.named and (not time or c != time.name)]
        for name in sorted(free, key=lambda name: name.strip().lower() not in ID_NAMES):
            if name.strip().lower() in ID_NAMES:
                self.notes.append(f"{self.source}: series are told apart by {name}")
                return (name,)
        likely = [name for name in free if name.strip().lower() in LIKELY_ID_NAMES]
        likely.sort(key=lambda name: LIKELY_ID_NAMES.index(name.strip().lower()))
        if time is None:
            found = next((name for name in likely if self.facts.stands_together(name)), None)
        elif self.facts.is_unique([time.name]):
            found = None
            if not self.is_whole:  # the series may be so long that the sample has one alone
                found = next((name for name in likely if not self.facts.is_numbers(name)), None)
        else:
            ways = (self.facts.is_unique, self.facts.is_nearly_unique)
            found = next((n for is_so in ways for n in likely if is_so([time.name, n])), None)
            if found is None:
                self._ask_for_ids(time, free)
        if found is None:
            return ()
        self.notes.append(f"{self.source}: series are told apart by {found}")
        return (found,)

    def _ask_for_ids(self, time: TimeColumn, free: list[str]) -> None:
        """Raise UserError where other columns tell rows of the same time apart."""
        names = [
            name
            for name in free
            if self.facts.repeats(name)
            and (not self.facts.is_numbers(name) or self.facts.is_whole(name))
        ]
        names.sort(key=lambda name: self.facts.is_numbers(name))
        for size in (1, 2, 3):
            for some in combinations(names[:8], size):
                if self.facts.is_unique([time.name, *some]) and not any(
                    map(self.facts.counts_rows, some)
                ):
                    given = some[0] if size == 1 else f"[{','.join(some)}]"
                    raise SeveralSeriesError(
                        f"data.id_column: times of {self.source} repeat: several series? "
                        f"Set data.id_column={given} if it tells them apart",
                        some,
                    )

    def _check_order_of(self, time: TimeColumn | None, ids: tuple[str, ...]) -> None:
        """Raise UserError where a counter begins again, and nothing tells the series apart."""
        if time is None or time.form.kind is not TimeKind.NUMBERED or ids:
            return
        if not self.facts.is_unique([time.name]):
            raise UserError(
                f"data.id_column: {time.name} of {self.source} counts several times: several "
                "series? Name the column that tells them apart"
            )

    # The numbers

    def _targets(self, time: TimeColumn | None, ids: tuple[str, ...]) -> list[str]:
        """Return the columns of measurements, and note what is left out and why."""
        taken = {*self.named, *ids, *((time.name,) if time else ())}
        left_out: dict[str, str] = {}
        measured, flat = [], []
        for name in self.columns:
            if name in taken:
                continue
            why = self._why_not_forecast(name, ids)
            if why is None:
                measured.append(name)
            elif why == "does not vary":
                flat.append(name)
            else:
                left_out[name] = why
        if not measured:
            measured, flat = flat, []
        if not measured:
            flags = [name for name, why in left_out.items() if why == "is a flag"]
            measured = flags if len(flags) == 1 else []
        if not measured:
            raise no_target(self.source, left_out)
        left_out |= dict.fromkeys(flat, "does not vary")
        others = [f"{name} ({why})" for name, why in left_out.items() if name not in measured]
        if others or len(measured) > 1:
            rest = f"; left out: {shortened(others)}" if others else ""
            self.notes.append(f"{self.source}: forecasting {shortened(measured)}{rest}")
        return measured

    def _why_not_forecast(self, name: str, ids: tuple[str, ...]) -> str | None:
        """Return why a column that was not named is not forecast; None where it is."""
        if not self.facts.is_numbers(name):
            return "is empty" if self.facts.is_empty(name) else "text"
        lowered = name.strip().lower()
        if self.facts.is_whole(name):
            if self.facts.is_flag(name):
                return "is a flag"
            if self.facts.counts_rows(name, ids) or UNNAMED_INDEX.fullmatch(name):
                return "counts rows"
            if lowered in CALENDAR_NAMES or lowered in ID_NAMES:
                return "a part of the time" if lowered in CALENDAR_NAMES else "names series"
        return None if self.facts.varies(name, ids) else "does not vary"
