"""Files with a record for each series: its name, start, interval, and lists of its values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from model.errors import UserError
from model.sentences import shortened
from trainer.config.table_settings import TableConfig
from trainer.data.arrays import Doubles
from trainer.data.frequency import Frequency
from trainer.data.reading.number_format import LARGEST, MISSING
from trainer.data.reading.problems import Problems
from trainer.data.reading.series import SeriesRows, make_item
from trainer.data.set_format import Columns, Item

Record = Mapping[str, Any]

ID_NAMES = ("item_id", "unique_id", "series_id", "id", "series_name", "name")
START_NAMES = ("start", "start_timestamp", "start_time", "timestamp", "time", "ds", "date")
KNOWN, PAST = "feat_dynamic_real", "past_feat_dynamic_real"
STATIC_NUMBERS, STATIC_CATEGORIES = "feat_static_real", "feat_static_cat"


@dataclass(frozen=True)
class Fields:
    """Which field of the records is what."""

    ids: tuple[str, ...]
    start: str | None
    """The first time, or a list of all times."""
    freq: str | None
    targets: tuple[str, ...]
    """Lists of values, one for each channel; or one, of lists."""
    known: tuple[str, ...]
    past: tuple[str, ...]
    static_numbers: tuple[str, ...]
    static_categories: tuple[str, ...]


def has_lists(record: Record) -> bool:
    """Return whether a record holds a whole series."""
    return any(_is_list(value) for value in record.values())


def find_fields(
    first: Record, config: TableConfig, source: str, texts: pd.DataFrame | None = None
) -> Fields:
    """Return which field is what, by the first record. Raises UserError where it cannot be told.

    `texts` are the fields of texts of all records, where they can be had: if the name alone does
    not tell series apart, the name and another may.
    """
    names = list(first)
    lists = [name for name in names if _is_list(first[name])]
    given = {*config.covariates, *config.past_covariates, *config.static}
    for key in ("targets", "covariates", "past_covariates", "static"):
        for name in getattr(config, key) or []:
            if name not in names:
                raise UserError(
                    f"data.{key}: {source} has no field {name!r}; it has {shortened(names)}"
                )
    start = config.time_column or next((n for n in names if n.lower() in START_NAMES), None)
    ids = config.id_column
    free = [name for name in lists if name not in given and name != start]
    features = (KNOWN, PAST, STATIC_NUMBERS, STATIC_CATEGORIES)
    found = ["target"] if "target" in free else [n for n in free if n not in features]
    targets = config.targets or found
    if not targets:
        raise UserError(f"data.targets: {source} has no field with a list of values to forecast")
    numbers = [n for n in config.static if _is_number(first[n])]
    chosen = next((n for n in names if n.lower() in ID_NAMES), None)
    return Fields(
        ids=(ids,) if isinstance(ids, str) else tuple(ids or _ids(chosen, texts)),
        start=None if start == "none" else start,
        freq=next((n for n in names if n.lower() in ("freq", "frequency")), None),
        targets=tuple(targets),
        known=tuple(config.covariates) or ((KNOWN,) if KNOWN in lists else ()),
        past=tuple(config.past_covariates) or ((PAST,) if PAST in lists else ()),
        static_numbers=tuple(numbers) or ((STATIC_NUMBERS,) if STATIC_NUMBERS in lists else ()),
        static_categories=tuple(n for n in config.static if n not in numbers)
        or ((STATIC_CATEGORIES,) if STATIC_CATEGORIES in lists else ()),
    )


def _ids(name: str | None, texts: pd.DataFrame | None) -> list[str]:
    """Return the fields that tell series apart: the name, with another where it repeats."""
    if name is None:
        return []
    if texts is None or name not in texts or texts[name].is_unique:
        return [name]
    others = [str(other) for other in texts if other != name]
    pairs = ([other, name] for other in others if not texts.duplicated([other, name]).any())
    return next(pairs, [name])


def columns_of(fields: Fields, first: Record) -> Columns:
    """Return the names of what each series has; the members of a list are numbered."""

    def named(fields: tuple[str, ...]) -> tuple[str, ...]:
        names: list[str] = []
        for field in fields:
            rows = _rows(first[field])
            names += (
                [field]
                if len(rows) == 1 and field != KNOWN
                else [f"{field} {number}" for number in range(1, len(rows) + 1)]
            )
        return tuple(names)

    def counted(fields: tuple[str, ...]) -> tuple[str, ...]:
        names: list[str] = []
        for field in fields:
            value = first[field]
            size = len(value) if _is_list(value) else 1
            names += [field] if size == 1 else [f"{field} {n}" for n in range(1, size + 1)]
        return tuple(names)

    return Columns(
        named(fields.targets),
        named(fields.known),
        named(fields.past),
        counted(fields.static_numbers),
        counted(fields.static_categories),
    )


def items_of(
    records: Iterable[Record],
    fields: Fields,
    columns: Columns,
    config: TableConfig,
    source: str,
    problems: Problems,
    *,
    dtype: str,
) -> Iterator[Item]:
    """Yield the series of records."""
    for number, record in enumerate(records, start=1):
        name = "/".join(str(record.get(field)) for field in fields.ids) or f"series {number}"
        where = f"record {number} ({name}) of {source}"
        try:
            rows = _series_rows(record, fields, columns, name, where)
        except (ValueError, TypeError, KeyError) as error:
            problems.lose(
                "records that cannot be read, left out",
                f"data.source: {where}: {error}",
                mend="correct it",
            )
            continue
        if rows.target.shape[0] == 0:
            problems.note("series without a value, left out", where)
            continue
        is_infinite = np.abs(rows.target) > LARGEST
        infinite = int(is_infinite.sum())
        if infinite:
            problems.lose(
                "infinite values, read as missing",
                f"data.source: {where} has {infinite} infinite values",
                mend="correct them",
                count=infinite,
            )
            rows.target[is_infinite] = np.nan
        item = make_item(rows, config, problems, dtype=dtype, alone=False)
        if item is None:
            continue
        if rows.times is None:
            item = _dated(item, record, fields, config, where, problems)
        yield item


def _series_rows(
    record: Record, fields: Fields, columns: Columns, name: str, where: str
) -> SeriesRows:
    """Return the rows of a record's series. Raises ValueError for what does not fit together."""
    target = _matrix(record, fields.targets)
    length = target.shape[1]
    known, past = _matrix(record, fields.known, length), _matrix(record, fields.past, length)
    if known.shape[1] > length:
        known = known[:, :length]  # GluonTS goes on into the future
    for role, matrix in (("target", target), ("known", known), ("past", past)):
        expected = len(getattr(columns, role))
        if matrix.shape != (expected, length):
            raise ValueError(f"expected {expected} x {length} values of {role}, got {matrix.shape}")
    times = None
    if fields.start is not None and _is_list(record[fields.start]):
        stamps = pd.DatetimeIndex(pd.to_datetime(list(record[fields.start])))
        times = stamps.to_numpy().astype("datetime64[us]")
        if len(times) != length:
            raise ValueError(f"it has {len(times)} times and {length} values")
    return SeriesRows(
        name,
        where,
        np.arange(1, length + 1),
        times,
        numbered=False,
        is_utc=False,
        target=target.T.copy(),
        known=known.T.copy(),
        past=past.T.copy(),
        static_numbers=tuple(float(v) for v in _flat(record, fields.static_numbers)),
        static_categories=tuple(str(v) for v in _flat(record, fields.static_categories)),
        known_names=columns.known,
    )


def _dated(
    item: Item,
    record: Record,
    fields: Fields,
    config: TableConfig,
    where: str,
    problems: Problems,
) -> Item:
    """Return an item with its start and interval as far as the record says them."""
    name = record.get(fields.freq) if fields.freq else None
    if name is None or str(name).strip().lower() in MISSING:
        name = config.freq
    if name is None:
        if fields.start is not None:
            problems.note(
                "series with a start but no interval, whose points are only numbered; set "
                "data.freq, e.g. data.freq=h",
                where,
            )
        return item
    if fields.start is None or record.get(fields.start) is None:
        return _with_freq(item, None, str(name), where)
    try:
        stamp = pd.Timestamp(record[fields.start])
        start = stamp.tz_localize(None).to_datetime64().astype("datetime64[us]")
    except (ValueError, TypeError):
        raise UserError(
            f"data.time_column: {where} starts at {record[fields.start]!r}, which is no time"
        ) from None
    return _with_freq(item, start, str(name), where)


def _with_freq(item: Item, start: np.datetime64 | None, freq: str, where: str) -> Item:
    """Return an item with its start and interval. Raises UserError where that is none."""
    try:
        name = Frequency.named(freq, start)
    except ValueError as error:
        raise UserError(f"data.freq: {where}: {error}; use 30min, h, D, B, W, MS, QS, YS") from None
    return replace(item, start=start, freq=name)


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _rows(value: Any) -> list[Any]:
    """Return the channels of a field: itself, or its members where these are lists."""
    return list(value) if len(value) and _is_list(value[0]) else [value]


def _matrix(record: Record, fields: tuple[str, ...], length: int = 0) -> Doubles:
    """Return the channels of some fields [C, T]."""
    rows = [np.asarray(row, np.float64) for field in fields for row in _rows(record[field])]
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"its lists have {shortened([str(len(row)) for row in rows])} values")
    return np.stack(rows) if rows else np.empty((0, length))


def _flat(record: Record, fields: tuple[str, ...]) -> list[Any]:
    values: list[Any] = []
    for field in fields:
        values += list(record[field]) if _is_list(record[field]) else [record[field]]
    return values
