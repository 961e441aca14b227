"""Other places for a run's metrics than its folder: Weights & Biases and MLflow.

Each is written by a thread of its own, so that a server that is slow or gone delays no step. What
fails is reported once, and training continues: metrics.jsonl has all numbers.
"""

from __future__ import annotations

import importlib.util
import queue
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from model.sentences import first_line
from trainer.files import replace
from trainer.logs.log import log
from trainer.logs.sink import RunDescription, Sink, scalars

MAX_WAITING = 10_000
"""Rows that wait for a sink; further ones are not sent to it."""

CLOSE_SECONDS = 60.0
"""Seconds that the end of a run waits for a sink."""


def is_installed(name: str) -> bool:
    """Return whether a sink's package is installed; a folder of that name is none."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def make_sink(name: str) -> Sink:
    """Return the sink of a name of `logging.sinks`. Raises ImportError."""
    if name == "wandb":
        from trainer.logs.wandb_sink import WandbSink

        return WandbSink()
    from trainer.logs.mlflow_sink import MlflowSink

    return MlflowSink()


class Sinks:
    """The sinks of a run, by the names in `logging.sinks`."""

    def __init__(self, names: Iterable[str], run: RunDescription) -> None:
        self._threads = [_SinkThread(name, run) for name in dict.fromkeys(names)]

    def write(self, row: Mapping[str, Any]) -> None:
        """Send a row, or further numbers of its step."""
        for thread in self._threads:
            thread.send((int(row["step"]), scalars(row)))

    def close(self, *, failed: bool) -> None:
        """Send what waits, and end the run in each sink; wait a minute for it at most."""
        for thread in self._threads:
            thread.finish(failed=failed)
        for thread in self._threads:
            thread.wait()


class _SinkThread(threading.Thread):
    """Opens a sink, writes what is sent to it, and closes it."""

    def __init__(self, name: str, run: RunDescription) -> None:
        super().__init__(name=f"sink {name}", daemon=True)
        self._sink_name, self._run = name, run
        self._file = run.folder / f"{name}.id"
        """Keeps the sink's identifier of the run, so that a resumed run continues it."""
        self._waiting: queue.SimpleQueue[tuple[int, dict[str, float]] | None] = queue.SimpleQueue()
        self._failed = False
        """Whether the run has failed."""
        self._is_broken, self._giving_up = False, threading.Lock()
        self.start()

    def send(self, numbers: tuple[int, dict[str, float]]) -> None:
        """Let the thread write a step's numbers."""
        if self._waiting.qsize() >= MAX_WAITING:
            self._give_up(f"{MAX_WAITING} steps wait for it")
        if not self._is_broken:
            self._waiting.put(numbers)

    def finish(self, *, failed: bool) -> None:
        """Let the thread end after what waits."""
        self._failed = failed
        if not self._is_broken:
            self._waiting.put(None)

    def wait(self) -> None:
        """Wait until the thread has ended."""
        if not self._is_broken:
            self.join(CLOSE_SECONDS)
            if self.is_alive():
                self._give_up(f"it is not done after {CLOSE_SECONDS:g} s")

    def run(self) -> None:
        try:
            self._write_all()
        except Exception as error:  # whatever a foreign package raises
            self._give_up(first_line(error))

    def _write_all(self) -> None:
        sink = make_sink(self._sink_name)
        known = self._file.read_text().strip() if self._file.exists() else None
        identifier = sink.open(self._run, known)
        replace(self._file, f"{identifier}\n")
        while (numbers := self._waiting.get()) is not None and not self._is_broken:
            sink.write(*numbers)
        sink.close(failed=self._failed)

    def _give_up(self, why: str) -> None:
        """Say once why the sink gets no more numbers."""
        with self._giving_up:
            if not self._is_broken:
                log.warning(
                    f"{self._sink_name} gets no more metrics: {why}; metrics.jsonl has all of them"
                )
            self._is_broken = True
