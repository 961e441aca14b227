"""The metrics of a run: a file with a line of JSON per optimizer step, and TensorBoard's files."""

from __future__ import annotations

import errno
import json
import os
from math import isfinite
from pathlib import Path
from typing import Any

from trainer.files import sync
from trainer.logs.board import Board
from trainer.logs.log import log
from trainer.logs.sinks import Sinks

Row = dict[str, Any]
"""Numbers of a step by name; a list holds one number for each expert or rank."""


def read_metrics(path: Path) -> list[Row]:
    """Return the rows of a metrics file, without lines that were cut off or garbled."""
    rows: list[Row] = []
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


class MetricsLog:
    """Appends rows to a metrics file, and writes them to the folder `tensorboard` and to `sinks`.

    A resumed run continues the file with no step missing and none twice. Rows that a full disk does
    not take are kept in memory until it does, and no checkpoint is committed before them.
    """

    def __init__(
        self,
        path: Path,
        steps_done: int,
        *,
        tensorboard: Path | None = None,
        sinks: Sinks | None = None,
    ) -> None:
        self._path, self._sinks = path, sinks
        kept = [row for row in read_metrics(path) if row["step"] <= steps_done]
        self.last: Row | None = kept[-1] if kept else None
        missing = steps_done - len(kept)
        if missing and path.exists():
            log.warning("%s: %s of %s steps have no row", path, missing, steps_done)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(map(_line, kept)), encoding="utf-8")
        os.replace(partial, path)
        sync(path.parent)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._size = os.fstat(self._file).st_size
        self._waiting: list[Row] = []
        self._board = Board(tensorboard, steps_done, path.name) if tensorboard else None

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
        before = read_metrics(self._path)[-1]
        assert before["step"] == row["step"]
        self._size -= len(_line(before).encode())
        os.ftruncate(self._file, self._size)
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
        """Write the waiting rows. A line that does not fit on the disk is removed again."""
        while self._waiting:
            line = _line(self._waiting[0]).encode()
            try:
                if os.write(self._file, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.ftruncate(self._file, self._size)
                raise
            self._size += len(line)
            del self._waiting[0]

    def sync(self) -> None:
        """Wait until all rows are on the disk. Raises OSError.

        Called before a checkpoint is committed, so that every committed step has its row.
        """
        self._flush()
        os.fsync(self._file)

    def close(self, *, failed: bool = False) -> None:
        """Close the files, and the sinks of a run that has `failed` or not."""
        os.close(self._file)
        if self._board is not None:
            self._board.close()
        if self._sinks is not None:
            self._sinks.close(failed=failed)


def _line(row: Row) -> str:
    """Return a row as a line of JSON, with null for a number that is not finite: JSON has none."""
    finite = {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite) + "\n"
