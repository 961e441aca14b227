"""Writing a set: items one after another, into shards of bounded size, in bounded memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from model.errors import UserError
from trainer.data.set_format import (
    INDEX_FILE,
    INDEX_SCHEMA,
    SET_FILE,
    Columns,
    FileSum,
    Item,
    SetInfo,
    Values,
    shard_schema,
)
from trainer.files import read_json, sync, write_synced

SHARD_BYTES = 2**29
"""Bytes after which a shard is closed."""
BATCH_BYTES = 2**25
"""Bytes of items that are gathered before they are written."""
LONGEST = 2**31 - 1
"""Values of an item at most: an Arrow list counts them in 32 bits."""
PROGRESS_FILE = "progress.json"

_Row = dict[str, Any]


class SetWriter:
    """Writes a set beside its folder, and moves it there when it is whole.

    Use it as a context manager, and call `finish` at the end. What an interrupted writer has
    closed stays in `.NAME.partial`: one with the same `origin` goes on from there, and the caller
    leaves out its first `kept` items.
    """

    kept: int
    """Number of items that an earlier writer has written already."""

    def __init__(
        self,
        folder: Path,
        columns: Columns,
        dtype: str,
        timezone: str | None = None,
        *,
        origin: str = "",
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        if folder.exists():
            raise UserError(f"{folder} exists already; remove it, or name another folder")
        self.folder = folder
        self.columns, self.dtype, self.timezone = columns, np.dtype(dtype), timezone
        self._partial = folder.with_name(f".{folder.name}.partial")
        self._schema = shard_schema(columns, dtype)
        self._origin, self._shard_bytes = origin, shard_bytes
        self._shards: list[FileSum] = []
        self._parts: list[FileSum] = []
        self._rows: list[_Row] = []
        self._batch: list[Item] = []
        self._batch_bytes = 0
        self._shard: _Shard | None = None
        self._ids: set[str] = set()
        self.kept = self._resume()

    def __enter__(self) -> SetWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shard is not None:
            self._shard.abandon()

    def add(self, item: Item) -> None:
        """Write one more item.

        Raises UserError where its name has come before, or it has more points than a list of Arrow
        holds.
        """
        if item.item_id in self._ids:
            raise UserError(f"{item.item_id!r} names two series; give each its own name")
        if max(item.target.size, item.known.size, item.past.size) > LONGEST:
            raise UserError(
                f"{item.item_id!r} has {item.target.size:,} values, and a set holds {LONGEST:,} of "
                "a series at most; divide it"
            )
        self._ids.add(item.item_id)
        size = self._bytes(item)
        if self._batch and self._batch_bytes + size > min(BATCH_BYTES, self._shard_bytes):
            self._write_batch()
        self._batch.append(item)
        self._batch_bytes += size

    def finish(self, notes: tuple[str, ...] = ()) -> SetInfo:
        """Write what is left and the index, and move the set to its folder."""
        if self._batch:
            self._write_batch()
        if self._shard is not None:
            self._close_shard()
        if not self._parts:
            raise UserError(f"{self.folder}: there is no series to write")
        index = [_read_table(self._partial / part.name) for part in self._parts]
        table = pa.concat_tables(index)
        file = _write_table(self._partial / INDEX_FILE, table)
        info = SetInfo(
            self.columns,
            "float32" if self.dtype == np.float32 else "float64",
            self.timezone,
            items=table.num_rows,
            points=int(np.sum(table["length"].to_numpy())),
            index=file,
            shards=tuple(self._shards),
            notes=notes,
        )
        write_synced(self._partial / SET_FILE, info.text())
        for part in self._parts:
            (self._partial / part.name).unlink()
        (self._partial / PROGRESS_FILE).unlink()
        sync(self._partial)
        os.rename(self._partial, self.folder)
        sync(self.folder.parent)
        return info

    def _resume(self) -> int:
        """Take over what an earlier writer of the same origin has closed; return its items."""
        try:
            progress = read_json(self._partial / PROGRESS_FILE)
            same = progress["origin"] == self._origin and progress["schema"] == str(self._schema)
            pairs = [[FileSum(**file) for file in pair] for pair in progress["closed"]]
        except (OSError, ValueError, KeyError, TypeError):
            same, pairs = False, []
        if not same:
            if self._partial.exists():
                shutil.rmtree(self._partial)
            self._partial.mkdir(parents=True)
            self._write_progress()
            return 0
        for shard, part in pairs:
            self._shards.append(shard)
            self._parts.append(part)
            self._ids.update(_read_table(self._partial / part.name)["item_id"].to_pylist())
        return len(self._ids)

    def _write_progress(self) -> None:
        closed = [
            [file.__dict__ for file in pair] for pair in zip(self._shards, self._parts, strict=True)
        ]
        content = {"origin": self._origin, "schema": str(self._schema), "closed": closed}
        partial = self._partial / f"{PROGRESS_FILE}.new"
        write_synced(partial, json.dumps(content))
        os.replace(partial, self._partial / PROGRESS_FILE)
        sync(self._partial)

    def _bytes(self, item: Item) -> int:
        return (item.target.size + item.known.size + item.past.size) * self.dtype.itemsize

    def _write_batch(self) -> None:
        if self._shard is None:
            name = f"shard-{len(self._shards):05}.arrow"
            self._shard = _Shard(self._partial / name, self._schema)
        self._shard.write(_record_batch(self._batch, self._schema, self.dtype))
        self._rows += [_index_row(item, len(self._shards)) for item in self._batch]
        written = self._shard.bytes
        self._batch, self._batch_bytes = [], 0
        if written >= self._shard_bytes:
            self._close_shard()

    def _close_shard(self) -> None:
        """Close the shard that is open, and record where the values of its items lie."""
        assert self._shard is not None
        shard, self._shard = self._shard.close(), None
        offsets = _offsets(self._partial / shard.name, self.columns, self.dtype)
        rows = [{**row, **place} for row, place in zip(self._rows, offsets, strict=True)]
        table = pa.Table.from_pylist(rows, INDEX_SCHEMA)
        self._shards.append(shard)
        self._parts.append(_write_table(self._partial / f"{shard.name}.index", table))
        self._rows = []
        self._write_progress()


class _SummedFile:
    """A file whose size and sum are taken while it is written, synced at its end."""

    sum: FileSum

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115 - closed by __exit__
        self._hash = hashlib.sha256()
        self.bytes = 0
        self.sink = pa.PythonFile(self, mode="w")

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self._file.write(data)
        size = memoryview(data).nbytes
        self.bytes += size
        return size

    def flush(self) -> None:
        self._file.flush()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        """Arrow closes its sink; the file is closed by the context."""

    def __enter__(self) -> _SummedFile:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.sum = FileSum(self._path.name, self.bytes, self._hash.hexdigest())


class _Shard:
    """A shard that is being written."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = _SummedFile(path)
        self._writer = pa.ipc.new_file(self._file.sink, schema)

    @property
    def bytes(self) -> int:
        return self._file.bytes

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)

    def close(self) -> FileSum:
        self._writer.close()
        with self._file:
            pass
        return self._file.sum

    def abandon(self) -> None:
        with self._file:
            pass


def _record_batch(items: list[Item], schema: pa.Schema, dtype: np.dtype[Any]) -> pa.RecordBatch:
    """Return the rows of a shard that hold `items`."""
    nested = not pa.types.is_floating(schema.field("target").type.value_type)
    columns = {
        "item_id": [item.item_id for item in items],
        "start": np.array(
            ["NaT" if item.start is None else item.start for item in items], "datetime64[us]"
        ),
        "freq": [item.freq for item in items],
        "target": _lists([item.target for item in items], dtype, nested=nested),
        "feat_dynamic_real": _lists([item.known for item in items], dtype, nested=True),
        "past_feat_dynamic_real": _lists([item.past for item in items], dtype, nested=True),
        "feat_static_real": [item.static_numbers for item in items],
        "feat_static_cat": [item.static_categories for item in items],
    }
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    return pa.record_batch(arrays, schema=schema)


def _lists(arrays: list[Values], dtype: np.dtype[Any], *, nested: bool) -> pa.Array:
    """Return the list, or with `nested` the list of lists, of each array [C, T]."""
    flat = np.concatenate([array.astype(dtype, copy=False).reshape(-1) for array in arrays])
    inner = [array.shape[1] for array in arrays for _ in range(array.shape[0])]
    lists = pa.ListArray.from_arrays(_edges(inner), pa.array(flat))
    if not nested:
        return lists
    return pa.ListArray.from_arrays(_edges([array.shape[0] for array in arrays]), lists)


def _edges(lengths: list[int]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))]), pa.int32())


def _index_row(item: Item, shard: int) -> _Row:
    """Return what the index says of an item, but for where its values lie."""
    values = item.target.astype(np.float64, copy=False)
    present: npt.NDArray[np.float64] = values[~np.isnan(values)]
    some = present.size > 0
    return {
        "item_id": item.item_id,
        "start": None if item.start is None else item.start.astype("datetime64[us]"),
        "freq": item.freq,
        "length": item.length,
        "shard": shard,
        "present": present.size,
        "mean": float(present.mean()) if some else None,
        "deviation": float(present.std()) if some else None,
        "minimum": float(present.min()) if some else None,
        "maximum": float(present.max()) if some else None,
    }


def _offsets(path: Path, columns: Columns, dtype: np.dtype[Any]) -> list[_Row]:
    """Return the bytes of a shard before the values of each item, by role."""
    names = {"target": "target", "known": "feat_dynamic_real", "past": "past_feat_dynamic_real"}
    rows: list[_Row] = []
    with pa.memory_map(str(path)) as file:
        base = file.read_buffer().address
        file.seek(0)
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            places = {
                role: _places(batch.column(name), base, dtype.itemsize)
                if name in batch.schema.names
                else np.full(batch.num_rows, -1)
                for role, name in names.items()
            }
            rows += [
                {role: int(of_role[row]) for role, of_role in places.items()}
                for row in range(batch.num_rows)
            ]
    return rows


def _places(lists: pa.Array, base: int, itemsize: int) -> npt.NDArray[np.int64]:
    """Return the bytes between `base` and the first value of each list."""
    first = lists.offsets.to_numpy()[:-1]
    values = lists.values
    if pa.types.is_list(values.type):
        first = values.offsets.to_numpy()[first]
        values = values.values
    address = values.buffers()[1].address + values.offset * itemsize
    return np.asarray(address - base + first.astype(np.int64) * itemsize)


def _write_table(path: Path, table: pa.Table) -> FileSum:
    """Write a table as one batch."""
    with _SummedFile(path) as file, pa.ipc.new_file(file.sink, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=max(1, table.num_rows))
    return file.sum


def _read_table(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()
