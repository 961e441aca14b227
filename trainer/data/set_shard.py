"""The files of a set as Arrow writes them: a shard of items, and where their values lie in it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainer.data.set_format import Columns, FileSum, Item, Values


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


class ShardWriter:
    """Writes one shard of a set: batches of items of the schema's columns."""

    def __init__(self, path: Path, schema: pa.Schema, dtype: np.dtype[Any]) -> None:
        self._schema, self._dtype = schema, dtype
        self._file = _SummedFile(path)
        self._writer = pa.ipc.new_file(self._file.sink, schema)

    @property
    def bytes(self) -> int:
        """Bytes that have been written."""
        return self._file.bytes

    def write(self, items: list[Item]) -> None:
        """Write items as one batch."""
        self._writer.write_batch(_record_batch(items, self._schema, self._dtype))

    def close(self) -> FileSum:
        """Write the end of the file, sync it, and return its sum."""
        self._writer.close()
        with self._file:
            pass
        return self._file.sum

    def abandon(self) -> None:
        """Close the file without an end: nothing will read it."""
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


def offsets(path: Path, columns: Columns, dtype: np.dtype[Any]) -> list[dict[str, int]]:
    """Return the bytes of a shard before the values of each item, by role."""
    names = {"target": "target", "known": "feat_dynamic_real", "past": "past_feat_dynamic_real"}
    rows: list[dict[str, int]] = []
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


def write_table(path: Path, table: pa.Table) -> FileSum:
    """Write a table as one batch."""
    with _SummedFile(path) as file, pa.ipc.new_file(file.sink, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=max(1, table.num_rows))
    return file.sum


def read_table(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()
