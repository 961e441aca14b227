"""Weights & Biases as a sink of metrics.

WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE and its other variables are W&B's own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import wandb

from trainer.logs.log import log
from trainer.logs.sink import RunDescription


class WandbSink:
    """A run of Weights & Biases; its files lie in the run folder's `wandb`."""

    def open(self, run: RunDescription, identifier: str | None) -> str:
        """Begin a run, or continue the one with `identifier`; return its identifier.

        Raises RuntimeError where nobody is logged in; W&B would ask on the terminal.
        """
        is_online = wandb.setup().settings.mode not in ("offline", "disabled")
        if is_online and not wandb.login(prompt=False):
            raise RuntimeError("nobody is logged in: run `wandb login`, or set WANDB_MODE=offline")
        self._run = wandb.init(
            id=identifier,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", "forescale"),
            name=run.folder.resolve().name,
            dir=str(run.folder),
            settings=wandb.Settings(console="off", silent=True),
        )
        # W&B's own count of steps cannot go back, as a resumed run does.
        self._run.define_metric("*", step_metric="step")
        self._run.config.update(dict(run.settings), allow_val_change=True)
        if is_online:
            log.info("W&B:               %s", self._run.url)
        return str(self._run.id)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of a step."""
        self._run.log({"step": step, **numbers})

    def close(self, *, failed: bool) -> None:
        """End the run, after all numbers are sent."""
        self._run.finish(exit_code=int(failed))
