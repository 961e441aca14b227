"""MLflow as a sink of metrics.

MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and its other variables are MLflow's own.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from trainer.logs.sink import RunDescription

MAX_METRICS, MAX_PARAMETERS, MAX_TEXT = 1000, 100, 6000
"""Most metrics and parameters that MLflow takes at once, and most characters of a parameter."""


class MlflowSink:
    """A run of MLflow, in the experiment `forescale` unless MLFLOW_EXPERIMENT_NAME names one."""

    def open(self, run: RunDescription, identifier: str | None) -> str:
        """Begin a run with all settings as parameters, or continue the one with `identifier`."""
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = MlflowClient()
        if identifier is not None:
            self._id = identifier
            self._client.update_run(self._id, status="RUNNING")
            return identifier
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "forescale")
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        name = run.folder.resolve().name
        self._id = str(self._client.create_run(number, run_name=name).info.run_id)
        settings = [Param(key, str(value)[:MAX_TEXT]) for key, value in run.settings.items()]
        for first in range(0, len(settings), MAX_PARAMETERS):
            some = settings[first : first + MAX_PARAMETERS]
            self._client.log_batch(self._id, params=some)
        return self._id

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of a step."""
        now = int(time.time() * 1000)
        metrics = [Metric(name, number, now, step) for name, number in numbers.items()]
        for first in range(0, len(metrics), MAX_METRICS):
            self._client.log_batch(self._id, metrics=metrics[first : first + MAX_METRICS])

    def close(self, *, failed: bool) -> None:
        """End the run."""
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")
