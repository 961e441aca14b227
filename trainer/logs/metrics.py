"""metrics.jsonl, one line per optimizer step, and the same numbers for TensorBoard."""

from __future__ import annotations

import errno
import json
import os
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.files import sync
from trainer.logs.log import log

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Row = dict[str, Any]
"""A step's numbers; a list holds one number for each expert or rank."""


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics file; a line that was cut off or garbled is left out."""
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
    """Appends rows; a resumed run goes on with no step missing and none twice.

    Rows that a full disk does not take wait for it, and no checkpoint is committed before them.
    """

    def __init__(self, run: Path, steps_done: int, *, tensorboard: bool) -> None:
        self._path = run / "metrics.jsonl"
        kept = [row for row in read_metrics(self._path) if row["step"] <= steps_done]
        self.last: Row | None = kept[-1] if kept else None
        missing = steps_done - len(kept)
        if missing and self._path.exists():
            log.warning("%s: %s of %s steps have no row", self._path, missing, steps_done)
        beside = self._path.with_name(".metrics.jsonl.partial")
        beside.write_text("".join(map(_line, kept)), encoding="utf-8")
        os.replace(beside, self._path)
        sync(run)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        self._whole = os.fstat(self._file).st_size
        self._waiting: list[Row] = []
        self._board: SummaryWriter | None = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=steps_done + 1)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, row: Row) -> None:
        self._append(row)
        self._draw(row)

    def complete(self, row: Row) -> None:
        """Write the last row anew, with more in it."""
        before = read_metrics(self._path)[-1]
        assert before["step"] == row["step"]
        self._whole -= len(_line(before).encode())
        os.ftruncate(self._file, self._whole)
        self._append(row)
        self._draw({"step": row["step"]} | {k: v for k, v in row.items() if k not in before})

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
        """Whole lines only: what did not fit is taken back."""
        while self._waiting:
            line = _line(self._waiting[0]).encode()
            try:
                if os.write(self._file, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.ftruncate(self._file, self._whole)
                raise
            self._whole += len(line)
            del self._waiting[0]

    def sync(self) -> None:
        """To disk, before a checkpoint is: a committed step has its row. Raises OSError."""
        self._flush()
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)
        if self._board is not None:
            self._to_board(self._board.close)

    def _draw(self, row: Row) -> None:
        for name, value in row.items():
            parts = {name: value}
            if isinstance(value, list):
                parts = {f"{name}/{index}": part for index, part in enumerate(value)}
            for part, number in parts.items():
                if part != "step" and self._board is not None:
                    self._to_board(self._board.add_scalar, part, number, int(row["step"]))

    def _to_board(self, action: Any, *arguments: Any) -> None:
        try:
            action(*arguments)
        except OSError as error:
            log.warning(
                f"TensorBoard's files cannot be written: {error.strerror}; "
                "metrics.jsonl has all numbers"
            )
            self._board = None


def _line(row: Row) -> str:
    """JSON has no NaN: such a number is null."""
    known = {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in row.items()}
    return json.dumps(known) + "\n"
