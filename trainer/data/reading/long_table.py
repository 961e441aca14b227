"""A table with a row for each point: its rows are gathered by series, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from trainer.config.table_settings import TableConfig
from trainer.data.arrays import Indices
from trainer.data.reading.cells import texts
from trainer.data.reading.problems import Problems
from trainer.data.reading.roles import Roles
from trainer.data.reading.series import SeriesRows, make_item
from trainer.data.reading.time_format import TimeKind
from trainer.data.set_format import Columns, Item

BUDGET = 2**28
"""Bytes of rows that are kept in memory; more are gathered in files."""
SPILLS = 64
"""Files over which series are spread where their rows do not fit in memory."""

ID, ROW, TIME = "id", "row", "time"


def columns_of(roles: Roles) -> Columns:
    """Return the names of what each series of a table has."""
    return Columns(
        target=tuple(c.name for c in roles.targets),
        known=tuple(c.name for c in roles.known),
        past=tuple(c.name for c in roles.past),
        static_numbers=tuple(c.name for c in roles.static_numbers),
        static_categories=roles.static_categories,
    )


class LongTable:
    """The rows of a table, and the series that they are of."""

    def __init__(
        self,
        blocks: Iterable[pa.RecordBatch],
        roles: Roles,
        config: TableConfig,
        source: str,
        problems: Problems,
        *,
        dtype: str,
        spill_folder: Path | None = None,
    ) -> None:
        self.roles, self.config, self.source = roles, config, source
        self.problems, self.dtype = problems, dtype
        self.is_utc = False
        """Whether the times name their offset; known once a block was read."""
        self._blocks, self._folder = blocks, spill_folder

    def items(self) -> Iterator[Item]:
        """Yield the series, in the order of their first rows; by groups where they were spilt."""
        for rows in self._gathered():
            yield from self._items_of(rows)

    def _gathered(self) -> Iterator[pa.Table]:
        """Yield tables that hold all rows of the series that they hold any of."""
        kept: list[pa.RecordBatch] = []
        size = 0
        blocks = self._read()
        for block in blocks:
            kept.append(block)
            size += block.nbytes
            if size > BUDGET and self.roles.ids:
                break
        else:
            if kept:
                yield pa.Table.from_batches(kept)
            return
        with TemporaryDirectory(dir=self._folder, prefix=".rows-") as folder:
            spill = _Spill(Path(folder), kept[0].schema)
            for block in kept:
                spill.write(block)
            kept.clear()
            for block in blocks:
                spill.write(block)
            yield from spill.tables()

    def _read(self) -> Iterator[pa.RecordBatch]:
        """Yield the blocks with their numbers read: id, row, time, the numbers, the categories."""
        first = 1
        for block in self._blocks:
            arrays = {ROW: pa.array(np.arange(first, first + block.num_rows))}
            if self.roles.ids:
                arrays[ID] = self._ids(block, first)
            if self.roles.time is not None:
                cells = block.column(self.roles.time.name)
                times, is_utc = self.roles.time.read(cells, first, self.problems)
                self.is_utc = self.is_utc or is_utc
                arrays[TIME] = pa.array(times)
            for number, column in enumerate(self.roles.numbers):
                values = column.read(block.column(column.name), first, self.problems)
                arrays[f"number {number}"] = pa.array(values)
            for number, name in enumerate(self.roles.static_categories):
                arrays[f"category {number}"] = pa.array(texts(block.column(name)), pa.string())
            first += block.num_rows
            rows = pa.record_batch(list(arrays.values()), names=list(arrays))
            yield rows.filter(pc.is_valid(rows[ID])) if self.roles.ids else rows

    def _ids(self, block: pa.RecordBatch, first: int) -> pa.Array:
        """Return the name of the series that each row is of, null where it has none."""
        parts = [pa.array(texts(block.column(name)), pa.string()) for name in self.roles.ids]
        without = np.zeros(block.num_rows, bool)
        for name, part in zip(self.roles.ids, parts, strict=True):
            missing = np.asarray(pc.equal(pc.utf8_trim_whitespace(part), ""))
            if missing.any():
                row = int(np.flatnonzero(missing)[0]) + first
                self.problems.lose(
                    f"rows without {name}, left out",
                    f"data.id_column: {self.source}, row {row} has no {name}",
                    mend="say which series it belongs to",
                    count=int(missing.sum()),
                )
            without |= missing
        joined = pc.binary_join_element_wise(*parts, "/") if len(parts) > 1 else parts[0]
        return pc.if_else(pa.array(~without), joined, pa.scalar(None, pa.string()))

    def _items_of(self, rows: pa.Table) -> Iterator[Item]:
        numbers = [rows[f"number {n}"].to_numpy() for n in range(len(self.roles.numbers))]
        times = rows[TIME].to_numpy() if self.roles.time is not None else None
        row_numbers = rows[ROW].to_numpy()
        categories = [
            rows[f"category {n}"].to_numpy() for n in range(len(self.roles.static_categories))
        ]
        for name, of_series in self._groups(rows):
            where = f"series {name} of {self.source}" if self.roles.ids else self.source
            matrix = [column[of_series] for column in numbers]
            chosen = self._chosen(matrix, where)
            item = make_item(
                SeriesRows(
                    name,
                    where,
                    row_numbers[of_series],
                    None if times is None else times[of_series],
                    self.roles.time is not None and self.roles.time.form.kind is TimeKind.NUMBERED,
                    self.is_utc,
                    *chosen,
                    self._static_categories(categories, of_series, where),
                    tuple(column.name for column in self.roles.known),
                ),
                self.config,
                self.problems,
                dtype=self.dtype,
                alone=not self.roles.ids,
            )
            if item is not None:
                yield item

    def _groups(self, rows: pa.Table) -> Iterator[tuple[str, Indices | slice]]:
        """Yield each series' name, and its rows: a slice where they stand together."""
        if not self.roles.ids:
            yield Path(self.source).name.split(".")[0], slice(0, rows.num_rows)
            return
        codes, names = _grouped(rows[ID])
        stands_together = bool((np.diff(codes) >= 0).all())
        order = np.arange(len(codes)) if stands_together else np.argsort(codes, kind="stable")
        edges = np.flatnonzero(np.diff(codes[order])) + 1
        bounds = [0, *edges.tolist(), len(codes)]
        for begin, end in pairwise(bounds):
            if begin < end:
                of_series = slice(begin, end) if stands_together else order[begin:end]
                yield names[codes[order[begin]]], of_series

    def _chosen(
        self, matrix: list[npt.NDArray[np.float64]], where: str
    ) -> tuple[
        npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64], tuple[float, ...]
    ]:
        """Return a series' columns by role: target, known and past [T, ...], static numbers."""
        roles, found, start = self.roles, [], 0
        for columns in (roles.targets, roles.known, roles.past):
            part = matrix[start : start + len(columns)]
            start += len(columns)
            found.append(np.column_stack(part) if part else np.empty((len(matrix[0]), 0)))
        static = []
        for column, values in zip(roles.static_numbers, matrix[start:], strict=True):
            known = values[~np.isnan(values)]
            self._check_constant(len(np.unique(known)), column.name, where)
            static.append(float(known[0]) if len(known) else float("nan"))
        return found[0], found[1], found[2], tuple(static)

    def _static_categories(
        self, categories: list[npt.NDArray[np.object_]], rows: Indices | slice, where: str
    ) -> tuple[str, ...]:
        found = []
        for name, column in zip(self.roles.static_categories, categories, strict=True):
            values = pd.unique(column[rows])
            self._check_constant(len(values), name, where)
            found.append(str(values[0]))
        return tuple(found)

    def _check_constant(self, values: int, name: str, where: str) -> None:
        if values > 1:
            self.problems.lose(
                f"series with several values of the static {name}, of which the first counts",
                f"data.static: {name} of {where} has {values} values",
                mend="name it in data.covariates or data.past_covariates",
            )


def _grouped(ids: pa.ChunkedArray) -> tuple[Indices, list[str]]:
    """Return the number of each row's series [T], by first appearance, and the series' names."""
    encoded = ids.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


class _Spill:
    """Files over which the rows of series are spread, all of one series in the same."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._paths = [folder / f"{number:03}.arrow" for number in range(SPILLS)]
        self._writers = [pa.ipc.new_file(str(path), schema) for path in self._paths]

    def write(self, block: pa.RecordBatch) -> None:
        """Write each row of a block into the file of its series."""
        names = block[ID].to_pandas()
        hashes = pd.util.hash_array(names.to_numpy(dtype=object), categorize=True)
        parts = (hashes % np.uint64(SPILLS)).astype(np.int64)
        for part in np.unique(parts):
            rows = pa.array(np.flatnonzero(parts == part))
            self._writers[part].write_batch(block.take(rows))

    def tables(self) -> Iterator[pa.Table]:
        """Yield each file's rows."""
        for writer in self._writers:
            writer.close()
        for path in self._paths:
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
                if table.num_rows:
                    yield table
            path.unlink()
