"""A source of series: files of one kind, or a folder of them, that are read as items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pandas as pd
import pyarrow as pa

from model.errors import UserError
from model.sentences import shortened
from trainer.config.table_settings import FILE_NAMES, NO_ID, TableConfig
from trainer.data.frequency import Frequency
from trainer.data.reading import builtin, columnar, delimited, records, text_records, wide_rows
from trainer.data.reading.column_facts import ColumnFacts
from trainer.data.reading.columnar import ColumnarFiles
from trainer.data.reading.compression import suffix_of
from trainer.data.reading.long_table import LongTable, columns_of
from trainer.data.reading.number_format import NumberFormat
from trainer.data.reading.problems import Problems
from trainer.data.reading.records import Record
from trainer.data.reading.roles import Roles, find_roles
from trainer.data.reading.source_files import find_files
from trainer.data.set_format import Columns, Item

Blocks = Iterator[pa.RecordBatch]


@dataclass(frozen=True)
class Source:
    """Series that can be read."""

    name: str
    columns: Columns
    dtype: str
    notes: tuple[str, ...]
    items: Callable[[], Iterator[Item]]
    is_utc: Callable[[], bool]
    """Returns whether the times name their offset; known once the items were read."""
    roles: Roles | None = None
    """What the columns of a table with a row for each point are."""
    left_out: tuple[str, ...] = ()
    """Columns of such a table without a role."""


def open_source(
    text: str, config: TableConfig, problems: Problems, spill_folder: Path | None = None
) -> Source:
    """Return a source by its path: a file, a folder, or a pattern such as data/*.csv.

    Raises UserError where there is none, or it cannot be read.
    """
    try:
        Frequency.parse(config.freq or "D")
    except ValueError as error:
        raise UserError(f"data.freq: {error}; it is named like 30min, h, D, W or MS") from None
    if builtin.is_builtin(text):
        blocks = builtin.read(text)
        return _table(text, [], blocks, config, problems, spill_folder, dtype="float64")
    path, files = find_files(text)
    kind = suffix_of(files[0])
    name = str(path)
    folder = path if path.is_dir() else None
    if kind in delimited.SUFFIXES:
        return _delimited(name, files, config, problems, spill_folder)
    if kind in columnar.PARQUET:
        content = columnar.parquet_files(files, folder)
        return _columnar(name, files, content, config, problems, spill_folder)
    if kind in columnar.ARROW:
        content = columnar.arrow_files(files)
        return _columnar(name, files, content, config, problems, spill_folder)
    read = text_records.read_monash if kind in text_records.MONASH else text_records.read_json_lines
    found = chain.from_iterable(map(read, files))
    first = next(found, None)
    if first is None:
        raise UserError(f"data.source: {name} has no series")
    found = chain([first], found)
    if records.has_lists(first):
        return _records(name, files, first, found, config, problems)
    blocks = _batched(found)
    return _table(name, files, blocks, config, problems, spill_folder, dtype="float64")


def _delimited(
    name: str,
    files: list[Path],
    config: TableConfig,
    problems: Problems,
    spill_folder: Path | None,
) -> Source:
    dialects = [
        delimited.find_dialect(
            file,
            encoding=config.encoding,
            separator=config.separator,
            skip_rows=config.skip_rows,
        )
        for file in files
    ]
    for file, dialect in zip(files, dialects, strict=True):
        if set(dialect.names) != set(dialects[0].names):
            odd = set(dialect.names) ^ set(dialects[0].names)
            raise UserError(
                f"data.source: {file} and {files[0]} have other columns: {shortened(sorted(odd))}"
            )
    blocks = (
        _with_file(block.select(dialects[0].names), file, config)
        for file, dialect in zip(files, dialects, strict=True)
        for block in delimited.read_texts(file, dialect, problems)
    )
    for note in dialects[0].notes:
        problems.say(note)
    comma_is_likely = dialects[0].separator != ","
    return _table(
        name,
        files,
        blocks,
        config,
        problems,
        spill_folder,
        dtype="float64",
        comma_is_likely=comma_is_likely,
    )


def _with_file(block: pa.RecordBatch, file: Path, config: TableConfig) -> pa.RecordBatch:
    """Return rows with the name of their file, where that names the series."""
    if config.id_column != FILE_NAMES or FILE_NAMES in block.schema.names:
        return block
    stem = file.name[: len(file.name) - len("".join(file.suffixes))] or file.name
    return block.append_column(FILE_NAMES, pa.array([stem] * block.num_rows))


def _columnar(
    name: str,
    files: list[Path],
    content: ColumnarFiles,
    config: TableConfig,
    problems: Problems,
    spill_folder: Path | None,
) -> Source:
    schema, batches = content.schema, content.batches(None)
    values = [
        field.type.value_type if _is_list(field.type) else field.type
        for field in schema
        if pa.types.is_floating(field.type) or _is_list(field.type)
    ]
    inner = [kind.value_type if _is_list(kind) else kind for kind in values]
    is_single = bool(inner) and all(
        pa.types.is_float32(k) or pa.types.is_float16(k)
        for k in inner
        if not pa.types.is_integer(k)
    )
    dtype = "float32" if is_single else "float64"
    if any(_is_list(field.type) for field in schema):
        found = _as_records(batches)
        first = next(found, None)
        if first is None:
            raise UserError(f"data.source: {name} has no series")
        found = chain([first], found)
        texts = content.texts()
        return _records(name, files, first, found, config, problems, dtype=dtype, texts=texts)
    return _table(name, files, batches, config, problems, spill_folder, dtype=dtype)


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _as_records(batches: Blocks) -> Iterator[Record]:
    """Yield the rows of batches as records, lists of numbers as arrays."""
    for batch in batches:
        columns = {name: _cells(batch.column(name)) for name in batch.schema.names}
        for row in range(batch.num_rows):
            yield {name: cells[row] for name, cells in columns.items()}


def _cells(column: pa.Array) -> list[object]:
    kind = column.type
    if _is_list(kind) and not _is_list(kind.value_type) and not pa.types.is_string(kind.value_type):
        return [
            [] if not cell.is_valid else cell.values.to_numpy(zero_copy_only=False)
            for cell in column
        ]
    return list(column.to_pylist())


def _records(
    name: str,
    files: list[Path],
    first: Record,
    found: Iterable[Record],
    config: TableConfig,
    problems: Problems,
    *,
    dtype: str = "float64",
    texts: pd.DataFrame | None = None,
) -> Source:
    fields = records.find_fields(first, config, name, texts)
    columns = records.columns_of(fields, first)
    return Source(
        name,
        columns,
        dtype,
        _told_apart(name, fields.ids) if config.id_column is None else (),
        lambda: records.items_of(found, fields, columns, config, name, problems, dtype=dtype),
        lambda: False,
    )


def _told_apart(name: str, ids: tuple[str, ...]) -> tuple[str, ...]:
    """Return a sentence about several fields that name the series together."""
    return (f"{name}: series are told apart by {' and '.join(ids)}",) if len(ids) > 1 else ()


def _batched(found: Iterable[Record], size: int = 10_000) -> Blocks:
    """Yield records without lists as the rows of a table."""
    rows: list[Record] = []
    for record in found:
        rows.append(record)
        if len(rows) == size:
            yield pa.RecordBatch.from_pylist(rows)
            rows = []
    if rows:
        yield pa.RecordBatch.from_pylist(rows)


def _table(
    name: str,
    files: list[Path],
    blocks: Blocks,
    config: TableConfig,
    problems: Problems,
    spill_folder: Path | None,
    *,
    dtype: str,
    comma_is_likely: bool = False,
) -> Source:
    """Return the source of a table with a row for each point, or for each series."""
    first = next(blocks, None)
    if first is None or first.num_rows == 0:
        raise UserError(f"data.source: {name} has no rows")
    second = next(blocks, None)
    sample = first.to_pandas()
    blocks = chain([first], [] if second is None else [second], blocks)
    facts = ColumnFacts(sample, config.decimal)
    values = None
    if config.time_column is None and config.targets is None:
        values = wide_rows.find_values(sample, facts, config.id_column)
    if values is not None:
        return _series_in_rows(name, files, sample, values, blocks, config, problems)
    roles = find_roles(
        sample, config, name, is_whole=second is None, comma_is_likely=comma_is_likely
    )
    _check_files(name, files, roles, config)
    table = LongTable(blocks, roles, config, name, problems, dtype=dtype, spill_folder=spill_folder)
    return Source(
        name,
        columns_of(roles),
        dtype,
        roles.notes,
        table.items,
        lambda: table.is_utc,
        roles,
        tuple(str(name) for name in sample.columns if name not in roles.columns),
    )


def _check_files(name: str, files: list[Path], roles: Roles, config: TableConfig) -> None:
    """Raise UserError where several files could be a series each, or parts of one."""
    if len(files) > 1 and not roles.ids and config.id_column != NO_ID:
        raise UserError(
            f"data.id_column: {name} has {len(files)} files, and no column names the series; set "
            f"data.id_column={FILE_NAMES} if each is a series, or {NO_ID} if they are parts of one"
        )


def _series_in_rows(
    name: str,
    files: list[Path],
    sample: pd.DataFrame,
    values: list[str],
    blocks: Blocks,
    config: TableConfig,
    problems: Problems,
) -> Source:
    names = tuple(str(column) for column in sample.columns if str(column) not in values)
    form = NumberFormat(decimal=config.decimal or ".")
    found = wide_rows.read_records(blocks, values, names, form, name, problems)
    first = next(found)
    given = config.id_column
    ids = (given,) if isinstance(given, str) else tuple(given or names[:1])
    fields = records.Fields(
        ids, "timestamp" if "timestamp" in first else None, None, ("target",), (), (), (), ()
    )
    columns = Columns(("target",))
    count = (
        f"{name}: each row is taken for a series, of the {len(values)} columns {values[0]} to "
        f"{values[-1]}"
    )
    return Source(
        name,
        columns,
        "float64",
        (count,),
        lambda: records.items_of(
            chain([first], found), fields, columns, config, name, problems, dtype="float64"
        ),
        lambda: False,
    )
