"""Training: one loop for all layouts."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path

from parallel.groups import Mesh, any_of, any_rank, join_records
from parallel.rendezvous import watchdogs_store
from trainer.checkpoint import storage
from trainer.checkpoint.saver import Saver
from trainer.data import Dataset, Split
from trainer.data.dataset import WindowBatch
from trainer.engine.engine import CHUNK, Engine
from trainer.faults.failures import DivergedError, LeaseLostError
from trainer.faults.signals import StopRequest
from trainer.faults.skipped_steps import SkippedSteps
from trainer.faults.stragglers import Stragglers
from trainer.faults.watchdog import Watchdog
from trainer.files import replace
from trainer.forecast.evaluate import Evaluation, evaluate
from trainer.forecast.report import draw, pictured_windows, print_table
from trainer.logs.metrics import MetricsLog, Row
from trainer.logs.progress import TrainingProgress, say
from trainer.prepare import Plan
from trainer.resume import intact_checkpoint, intact_source, load_pretrained
from trainer.run.control_files import ControlFiles, Requests
from trainer.run.lease import Lease
from trainer.weights.source import WeightsSource


class Outcome(StrEnum):
    DONE = "done"
    """All steps were made and the test windows scored."""
    SAVED = "saved"
    """Stopped by a signal after a checkpoint, to be resumed."""


class _StoppedError(Exception):
    """Some rank has been asked to stop while windows were evaluated; raised on all of them."""


class Trainer:
    """A run on one rank."""

    def __init__(self, plan: Plan, mesh: Mesh, stop: StopRequest, lease: Lease | None) -> None:
        self.plan, self.mesh, self.stop = plan, mesh, stop
        self.switches = ControlFiles(plan.run.path, lease) if lease is not None else None
        self.settings = plan.configuration.settings
        self.dataset: Dataset = plan.dataset
        self.steps_done = 0
        source = intact_source(plan, mesh)
        if mesh.is_main:
            plan.run.open(plan.configuration, plan.layout, str(mesh.device))
        checkpoint = intact_checkpoint(plan, mesh)
        if checkpoint is not None:
            self.steps_done = checkpoint.step
        if mesh.is_main:
            self._introduce()
        self.skipped_steps = SkippedSteps(self.settings.faults)
        self.engine = Engine(self.settings, self.dataset.shape, mesh)
        if checkpoint is not None:
            self.skipped_steps = SkippedSteps(
                self.settings.faults, checkpoint.description()["bad_steps"]
            )
            applied = checkpoint.step - self.skipped_steps.skipped
            storage.read(checkpoint.path, self.engine.begin_load(applied))
            self.engine.end_load()
        elif source is not None:
            self._load_pretrained(source)
        self.saver = Saver(
            plan.run.store, mesh, self.settings.checkpoint, self.engine.shapes, lease
        )
        self.watchdog = self._start_watchdog()
        self.stragglers = None
        if mesh.layout.world > 1:
            self.stragglers = Stragglers(
                mesh, self.settings.faults.slow_factor, self.settings.logging.every
            )

    def _start_watchdog(self) -> Watchdog | None:
        seconds = self.settings.faults.hang_seconds
        if not seconds or self.mesh.layout.world == 1:
            return None
        watchdog = Watchdog(
            self.mesh,
            seconds,
            self.plan.run.path / "hang",
            lambda: watchdogs_store(str(self.plan.run.path)),
            lambda: self.saver.is_waiting,
        )
        watchdog.watch(self.engine.network)
        return watchdog

    def _load_pretrained(self, source: WeightsSource) -> None:
        taken = load_pretrained(self.engine, source)
        if self.mesh.is_main:
            say(taken.sentence())
            self.plan.run.record(init_from=asdict(taken))

    def _introduce(self) -> None:
        plan, train = self.plan, self.settings.train
        for note in self.dataset.notes:
            say(f"data: {note}")
        for note in self.settings.model.unused():
            say(note)
        if train.warmup_steps > train.steps:
            say(f"train.warmup_steps={train.warmup_steps} is longer than the run")
        first = self.steps_done + 1
        what = f"steps {first} to {train.steps} of {train.global_batch_size} windows each"
        if self.steps_done >= train.steps:
            what = "all steps are made, the test windows are left"
        say(f"{plan.run.path}: {plan.layout} on {self.mesh.device.type}, {what}")

    def run(self) -> Outcome:
        """Train to the last step and score the result, or save at the first step after a signal
        on any rank."""
        with ExitStack() as stack:
            stack.callback(self.saver.close)
            if self.watchdog is not None:
                stack.callback(self.watchdog.close)
            log = None
            if self.mesh.is_main:
                path, board = self.plan.run.path, self.settings.logging.tensorboard
                log = stack.enter_context(MetricsLog(path, self.steps_done, tensorboard=board))
            stopped = not self._catch_up(log) or self._train(log)
            if not stopped:
                with suppress(_StoppedError):
                    self._finish()
                    return Outcome.DONE
        if self.mesh.is_main:
            say(f"saved at step {self.steps_done}; the same command goes on from there")
        return Outcome.SAVED

    def _train(self, log: MetricsLog | None) -> bool:
        """Make the steps that are left; whether a signal stopped it before the last."""
        train, logging = self.settings.train, self.settings.logging
        shown = TrainingProgress(
            train.steps, self.steps_done, logging.every, shown=self.mesh.is_main
        )
        first = self.steps_done + 1
        stopping = False
        with shown as progress:
            while self.steps_done < train.steps and not stopping:
                try:
                    row = self._step(self.steps_done + 1)
                except DivergedError:
                    self._save_last_good(log)
                    raise
                if self.steps_done == first:
                    self._record_kernels()
                self._validate(row)
                if log is not None:
                    log.write(row)
                progress.step(row)
                asked = self._asked()
                stopping = asked.stop
                if self._is_checkpoint_due() or asked.stop or asked.save:
                    self._save(log)
                if asked.save and self.switches is not None:
                    self.switches.done()
        if not self.saver.wait():  # the last one failed: once more, or it is said why not
            self._save(log)
            self.saver.wait()
        return self.steps_done < train.steps

    def _asked(self) -> Requests:
        """By signals to any rank, by files, by a newer incarnation."""
        seen = self.switches.look() if self.switches is not None else Requests()
        flags = (bool(self.stop) or seen.stop, seen.save, seen.taken_over)
        asked = Requests(*any_of(self.mesh, flags))
        if asked.taken_over:
            raise LeaseLostError(self.plan.run.path)
        return asked

    def _save_last_good(self, log: MetricsLog | None) -> None:
        """Skipped steps have left everything as it was before them."""
        self.steps_done -= (
            self.skipped_steps.rewind() - 1
        )  # the last one is not among the steps done
        self.saver.wait()
        kept = self.mesh.is_main and self.plan.run.store.has(self.steps_done)
        if self.steps_done > 0 and not any_rank(self.mesh, kept):
            self._save(log)
            self.saver.wait()

    def _record_kernels(self) -> None:
        kernels = join_records(self.mesh, self.engine.network.kernels())
        if self.mesh.is_main:
            self.plan.run.record(kernels=kernels, unused=self.settings.model.unused())

    def _step(self, step: int) -> Row:
        train, shape = self.settings.train, self.dataset.shape
        if self.watchdog is not None:
            self.watchdog.beat(step)
        began = time.perf_counter()
        limit = self.skipped_steps.limit()
        result = self.engine.train_step(step, self._micro_batches(step), limit)
        seconds = time.perf_counter() - began
        note = self.skipped_steps.see(step, result.loss, result.grad_norm, result.applied)
        if note is not None and self.mesh.is_main:
            say(note)
        self.steps_done = step
        points = (shape.context_length + shape.prediction_length) * shape.channels
        row: Row = {
            "step": step,
            "loss": result.loss,
            "aux_loss": result.aux_loss,
            "grad_norm": result.grad_norm,
            "learning_rate": result.learning_rate,
            "skipped_steps": self.skipped_steps.skipped,
            "samples": step * train.global_batch_size,
            "step_seconds": seconds,
            "tokens_per_second": train.global_batch_size * self.engine.tokens_per_sample / seconds,
            "points_per_second": train.global_batch_size * points / seconds,
        }
        for name, layer in result.routing.items():
            row[f"{name}/load"] = layer.load
            row[f"{name}/entropy"] = layer.entropy
            row[f"{name}/drop_rate"] = layer.drop_rate
        self._compare_ranks(row, result.attention_seconds)
        return row

    def _compare_ranks(self, row: Row, seconds_here: float) -> None:
        if self.stragglers is None:
            return
        seconds, sentences = self.stragglers.look(self.steps_done, seconds_here)
        if seconds is not None:
            row["attention_seconds"] = seconds
        if self.mesh.is_main:
            for sentence in sentences:
                say(sentence)

    def _validate(self, row: Row) -> None:
        """Add the validation score of the steps done, where one is due and no signal comes."""
        every = self.settings.logging.validate_every
        if not every or self.steps_done % every or not self.dataset.windows(Split.VALIDATION):
            return
        with suppress(_StoppedError):
            scores = self._evaluate(Split.VALIDATION).scores()
            row["validation_mse"] = next(iter(scores.values()))["mse"]

    def _catch_up(self, log: MetricsLog | None) -> bool:
        """Validate where a signal kept the last run from it; False where one does so again."""
        row = dict(log.last) if log is not None and log.last is not None else {}
        if not any_rank(self.mesh, bool(row) and "validation_mse" not in row):
            return True
        self._validate(row)
        if log is not None and "validation_mse" in row:
            log.complete(row)
        return not any_rank(self.mesh, bool(self.stop))

    def _micro_batches(self, step: int) -> Iterator[WindowBatch]:
        """This replica's part of the step's samples; the parts of all replicas are the batch."""
        train, data = self.settings.train, self.mesh.layout.data
        size = train.micro_batch_size
        start = (step - 1) * train.global_batch_size
        drawn = self.dataset.draw(train.seed, start, start + train.global_batch_size)
        for first in range(self.mesh.coordinates.data * size, len(drawn), data * size):
            yield self.dataset.batch(Split.TRAIN, drawn[first : first + size])

    def _is_checkpoint_due(self) -> bool:
        every, last = self.settings.checkpoint.every, self.settings.train.steps
        return self.steps_done % every == 0 or self.steps_done == last

    def _save(self, log: MetricsLog | None) -> None:
        description = {
            "samples": self.steps_done * self.settings.train.global_batch_size,
            "layout": self.plan.layout.sizes(),
            "data": self.dataset.digest,
            "series": self.dataset.facts.content(),
            "bad_steps": self.skipped_steps.content(),
            "settings": self.settings.model_dump(),
        }
        abort_reason = None
        try:
            if log is not None:
                log.sync()
        except OSError as error:
            abort_reason = f"metrics.jsonl: {error.strerror}"
        self.saver.save(self.steps_done, self.engine.state(), description, abort_reason)

    def _finish(self) -> None:
        """Score the test windows, show and keep the result."""
        if not self.dataset.windows(Split.TEST):
            return
        evaluation = self._evaluate(Split.TEST, pictured=True)
        self._asked()  # has another start taken the folder over?
        if not self.mesh.is_main:
            return
        run = self.plan.run.path
        summary = {"step": self.steps_done, **evaluation.summary()}
        replace(run / "evaluation.json", json.dumps(summary, indent=1))
        draw(self.dataset, evaluation, run / "forecast.png")
        print_table(evaluation)
        say(f"forecast picture:  {run / 'forecast.png'}")
        if self.settings.logging.tensorboard:
            say(
                f"loss curves:       {_beside_python('tensorboard')} --logdir {run / 'tensorboard'}"
            )

    def _evaluate(self, split: Split, *, pictured: bool = False) -> Evaluation:
        """Raises _StoppedError where a signal comes."""
        return evaluate(
            self.dataset,
            split,
            lambda batches: self.engine.predict(self._until_stopped(batches)),
            batch_size=self.settings.train.micro_batch_size,
            mesh=self.mesh,
            keep=pictured_windows(self.dataset, split) if pictured else (),
        )

    def _until_stopped(self, batches: Iterable[WindowBatch]) -> Iterator[WindowBatch]:
        """All ranks ask for equally many batches, and so look together."""
        for number, batch in enumerate(batches):
            if number % CHUNK == 0 and any_rank(self.mesh, bool(self.stop)):
                raise _StoppedError
            yield batch


def _beside_python(command: str) -> str:
    """How to call `command` of this environment from the current folder."""
    path = Path(sys.executable).parent / command
    if not path.exists() or shutil.which(command) == str(path):
        return command
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
