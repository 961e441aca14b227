"""The metrics of a run: a file with a line of JSON per optimizer step, and TensorBoard's files."""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

from model.sentences import ranges
from trainer.files import parse_json, sync
from trainer.logs.board import Board
from trainer.logs.log import log
from trainer.logs.sinks import Sinks

Row = dict[str, Any]
"""Numbers of a step by name; a list holds one number for each expert or rank."""

OF_THE_MACHINE = (
    "step_seconds",
    "tokens_per_second",
    "points_per_second",
    "attention_seconds",
    "data_wait_seconds",
    "tflops_per_rank",
    "mfu",
    "device_memory_gib",
    "host_memory_gib",
)
"""Numbers that two runs of the same settings differ in; all others are equal, bit for bit."""

MAX_MISSING = 100
"""Number of steps without a row that a warning names."""


def read_metrics(path: Path) -> list[Row]:
    """Return the rows of a metrics file, without lines that were cut off or garbled.

    None where there is no file.
    """
    rows: list[Row] = []
    if not path.is_file():
        return rows
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            row = parse_json(line)
            if _is_row(row):
                rows.append(row)
    return rows


def without_machine(rows: list[Row]) -> list[Row]:
    """Return what is the same in each run of the same settings: rows without OF_THE_MACHINE."""
    return [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in rows]


def _is_row(row: object) -> bool:
    """Return whether a line's content is a step's numbers, nulls and lists of them."""
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return False
    values = [value if isinstance(value, list) else [value] for value in row.values()]
    return all(v is None or isinstance(v, (int, float)) for some in values for v in some)


class MetricsLog:
    """Appends rows to a metrics file, and writes them to the folder `tensorboard` and to `sinks`.

    A resumed run continues the file with no step missing and none twice; `is_continued` says
    whether the steps done were made in this folder, and so have rows. Rows that a full disk does
    not take are kept in memory until it does, and no checkpoint is committed before them.
    """

    def __init__(
        self,
        path: Path,
        steps_done: int,
        *,
        tensorboard: Path | None = None,
        sinks: Sinks | None = None,
        is_continued: bool = True,
    ) -> None:
        self._path, self._sinks = path, sinks
        rows = read_metrics(path)
        kept = _one_of_each_step(path, [row for row in rows if 1 <= row["step"] <= steps_done])
        self.last: Row | None = kept[-1] if kept else None
        missing = sorted(set(range(1, steps_done + 1)) - {row["step"] for row in kept})
        if missing and is_continued:
            where = str(path) if path.exists() else f"{path} is gone"
            log.warning(
                "%s: %s of %s steps have no row: %s",
                where,
                len(missing),
                steps_done,
                ranges(missing[:MAX_MISSING]) + (", ..." if len(missing) > MAX_MISSING else ""),
            )
        later = max((row["step"] for row in rows), default=0)
        if later > steps_done:
            log.info("steps %s to %s are made again", steps_done + 1, later)
        self._file = self._rewrite("".join(map(_line, kept)).encode())
        self._waiting: list[Row] = []
        self._board = Board(tensorboard, steps_done, path.name) if tensorboard else None

    def _rewrite(self, content: bytes) -> int:
        """Replace the file, or make it anew; return it opened for appending."""
        partial = self._path.with_name(f".{self._path.name}.partial")
        partial.write_bytes(content)
        os.replace(partial, self._path)
        sync(self._path.parent)
        return os.open(self._path, os.O_RDWR | os.O_APPEND)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

    def write(self, row: Row) -> None:
        """Append a step's row."""
        self._append(row)
        if self._board is not None:
            self._board.write(row)
        if self._sinks is not None:
            self._sinks.write(row)

    def complete(self, row: Row) -> None:
        """Replace the last row by `row`, which has more numbers of the same step."""
        before = self.last
        assert before is not None and before["step"] == row["step"]
        line = _line(before).encode()
        start = os.fstat(self._file).st_size - len(line)
        if start >= 0 and os.pread(self._file, len(line), start) == line:
            os.ftruncate(self._file, start)
        self._append(row)
        added = {name: value for name, value in row.items() if name not in before}
        if self._board is not None:
            self._board.write({"step": row["step"], **added})
        if self._sinks is not None:
            self._sinks.write({"step": row["step"], **added})

    def _append(self, row: Row) -> None:
        self.last = row
        first_to_wait = not self._waiting
        self._waiting.append(row)
        try:
            self._flush()
        except OSError as error:
            if first_to_wait:
                log.warning(
                    f"{self._path}: {error.strerror}; rows are kept in memory until it can be "
                    "written, and no checkpoint is committed before"
                )

    def _flush(self) -> None:
        """Write the waiting rows. A line that does not fit on the disk is removed again.

        Somebody may have cut the file meanwhile: what counts is what it holds now.
        """
        while self._waiting:
            line = _line(self._waiting[0]).encode()
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":
                line = b"\n" + line
            if os.write(self._file, line) < len(line):
                os.ftruncate(self._file, min(size, os.fstat(self._file).st_size))
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            del self._waiting[0]

    def sync(self) -> None:
        """Wait until all rows are on the disk. Raises OSError.

        Called before a checkpoint is committed, so that every committed step has its row. A file
        that somebody has removed is written again.
        """
        self._flush()
        self._restore()
        os.fsync(self._file)

    def _restore(self) -> None:
        """Write the file again where it is gone; what it held can still be read."""
        if self._path.exists():
            return
        with open(os.dup(self._file), "rb") as held:
            held.seek(0)
            file = self._rewrite(held.read())
        os.close(self._file)
        self._file = file
        log.warning("%s was removed, and is written again", self._path)

    def close(self, *, failed: bool = False) -> None:
        """Close the files, and the sinks of a run that has `failed` or not."""
        os.close(self._file)
        if self._board is not None:
            self._board.close()
        if self._sinks is not None:
            self._sinks.close(failed=failed)


def _one_of_each_step(path: Path, rows: list[Row]) -> list[Row]:
    """Return the rows by step, the last one of each."""
    by_step = {row["step"]: row for row in rows}
    if len(by_step) < len(rows):
        log.warning("%s: %s rows were double, and are removed", path, len(rows) - len(by_step))
    return [by_step[step] for step in sorted(by_step)]


def _line(row: Row) -> str:
    """Return a row as a line of JSON, with null for a number that is not finite: JSON has none."""
    finite = {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite) + "\n"
