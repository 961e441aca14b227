"""Reading a set: its series lie in memory-mapped files, of which windows are read as slices."""

from __future__ import annotations

import hashlib
import mmap
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numpy.lib.stride_tricks import as_strided

from model.errors import UserError
from trainer.data.arrays import Indices
from trainer.data.series_source import Role
from trainer.data.set_format import INDEX_FILE, Columns, FileSum, Item, SetInfo, Values, read_info
from trainer.files import file_digest

LARGE = 2**27
"""Bytes of a set from which a process does not keep all of its pages that it has read mapped."""
FORGET_EVERY = 256
"""Windows of a large set after which its pages are unmapped: for a moment they are about 150 MB."""


class SeriesSet:
    """The items of a set, by number.

    Its pages are the system's: all processes of a machine that read a set share one copy of them.
    """

    def __init__(self, folder: Path) -> None:
        """Open a set. Reads set.json and the index; raises UserError where a file has changed.

        Of the shards the sizes are looked at alone; `verify` reads them.
        """
        self.folder = folder
        self.info: SetInfo = read_info(folder)
        for file in (self.info.index, *self.info.shards):
            _check_size(folder / file.name, file)
        _check_sum(folder / INDEX_FILE, self.info.index)
        index = _open_table(folder / INDEX_FILE)
        self._ids = index["item_id"].combine_chunks()
        self._freqs = index["freq"].combine_chunks()
        self.lengths: Indices = _numbers(index, "length")
        """Points of each item."""
        self.present: Indices = _numbers(index, "present")
        """Values of each item's target that are not missing."""
        self.starts: npt.NDArray[np.datetime64] = index["start"].to_numpy()
        """Time of each item's first point; NaT where its points are only numbered."""
        self._shard: Indices = _numbers(index, "shard")
        self._index = index
        self._itemsize = np.dtype(self.info.dtype).itemsize
        self._offsets = {
            role: _numbers(index, role) // self._itemsize for role in ("target", "known", "past")
        }
        self._views: dict[tuple[int, int], Values] = {}
        self._maps = [_map(folder / shard.name) for shard in self.info.shards]
        self._files = [self._numbers_of(memory) for memory in self._maps]
        self._is_large = sum(shard.bytes for shard in self.info.shards) > LARGE
        self._read = 0

    @property
    def name(self) -> str:
        """The set in sentences."""
        return str(self.folder)

    @property
    def columns(self) -> Columns:
        """The names of what each item has."""
        return self.info.columns

    @property
    def timezone(self) -> str | None:
        """Zone of the series, see SetInfo."""
        return self.info.timezone

    @property
    def points(self) -> int:
        """Points of all items."""
        return self.info.points

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what was found in the sources."""
        return self.info.notes

    def __len__(self) -> int:
        return self.info.items

    def item_id(self, item: int) -> str:
        """Return the name of an item."""
        return str(self._ids[item])

    def item_ids(self) -> npt.NDArray[np.object_]:
        """Return the names of all items."""
        return np.asarray(self._ids.to_numpy(zero_copy_only=False), object)

    def freq(self, item: int) -> str | None:
        """Return the interval of an item as an offset of pandas."""
        return self._freqs[item].as_py()

    def freqs(self) -> list[str | None]:
        """Return the interval of every item."""
        return list(self._freqs.to_pylist())

    def statistics(self, name: str) -> npt.NDArray[np.float64]:
        """Return each item's `mean`, `deviation`, `minimum` or `maximum`, NaN for none."""
        return self._index[name].to_numpy().astype(np.float64)

    @cached_property
    def digest(self) -> str:
        """A hash that changes with any value, name or time of the set."""
        sums = [self.info.index.sha256, *(shard.sha256 for shard in self.info.shards)]
        text = repr((self.info.columns, self.info.dtype, self.info.timezone, sums))
        return hashlib.sha256(text.encode()).hexdigest()

    def _of_role(self, role: Role, item: int) -> Values:
        return self._values(role, item, len(getattr(self.info.columns, role)))

    def target(self, item: int) -> Values:
        """Return the channels of an item [C, T], without a copy."""
        return self._of_role("target", item)

    def known(self, item: int) -> Values:
        """Return the covariates of an item that are known in advance [F, T], without a copy."""
        return self._of_role("known", item)

    def past(self, item: int) -> Values:
        """Return the covariates of an item that are known up to the present [P, T], no copy."""
        return self._of_role("past", item)

    def item(self, number: int) -> Item:
        """Return an item whole; its values are not copied."""
        start = self.starts[number]
        row = self._shard_row(number)
        return Item(
            self.item_id(number),
            None if np.isnat(start) else start,
            self.freq(number),
            self.target(number),
            self.known(number),
            self.past(number),
            tuple(row.get("feat_static_real") or ()),
            tuple(row.get("feat_static_cat") or ()),
        )

    def windows(self, items: Indices, first: Indices, length: int, role: Role = "target") -> Values:
        """Return [B, C, length]: windows of a role, each from the point `first` of its item.

        Points before an item's first and after its last are NaN.
        """
        channels = np.arange(len(getattr(self.info.columns, role)))
        answer = np.empty((len(items), len(channels), length), self.info.dtype)
        self._forget_pages(len(items))
        points, shards = self.lengths[items], self._shard[items]
        inside = (first >= 0) & (first + length <= points)
        starts = (self._offsets[role][items] + first)[:, None] + points[:, None] * channels
        rows = np.argsort(shards, kind="stable")
        rows = rows if inside.all() else rows[inside[rows]]
        starts, edges = starts[rows], np.flatnonzero(np.diff(shards[rows])) + 1
        for begin, end in pairwise([0, *edges.tolist(), len(rows)] if len(rows) else []):
            windows = self._all_windows(int(shards[rows[begin]]), length)
            answer[rows[begin:end]] = windows[starts[begin:end]]
        for row in np.flatnonzero(~inside):
            begin, end = max(0, int(first[row])), min(int(first[row]) + length, int(points[row]))
            at = begin - int(first[row])
            answer[row] = np.nan
            if begin < end:
                answer[row, :, at : at + end - begin] = self._of_role(role, int(items[row]))[
                    :, begin:end
                ]
        return answer

    def _all_windows(self, shard: int, length: int) -> Values:
        """Return every window of a shard's memory as a row of one view.

        To index it copies whole windows, three times as fast as a loop over slices.
        """
        if (shard, length) not in self._views:
            memory = self._files[shard]
            shape = (max(0, len(memory) - length + 1), length)
            view = as_strided(memory, shape, memory.strides * 2, writeable=False)
            self._views[shard, length] = cast(Values, view)
        return self._views[shard, length]

    def verify(self) -> None:
        """Read every byte. Raises UserError naming the first file that has changed."""
        for file in (self.info.index, *self.info.shards):
            _check_sum(self.folder / file.name, file)

    def _numbers_of(self, memory: mmap.mmap) -> Values:
        """Return a shard's memory as numbers; Arrow lays the values of items at whole ones."""
        numbers = np.frombuffer(memory, self.info.dtype, len(memory) // self._itemsize)
        return cast(Values, numbers)

    def _forget_pages(self, windows: int) -> None:
        """Unmap the pages of a large set now and then: the system keeps them, and this process not.

        A window maps half a megabyte around it, which would add up to the whole set.
        """
        self._read += windows
        if self._is_large and self._read > FORGET_EVERY:
            self._read = 0
            for memory in self._maps:
                memory.madvise(mmap.MADV_DONTNEED)

    def _values(self, role: str, item: int, channels: int) -> Values:
        offset, points = int(self._offsets[role][item]), int(self.lengths[item])
        if channels == 0:
            return np.empty((0, points), self.info.dtype)
        values = self._files[int(self._shard[item])][offset : offset + channels * points]
        return cast(Values, values.reshape(channels, points))

    @cached_property
    def _firsts(self) -> Indices:
        """The number of each shard's first item."""
        return np.searchsorted(self._shard, np.arange(len(self.info.shards)))

    def _shard_row(self, number: int) -> dict[str, Any]:
        """Return what a shard says of an item besides its values."""
        columns = self.info.columns
        if not columns.static_numbers and not columns.static_categories:
            return {}
        shard = int(self._shard[number])
        names = [
            name
            for name, has in (
                ("feat_static_real", columns.static_numbers),
                ("feat_static_cat", columns.static_categories),
            )
            if has
        ]
        row = number - int(self._firsts[shard])
        table = _open_table(self.folder / self.info.shards[shard].name).select(names)
        return dict(table.slice(row, 1).to_pylist()[0])


def _map(path: Path) -> mmap.mmap:
    """Return a file's memory; of one that is not cached, no more than what is read is fetched."""
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    memory.madvise(mmap.MADV_RANDOM)
    return memory


def _check_size(path: Path, file: FileSum) -> None:
    """Raise UserError where a file of a set is not there, or has another size than was written."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; copy the whole set, or prepare it again"
        ) from None
    if size != file.bytes:
        raise UserError(
            f"{path} has {size:,} bytes, and {file.bytes:,} were written; copy it again, or "
            "prepare the set again"
        )


def _check_sum(path: Path, file: FileSum) -> None:
    """Raise UserError where a file of a set has other bytes than were written."""
    if file_digest(path) != file.sha256:
        raise UserError(f"{path} has changed since it was written; prepare the set again")


def _open_table(path: Path) -> pa.Table:
    """Return an Arrow file's table, memory-mapped."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is broken ({error}); prepare the set again") from None


def _numbers(index: pa.Table, name: str) -> Indices:
    return np.asarray(index[name].to_numpy(), np.int64)
