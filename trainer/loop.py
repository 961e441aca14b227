"""Training: one loop for all layouts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from enum import StrEnum

import torch
from torch.profiler import record_function

from model.errors import DivergedError, LeaseLostError
from parallel.collectives import any_of, any_rank, join_records
from parallel.mesh import Mesh
from trainer.checkpoint.saver import Saver
from trainer.config.load import flat
from trainer.data import Split
from trainer.data.feeding import Feeder
from trainer.data.order import samples_of_replica
from trainer.data.windows import WindowBatch
from trainer.engine.engine import Engine
from trainer.faults.device_memory import explained, held_on
from trainer.faults.signals import StopRequest
from trainer.faults.skipped_steps import SkippedSteps
from trainer.faults.stragglers import AttentionClock, Stragglers
from trainer.faults.watchdog import Watchdog
from trainer.files import replace
from trainer.forecast.pictures import draw, pictured_windows
from trainer.forecast.scores import Evaluation
from trainer.forecast.table import print_table
from trainer.forecast.validation import Scoring, StoppedError
from trainer.logs.board import show_command
from trainer.logs.log import Warnings, log
from trainer.logs.metrics import MetricsLog, Row
from trainer.logs.names import has_validation
from trainer.logs.progress import TrainingProgress
from trainer.logs.sink import RunDescription
from trainer.logs.sinks import Sinks
from trainer.logs.step_profile import DATA
from trainer.logs.utilisation import Utilisation
from trainer.prepare import Plan
from trainer.resume import restore_best
from trainer.run.best_step import BestStep
from trainer.run.control_files import ControlFiles, Requests
from trainer.run.folder import DONE_MARKER, SAVED_MARKER


class Outcome(StrEnum):
    """How a run, or a part of it, ended; also the name of the marker in the run folder."""

    DONE = DONE_MARKER
    """All steps were made and the test windows scored."""
    SAVED = SAVED_MARKER
    """Stopped by a signal after a checkpoint, to be resumed."""


class Trainer:
    """A run on one rank: the steps that are left, then the score. `trainer.job` puts it together.

    `on_step` is called with the number of each step before it is made.
    """

    def __init__(
        self,
        plan: Plan,
        mesh: Mesh,
        engine: Engine,
        saver: Saver,
        skipped_steps: SkippedSteps,
        steps_done: int,
        *,
        stop: StopRequest,
        clock: AttentionClock,
        warnings: Warnings,
        control_files: ControlFiles | None = None,
        watchdog: Watchdog | None = None,
        stragglers: Stragglers | None = None,
        on_step: Callable[[int], None] = lambda step: None,
    ) -> None:
        # What is trained
        self.plan, self.settings, self.dataset = plan, plan.configuration.settings, plan.dataset
        self.mesh, self.engine = mesh, engine
        self.feeder = Feeder(
            self._micro_batches,
            self.settings.train.steps,
            ahead=engine.accumulation * self.settings.data.prefetch_steps,
            waiting=lambda: record_function(DATA),
        )
        self.scoring = Scoring(
            engine.predict,
            engine.network.output.levels,
            batch_size=self.settings.train.micro_batch_size,
            mesh=mesh,
            is_stopped=lambda: bool(self.stop),
        )
        # How far it is
        self.steps_done, self.skipped_steps = steps_done, skipped_steps
        self.saver = saver
        self.best = BestStep(self.settings, mesh)
        # Who may interrupt it
        self.stop, self.control_files = stop, control_files
        self.on_step = on_step
        # What is observed
        self.watchdog, self.stragglers, self.clock = watchdog, stragglers, clock
        self.utilisation = Utilisation(mesh.layout.world, mesh.device)
        self.warnings = warnings

    def run(self) -> Outcome:
        """Train to the last step and score the result.

        After a signal on any rank it saves at the next step instead.
        """
        with ExitStack() as stack:
            stack.callback(self._record_warnings)
            if self.watchdog is not None:
                stack.callback(self.watchdog.close)
            stack.callback(self.saver.close)
            stack.callback(self.feeder.close)
            metrics = None
            if self.mesh.is_main:
                run = self.plan.run
                board = run.tensorboard_folder if self.settings.logging.tensorboard else None
                sinks = Sinks(
                    self.settings.logging.sinks,
                    RunDescription(run.path, flat(self.settings.model_dump())),
                )
                metrics = MetricsLog(
                    run.metrics_file,
                    self.steps_done,
                    tensorboard=board,
                    sinks=sinks,
                    is_continued=self.plan.start.is_own,
                )
                stack.enter_context(metrics)
            self.best.recall(self.plan.run.metrics_file)
            for part in (self._catch_up, self._train, self._finish):
                if part(metrics) is Outcome.SAVED:
                    way_on = self.plan.run.way_on()
                    log.info("saved at step %s; %s", self.steps_done, way_on)
                    return Outcome.SAVED
        return Outcome.DONE

    # The parts of a run

    def _catch_up(self, metrics: MetricsLog | None) -> Outcome:
        """Validate where a signal kept the last attempt from it."""
        row = dict(metrics.last) if metrics is not None and metrics.last is not None else {}
        if not any_rank(self.mesh, bool(row) and not has_validation(row)):
            return Outcome.DONE
        self._validate(row)
        if metrics is not None and has_validation(row):
            metrics.complete(row)
        self.best.compare(row)
        return Outcome.SAVED if any_rank(self.mesh, bool(self.stop)) else Outcome.DONE

    def _train(self, metrics: MetricsLog | None) -> Outcome:
        """Make the steps that are left, or those up to a signal."""
        train, every = self.settings.train, self.settings.logging.every
        first, requests = self.steps_done + 1, Requests()
        with TrainingProgress(
            train.steps, self.steps_done, every, shown=self.mesh.is_main
        ) as progress:
            while self.steps_done < train.steps and not (requests.stop or self.best.is_final):
                try:
                    row = self._step(self.steps_done + 1)
                except DivergedError:
                    self._return_to_last_good(metrics)
                    raise
                if self.steps_done == first:
                    self._record_first_step()
                self._validate(row)
                if metrics is not None:
                    metrics.write(row)
                is_best = self.best.compare(row)
                progress.step(row)
                requests = self._requests()
                if self._is_checkpoint_due() or is_best or requests.stop or requests.save:
                    self._save(metrics)
                if requests.save and self.control_files is not None:
                    self.control_files.clear_save()
        if not self.saver.wait():  # the last one failed: once more, or it is said why not
            self._save(metrics)
            self.saver.wait()
        if self.steps_done == train.steps or self.best.is_final:
            self.skipped_steps.check_last(self.steps_done)
            return Outcome.DONE
        self.steps_done -= self.skipped_steps.discard()
        return Outcome.SAVED

    def _finish(self, metrics: MetricsLog | None) -> Outcome:
        """Score the test windows, show and keep the result."""
        if not self.dataset.windows(Split.TEST):
            return Outcome.DONE
        step = self._load_best()
        try:
            pictured = pictured_windows(self.dataset, Split.TEST)
            with self.engine.averaged():
                evaluation = self.scoring.scores(self.dataset, Split.TEST, keep=pictured)
        except StoppedError:
            return Outcome.SAVED
        self._requests()  # has another attempt taken the folder over?
        if self.mesh.is_main:
            self._keep(step, evaluation)
        return Outcome.DONE

    def _load_best(self) -> int:
        """Load the best step's weights, where they are not the last ones; return their step."""
        best = self.best.before(self.steps_done)
        is_loaded = best is not None and restore_best(
            self.plan.run.store, best, self.settings.faults, self.engine, self.mesh
        )
        return best if best is not None and is_loaded else self.steps_done

    def _keep(self, step: int, evaluation: Evaluation) -> None:
        run = self.plan.run
        summary = {"step": step, **evaluation.summary()}
        replace(run.evaluation_file, json.dumps(summary, indent=1))
        draw(self.dataset, evaluation, run.picture_file)
        print_table(evaluation)
        log.info("forecast picture:  %s", run.picture_file)
        if self.settings.logging.tensorboard:
            log.info("loss curves:       %s", show_command(run.tensorboard_folder))

    # A step

    def _step(self, step: int) -> Row:
        if self.watchdog is not None:
            self.watchdog.beat(step)
        self.on_step(step)
        began = time.perf_counter()
        limit = self.skipped_steps.limit()
        try:
            batches = self.feeder.step(step, self.engine.accumulation)
            length = self.dataset.order.context_length(self.settings.train.seed, step)
            result = self.engine.train_step(step, batches, limit, context_length=length)
        except torch.OutOfMemoryError as error:
            held = held_on(self.mesh.device, *self.engine.memory())
            raise explained(error, step, self.mesh, self.settings, held) from error
        seconds = time.perf_counter() - began
        self.steps_done = step
        note = self.skipped_steps.record(step, result.loss, result.grad_norm, result.applied)
        if note is not None:
            log.warning(note)
        row: Row = {
            "step": step,
            "loss": result.loss,
            "aux_loss": result.aux_loss,
            "grad_norm": result.grad_norm,
            "learning_rate": result.learning_rate,
            "skipped_steps": self.skipped_steps.total,
            "samples": step * self.settings.train.global_batch_size,
        }
        for name, layer in result.routing.items():
            row |= {f"{name}/{what}": value for what, value in vars(layer).items()}
        row["data_wait_seconds"] = self.feeder.take_wait()
        if self.mesh.is_main:
            train, patch = self.settings.train, self.settings.model.patch_length
            row |= self.dataset.order.row(train.seed, step, train.global_batch_size, patch)
        return row | self.utilisation.row(self.engine.work(length), seconds) | self._compare_ranks()

    def _micro_batches(self, step: int) -> Iterator[WindowBatch]:
        """Yield this replica's part of the step's samples; all replicas' parts are the batch."""
        train, layout = self.settings.train, self.mesh.layout
        sizes = {"micro": train.micro_batch_size, "whole": train.global_batch_size}
        replica = self.mesh.coordinates.data
        for samples in samples_of_replica(step, replica, replicas=layout.data, **sizes):
            batch = self.dataset.samples(train.seed, samples.start, samples.stop, step)
            yield self.engine.pinned(batch)

    def _compare_ranks(self) -> Row:
        """Name slow ranks every so many steps; return what the step's row has of it."""
        seconds_here = self.clock.take()
        if self.stragglers is None:
            return {}
        seconds, sentences = self.stragglers.compare(self.steps_done, seconds_here)
        for sentence in sentences:
            log.warning(sentence)
        return {} if seconds is None else {"attention_seconds": seconds}

    def _requests(self) -> Requests:
        """Return what signals to any rank and control files ask for, the same on all ranks.

        Raises LeaseLostError where a newer attempt of the job has the run folder.
        """
        files = self.control_files.read() if self.control_files is not None else Requests()
        flags = (bool(self.stop) or files.stop, files.save, files.lease_lost)
        requests = Requests(*any_of(self.mesh, flags))
        if requests.lease_lost:
            raise LeaseLostError(self.plan.run.path)
        return requests

    # Checkpoints and records

    def _is_checkpoint_due(self) -> bool:
        every, last = self.settings.checkpoint.every, self.settings.train.steps
        return self.steps_done % every == 0 or self.steps_done == last or self.best.is_final

    def _save(self, metrics: MetricsLog | None) -> None:
        """Save the last good step, unless it is saved already: skipped steps have changed nothing.

        A run that starts again from there makes the skipped steps again, and counts them again.
        """
        step = self.steps_done - self.skipped_steps.in_a_row
        if step < self.steps_done:
            self.saver.wait()
            if any_rank(self.mesh, self.mesh.is_main and self.plan.run.store.has(step)):
                return
        description = {
            "samples": step * self.settings.train.global_batch_size,
            "layout": self.plan.layout.sizes(),
            "data": self.dataset.digest,
            "series": self.dataset.facts.content(),
            "bad_steps": self.skipped_steps.content(),
            "settings": self.settings.model_dump(),
        }
        abort_reason = None
        try:
            if metrics is not None:
                metrics.sync()
        except OSError as error:
            abort_reason = f"{self.plan.run.metrics_file.name}: {error.strerror}"
        self.saver.save(step, self.engine.state(), description, abort_reason, best=self.best.step)

    def _return_to_last_good(self, metrics: MetricsLog | None) -> None:
        """Save the last good step, where the run stands from now on."""
        self._save(metrics)
        self.saver.wait()
        self.steps_done -= self.skipped_steps.discard()

    def _record_first_step(self) -> None:
        kernels = join_records(self.mesh, self.engine.network.kernels())
        if self.mesh.is_main:
            unused = self.settings.model.unused("model.")
            self.plan.run.record(kernels=kernels, idle=unused, warnings=self.warnings.messages)

    def _record_warnings(self) -> None:
        if self.control_files is not None and self.control_files.lease.is_held():
            self.plan.run.record(warnings=self.warnings.messages)

    # Scores

    def _validate(self, row: Row) -> None:
        """Add the scores of the steps done, where they are due and no signal comes."""
        every = self.settings.logging.validate_every
        if every and self.steps_done % every == 0:
            with self.engine.averaged():
                row |= self.scoring.validation(self.dataset, self.plan.zero_shot)
