"""Parquet, Feather and Arrow files: record batches, whatever index pandas has written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from trainer.data.reading.compression import BROKEN, unreadable

PARQUET = (".parquet", ".pq")
ARROW = (".arrow", ".feather", ".ipc", ".ftr")
BATCH_ROWS = 2**16


@dataclass(frozen=True)
class ColumnarFiles:
    """Files of record batches, in one order."""

    schema: pa.Schema
    batches: Callable[[list[str] | None], Iterator[pa.RecordBatch]]
    """Returns the rows of some columns, or of all."""

    def texts(self) -> pd.DataFrame:
        """Return all columns of texts, which may name the rows."""
        names = [
            field.name
            for field in self.schema
            if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        ]
        if not names:
            return pd.DataFrame()
        return pa.Table.from_batches(self.batches(names)).to_pandas()


def parquet_files(files: list[Path], folder: Path | None) -> ColumnarFiles:
    """Return Parquet files, with the columns that folders' names give."""
    try:
        data = ds.dataset(
            [str(file) for file in files],
            format="parquet",
            partitioning=ds.partitioning(flavor="hive"),
            partition_base_dir=None if folder is None else str(folder),
        )
    except BROKEN as error:
        raise unreadable(files[0], error) from None

    def batches(columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        few = {"batch_readahead": 2, "fragment_readahead": 1}  # or most of a file is in memory
        try:
            yield from map(_plain, data.to_batches(columns, batch_size=BATCH_ROWS, **few))
        except BROKEN as error:
            raise unreadable(files[0], error) from None

    return ColumnarFiles(data.schema, batches)


def arrow_files(files: list[Path]) -> ColumnarFiles:
    """Return Arrow files, those of random access or streams."""
    with _opened(files[0]) as reader:
        schema = reader.schema

    def batches(columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        for file in files:
            try:
                with _opened(file) as reader:
                    for batch in _all_batches(reader):
                        yield _plain(batch if columns is None else batch.select(columns))
            except BROKEN as error:
                raise unreadable(file, error) from None

    return ColumnarFiles(schema, batches)


def _all_batches(
    reader: pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader,
) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        yield from map(reader.get_batch, range(reader.num_record_batches))
    else:
        yield from reader


def _opened(file: Path) -> pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader:
    try:
        try:
            return pa.ipc.open_file(pa.memory_map(str(file)))
        except pa.ArrowInvalid:
            return pa.ipc.open_stream(pa.memory_map(str(file)))
    except BROKEN as error:
        raise unreadable(file, error) from None


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows with levels of pandas' index as columns, and its periods as their beginning."""
    names = [
        name.replace("__index_level_", "index ").removesuffix("__") for name in batch.schema.names
    ]
    pairs = zip(batch.columns, batch.schema, strict=True)
    return pa.record_batch([_without_periods(*pair) for pair in pairs], names=names)


def _without_periods(cells: pa.Array, field: pa.Field) -> pa.Array:
    """Return a column; pandas writes a period as its number, and its interval beside the type."""
    if isinstance(cells.type, pa.BaseExtensionType):  # pandas has told Arrow of it
        freq = getattr(cells.type, "freq", None)
        cells = cells.storage
    else:
        metadata = field.metadata or {}
        is_period = metadata.get(b"ARROW:extension:name") == b"pandas.period"
        freq = json.loads(metadata[b"ARROW:extension:metadata"])["freq"] if is_period else None
    if freq is None:
        return cells
    known = cells.fill_null(0).to_numpy(zero_copy_only=False)
    starts = pd.PeriodIndex(pd.arrays.PeriodArray(known, dtype=pd.PeriodDtype(freq))).start_time
    times = starts.to_numpy().astype("datetime64[us]")
    return pa.array(times, mask=cells.is_null().to_numpy(zero_copy_only=False))
