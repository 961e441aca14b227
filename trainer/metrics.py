"""metrics.jsonl, one line per optimizer step, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Row = dict[str, Any]
"""A step's numbers; a list holds one number for each expert."""


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics file; a last line that was cut off by a kill is left out."""
    rows: list[Row] = []
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class MetricsLog:
    """Appends rows; a resumed run goes on with no step missing and none twice."""

    def __init__(self, run: Path, steps_done: int, *, tensorboard: bool) -> None:
        path = run / "metrics.jsonl"
        kept = [row for row in read_metrics(path) if row["step"] <= steps_done]
        beside = path.with_name(".metrics.jsonl.partial")
        beside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        os.replace(beside, path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open for the run
        self._board: SummaryWriter | None = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=steps_done + 1)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                parts = {name: value}
                if isinstance(value, list):
                    parts = {f"{name}/{index}": part for index, part in enumerate(value)}
                for part, number in parts.items():
                    if part != "step":
                        self._board.add_scalar(part, number, int(row["step"]))

    def sync(self) -> None:
        """To disk, before a checkpoint is: a committed step has its row."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()
