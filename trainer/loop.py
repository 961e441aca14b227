"""Training: one loop for all layouts."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path

from model.errors import UserError
from parallel.agreement import meet
from parallel.groups import Place, any_rank, barrier, is_joined, join, join_records
from trainer.checkpoint import storage
from trainer.checkpoint.commit import save
from trainer.checkpoint.manifest import damage
from trainer.checkpoint.store import Checkpoint
from trainer.config.load import flat
from trainer.data import Dataset, Split
from trainer.data.dataset import WindowBatch
from trainer.engine import Engine
from trainer.environment import commit, versions
from trainer.evaluate import Evaluation, evaluate
from trainer.files import replace
from trainer.metrics import MetricsLog, Row
from trainer.prepare import Plan
from trainer.progress import TrainingProgress, say
from trainer.report import draw, pictured_windows, print_table
from trainer.signals import StopRequest, ended_by_signal, stop_on_signal


class Outcome(StrEnum):
    DONE = "done"
    """All steps were made and the test windows scored."""
    SAVED = "saved"
    """Stopped by a signal after a checkpoint, to be resumed."""


START_SECONDS = float(os.environ.get("FORESCALE_START_SECONDS", "25"))
"""How long ranks wait for each other at the start."""


def train(plan: Plan, rank: int = 0, local_rank: int = 0, local_world: int = 1) -> Outcome:
    """Run `plan` on this rank, from its resume point to its last step or to a signal.

    `local_world` counts the ranks on this machine.
    """
    if plan.is_done:
        if rank == 0:
            say(f"{plan.run.path} is done: {plan.steps_done} steps; nothing is left to do")
        return Outcome.DONE
    with ExitStack() as stack:
        if rank == 0:
            plan.run.path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(plan.run.in_use())
        with ended_by_signal():
            place = _join(plan, rank, local_rank, local_world)
        stop = stack.enter_context(stop_on_signal())
        trainer = Trainer(plan, place)
        outcome = trainer.run(stop)
        if outcome is Outcome.DONE:
            trainer.finish()
        if place.is_main:
            plan.run.mark(outcome, trainer.steps_done)
    return outcome


def _join(plan: Plan, rank: int, local_rank: int, local_world: int) -> Place:
    """Meet the other ranks, all about to do the same."""
    store = None
    if not is_joined():
        facts = {
            "the step to go on from": plan.steps_done,
            "the run folder": str(plan.run.path.resolve()),
            "the data": plan.dataset.digest,
            **versions(),
            "forescale's commit": commit(),
            **flat(plan.configuration.settings.model_dump()),
        }
        store = meet(rank, plan.layout.world, facts, START_SECONDS)
    return join(plan.layout, rank, local_rank, local_world, store)


class DivergedError(RuntimeError):
    """The loss or the gradient is no number any more; nothing after the last checkpoint counts."""


class Trainer:
    """A run on one rank."""

    def __init__(self, plan: Plan, place: Place) -> None:
        self.plan, self.place = plan, place
        self.settings = plan.configuration.settings
        self.dataset: Dataset = plan.dataset
        self.steps_done = 0
        if place.is_main:
            plan.run.open(plan.configuration, plan.layout, str(place.device))
        checkpoint = self._whole_checkpoint()
        if checkpoint is not None:
            self.steps_done = checkpoint.step
        if place.is_main:
            self._introduce()
        self.engine = Engine(self.settings, self.dataset.shape, place)
        if checkpoint is not None:
            storage.read(checkpoint.path, self.engine.begin_load(checkpoint.step))
            self.engine.end_load()

    def _whole_checkpoint(self) -> Checkpoint | None:
        """The one to go on from, every byte of it verified by one rank or another. A damaged one
        is put aside for the one before it, unless it was asked for by its name."""
        plan, place = self.plan, self.place
        checkpoint = plan.resume_from
        while checkpoint is not None:
            wrong = damage(checkpoint.path, part=place.rank, parts=place.layout.world)
            found = join_records(place, {str(place.rank): wrong} if wrong else {})
            if not found:
                return checkpoint
            sentence = f"{checkpoint.path} is damaged: {next(iter(found.values()))}"
            if not plan.may_fall_back:
                raise UserError(f"--resume: {sentence}; choose another one")
            if place.is_main:
                aside = plan.run.store.put_aside(checkpoint.path)
                say(f"{sentence}; it is now {aside.name}, and the one before it is used")
            barrier()
            checkpoint = plan.run.store.newest()
            if checkpoint is None:
                raise UserError(f"{sentence}, and there is no whole one before it")
        return None

    def _introduce(self) -> None:
        plan, train = self.plan, self.settings.train
        for note in self.dataset.notes:
            say(f"data: {note}")
        for note in self.settings.model.idle():
            say(note)
        if train.warmup_steps > train.steps:
            say(f"train.warmup_steps={train.warmup_steps} is longer than the run")
        say(
            f"{plan.run.path}: {plan.layout} on {self.place.device.type}, steps "
            f"{self.steps_done + 1} to {train.steps} of {train.global_batch_size} windows each"
        )

    def run(self, stop: StopRequest) -> Outcome:
        """Train to the last step, or to the first step after a signal on any rank."""
        train, is_main = self.settings.train, self.place.is_main
        logging = self.settings.logging
        with ExitStack() as stack:
            shown = TrainingProgress(train.steps, self.steps_done, logging.every, shown=is_main)
            progress = stack.enter_context(shown)
            log = None
            if is_main:
                path, done = self.plan.run.path, self.steps_done
                log = stack.enter_context(MetricsLog(path, done, tensorboard=logging.tensorboard))
            first = self.steps_done + 1
            while self.steps_done < train.steps:
                row = self._step(self.steps_done + 1)
                if self.steps_done == first:
                    kernels = join_records(self.place, self.engine.network.kernels())
                    if is_main:
                        self.plan.run.record(kernels=kernels, idle=self.settings.model.idle())
                if log is not None:
                    log.write(row)
                progress.step(row)
                stopping = any_rank(self.place, bool(stop))
                if self._is_checkpoint_due() or stopping:
                    if log is not None:
                        log.sync()
                    self._save()
                if stopping and self.steps_done < train.steps:
                    break
        if self.steps_done < train.steps:
            if is_main:
                say(f"saved at step {self.steps_done}; the same command goes on from there")
            return Outcome.SAVED
        return Outcome.DONE

    def _step(self, step: int) -> Row:
        train, shape = self.settings.train, self.dataset.shape
        began = time.perf_counter()
        result = self.engine.train_step(step, self._micro_batches(step))
        seconds = time.perf_counter() - began
        if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
            raise DivergedError(
                f"step {step}: the loss is {result.loss}, the gradient's norm {result.grad_norm}; "
                "the run stands at its last checkpoint, lower train.learning_rate in a new one"
            )
        self.steps_done = step
        points = (shape.context_length + shape.prediction_length) * shape.channels
        row: Row = {
            "step": step,
            "loss": result.loss,
            "aux_loss": result.aux_loss,
            "grad_norm": result.grad_norm,
            "learning_rate": result.learning_rate,
            "samples": step * train.global_batch_size,
            "step_seconds": seconds,
            "tokens_per_second": train.global_batch_size * self.engine.tokens_per_sample / seconds,
            "points_per_second": train.global_batch_size * points / seconds,
        }
        for name, layer in result.routing.items():
            row[f"{name}/load"] = layer.load
            row[f"{name}/entropy"] = layer.entropy
            row[f"{name}/drop_rate"] = layer.drop_rate
        every = self.settings.logging.validate_every
        if every and step % every == 0 and self.dataset.windows(Split.VALIDATION):
            scores = self._evaluate(Split.VALIDATION).scores()
            row["validation_mse"] = next(iter(scores.values()))["mse"]
        return row

    def _micro_batches(self, step: int) -> Iterator[WindowBatch]:
        """This replica's part of the step's samples; the parts of all replicas are the batch."""
        train, data = self.settings.train, self.place.layout.data
        size = train.micro_batch_size
        start = (step - 1) * train.global_batch_size
        drawn = self.dataset.draw(train.seed, start, start + train.global_batch_size)
        for first in range(self.place.coordinates.data * size, len(drawn), data * size):
            yield self.dataset.batch(Split.TRAIN, drawn[first : first + size])

    def _is_checkpoint_due(self) -> bool:
        every, last = self.settings.checkpoint.every, self.settings.train.steps
        return self.steps_done % every == 0 or self.steps_done == last

    def _save(self) -> None:
        description = {
            "samples": self.steps_done * self.settings.train.global_batch_size,
            "layout": self.plan.layout.sizes(),
            "data": self.dataset.digest,
            "settings": self.settings.model_dump(),
        }
        store = self.plan.run.store
        save(store, self.steps_done, self.engine.state(), description,
                    is_main=self.place.is_main)  # fmt: skip
        if self.place.is_main:
            store.retain(self.settings.checkpoint.keep, self.settings.checkpoint.keep_every)

    def finish(self) -> None:
        """Score the test windows, show and keep the result."""
        if not self.dataset.windows(Split.TEST):
            return
        evaluation = self._evaluate(Split.TEST, pictured=True)
        if not self.place.is_main:
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
        return evaluate(
            self.dataset, split, self.engine.predict,
            batch_size=self.settings.train.micro_batch_size, place=self.place,
            keep=pictured_windows(self.dataset, split) if pictured else (),
        )  # fmt: skip


def _beside_python(command: str) -> str:
    """How to call `command` of this environment from the current folder."""
    path = Path(sys.executable).parent / command
    if not path.exists() or shutil.which(command) == str(path):
        return command
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
