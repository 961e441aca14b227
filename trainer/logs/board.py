"""The metrics of a run as TensorBoard shows them."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from trainer.logs.log import log
from trainer.logs.names import ZERO_SHOT
from trainer.logs.sink import scalars

GROUPS = {
    "loss": ("loss", "validation_mse"),
    "memory": ("device_memory_gib", "host_memory_gib"),
    "optimizer": ("grad_norm", "learning_rate", "skipped_steps", "samples"),
    "ranks": ("attention_seconds", "data_wait_seconds"),
    "routing": ("aux_loss",),
    "speed": ("step_seconds", "tokens_per_second", "points_per_second", "tflops_per_rank", "mfu"),
}
"""Group -> the metrics in it. TensorBoard shows groups in the order of their names: loss first."""

CHARTS = {
    "training": {
        "loss": ["loss/loss", "loss/validation_mse"],
        "gradient norm": ["optimizer/grad_norm"],
        "learning rate": ["optimizer/learning_rate"],
    },
    "zero-shot": {
        "MASE": [f"{ZERO_SHOT}.+/(naive_)?mase"],
        "weighted quantile loss": [f"{ZERO_SHOT}.+/wql"],
    },
    "speed": {
        "tokens per second": ["speed/tokens_per_second"],
        "attention, by rank": [r"ranks/attention_seconds/\d+"],
    },
    "experts": {
        "load": [r"routing/.+/load/\d+"],
        "entropy": ["routing/.+/entropy"],
        "tokens dropped": ["routing/.+/drop_rate"],
    },
}
"""Category -> chart -> the tags in it, by regular expression: TensorBoard's custom scalars."""


class Board:
    """Writes a run's metrics to `folder`, as TensorBoard's run of the run folder's name.

    Where it cannot write, it says so once and the run does without it.
    """

    def __init__(self, folder: Path, steps_done: int, metrics: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard names a run by its folder below --logdir, and calls the latter itself `.`.
        named = folder / folder.resolve().parent.name
        named.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("events.out.tfevents.*"):  # as earlier versions wrote them
            file.rename(named / file.name)
        self._metrics = metrics
        self._writer: Any = SummaryWriter(str(named), purge_step=steps_done + 1)
        layout = {
            category: {name: ["Multiline", tags] for name, tags in charts.items()}
            for category, charts in CHARTS.items()
        }
        self._try("add_custom_scalars", layout)

    def write(self, row: dict[str, Any]) -> None:
        """Write a row's numbers, those of a list under names of their own."""
        for name, number in scalars(row).items():
            self._try("add_scalar", _tag(name), number, int(row["step"]))

    def close(self) -> None:
        """Close the files."""
        self._try("close")

    def _try(self, action: str, *arguments: Any) -> None:
        """Call one of the writer's functions; do without it where it cannot write."""
        if self._writer is None:
            return
        try:
            getattr(self._writer, action)(*arguments)
        except OSError as error:
            log.warning(
                f"TensorBoard's files cannot be written: {error.strerror}; "
                f"{self._metrics} has all numbers"
            )
            self._writer = None


def _tag(name: str) -> str:
    """Return the group and name of a metric; a list's numbers have names such as `name/0`."""
    if name.startswith(ZERO_SHOT):
        return name
    metric, _, number = name.rpartition("/")
    whole = metric if number.isdigit() else name
    group = next((group for group, names in GROUPS.items() if whole in names), None)
    return f"{group or ('routing' if '/' in whole else 'run')}/{name}"


def show_command(folder: Path) -> str:
    """Return the command that shows a run's board, by the environment that this process is of."""
    path = Path(sys.executable).parent / "tensorboard"
    if not path.exists() or shutil.which("tensorboard") == str(path):
        command = "tensorboard"
    else:
        command = os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    return f"{shlex.quote(command)} --logdir {shlex.quote(str(folder))}"
