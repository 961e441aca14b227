"""Writing a set: items one after another, into shards of bounded size, in bounded memory."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

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
    shard_schema,
)
from trainer.data.set_shard import ShardWriter, offsets, read_table, write_table
from trainer.files import read_json, sync, write_synced

SHARD_BYTES = 2**29
"""Bytes after which a shard is closed."""
BATCH_BYTES = 2**25
"""Bytes of items that are gathered before they are written."""
LONGEST = 2**31 - 1
"""Values of an item at most: an Arrow list counts them in 32 bits."""
PROGRESS_FILE = "progress.json"

_Row = dict[str, Any]


def partial_folder(folder: Path) -> Path:
    """Return where a set lies while it is written."""
    return folder.with_name(f".{folder.name}.partial")


class SetWriter:
    """Writes a set beside its folder, and moves it there when it is whole.

    Use it as a context manager, and call `finish` at the end. What an interrupted writer has
    closed stays in `.NAME.partial`: one with the same `origin` goes on from there, and the caller
    leaves out its first `kept` items. A UserError leaves nothing.
    """

    kept: int
    """Number of items that an earlier writer has written already."""

    def __init__(
        self,
        folder: Path,
        columns: Columns,
        dtype: str,
        *,
        origin: str = "",
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        if folder.exists():
            raise UserError(f"{folder} exists already; remove it, or name another folder")
        self.folder = folder
        self.columns, self.dtype = columns, np.dtype(dtype)
        self._partial = partial_folder(folder)
        self._schema = shard_schema(columns, dtype)
        self._origin, self._shard_bytes = origin, shard_bytes
        self._shards: list[FileSum] = []
        self._parts: list[FileSum] = []
        self._rows: list[_Row] = []
        self._batch: list[Item] = []
        self._batch_bytes = 0
        self._shard: ShardWriter | None = None
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
        if isinstance(error, UserError):  # the same sources would be refused again
            shutil.rmtree(self._partial, ignore_errors=True)

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

    def finish(self, notes: tuple[str, ...] = (), timezone: str | None = None) -> SetInfo:
        """Write what is left and the index, and move the set to its folder.

        `timezone` is the zone of the starts, see SetInfo.
        """
        if self._batch:
            self._write_batch()
        if self._shard is not None:
            self._close_shard()
        if not self._parts:
            why = "; ".join(notes) or "the sources have no rows"
            raise UserError(f"data.source: no series is left to write: {why}")
        index = [read_table(self._partial / part.name) for part in self._parts]
        table = pa.concat_tables(index)
        file = write_table(self._partial / INDEX_FILE, table)
        info = SetInfo(
            self.columns,
            "float32" if self.dtype == np.float32 else "float64",
            timezone,
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
            self._ids.update(read_table(self._partial / part.name)["item_id"].to_pylist())
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
            self._shard = ShardWriter(self._partial / name, self._schema, self.dtype)
        self._shard.write(self._batch)
        self._rows += [_index_row(item, len(self._shards)) for item in self._batch]
        written = self._shard.bytes
        self._batch, self._batch_bytes = [], 0
        if written >= self._shard_bytes:
            self._close_shard()

    def _close_shard(self) -> None:
        """Close the shard that is open, and record where the values of its items lie."""
        assert self._shard is not None
        shard, self._shard = self._shard.close(), None
        places = offsets(self._partial / shard.name, self.columns, self.dtype)
        rows = [{**row, **place} for row, place in zip(self._rows, places, strict=True)]
        table = pa.Table.from_pylist(rows, INDEX_SCHEMA)
        self._shards.append(shard)
        self._parts.append(write_table(self._partial / f"{shard.name}.index", table))
        self._rows = []
        self._write_progress()


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
