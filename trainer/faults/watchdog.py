"""The watchdog: notices a hang, reports which ranks wait for which, and ends the run.

Whoever started the run can then start it again. Each rank's watchdog is a thread that reports to a
key-value store that the rank lives, and watches its main thread: every layer and every step is
progress. Where a main thread makes none for `seconds`, or a rank does not report for as long, all
ranks write down where they are, and end.

It watches from the moment when the ranks have met. Until the first step is made they load, and may
rightly wait for each other for long: progress is then that any rank computes or reads, and a hang
that none of them does.
"""

from __future__ import annotations

import faulthandler
import json
import os
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from torch import nn
from torch.distributed.distributed_c10d import Store

from model.layers import BaseTransformerLayer
from model.sentences import first_line, ranges
from parallel import flight_recorder
from parallel.flight_recorder import Record
from parallel.mesh import Mesh
from trainer.faults.activity import Activity
from trainer.faults.clock import Clock
from trainer.faults.hang_report import Report, in_words
from trainer.faults.stacks import main_thread, thread_state
from trainer.logs.log import log

ALARM = "alarm"
"""Key in the store of the reason to end the run."""

CLOSE_SECONDS = 5.0
"""Seconds that closing waits at most for an exchange with the store."""

T = TypeVar("T")


class Watchdog:
    """The watchdog of one rank.

    `folder` is where it writes stacks and report in a hang. `connect` opens a connection of its own
    to the ranks' store.
    """

    def __init__(
        self, mesh: Mesh, seconds: float, folder: Path, connect: Callable[[], Store]
    ) -> None:
        self._mesh, self._seconds, self._folder = mesh, seconds, folder
        self._connect = connect
        self.is_excused: Callable[[], bool] = lambda: False
        """Returns whether the main thread waits for what may take longer, such as a disk."""
        self._pause = min(5.0, seconds / 5)
        self._clock = Clock(self._pause / 4)
        self._closed = threading.Event()
        self._beats, self._pulse, self._moves = 0, 0, 0
        self._pulses: dict[int, tuple[str, float]] = {}
        """On the main rank: rank -> its last pulse, and when it came."""
        self._moved: dict[int, str] = {}
        """On the main rank: rank -> how often it has moved."""
        self._moved_at = self._clock.now()
        """On the main rank: when some rank moved last."""
        self.step, self.layer, self.loading = 0, "", "starting"
        self._is_first_step_made = False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._clock.start()
        self._thread.start()

    def watch(self, network: nn.Module) -> None:
        """Take each forward pass of one of the network's layers for progress from now on."""
        for name, module in network.named_modules():
            if isinstance(module, BaseTransformerLayer):
                module.register_forward_pre_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[..., None]:
        """Return a hook that notes progress in the layer `name`."""

        def enter(*_: object) -> None:
            self.layer = name
            self._beats += 1

        return enter

    def load(self, what: str) -> None:
        """Note what is being done before the first step, in words."""
        self.loading = what
        self._beats += 1

    def beat(self, step: int) -> None:
        """Note that `step` is being made."""
        self._is_first_step_made = self.step > 0
        self.step, self.loading = step, ""
        self._beats += 1

    def close(self) -> None:
        """End the watch, and wait for an exchange that is under way.

        A thread that is inside the store's C++ code when Python ends would abort the process.
        """
        self._closed.set()
        self._clock.close()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)

    # The thread

    def _watch(self) -> None:
        """Run in the thread; end the rank where that fails: it could wait for ever unwatched."""
        try:
            self._check_until_closed()
        except Exception:
            traceback.print_exc()
            log.error(f"rank {self._mesh.rank}: its watchdog has failed, above; the rank ends")
            os._exit(1)

    def _check_until_closed(self) -> None:
        """Check, every pause, this rank's progress and the others' pulses; end in a hang."""
        try:
            store = self._connect()
        except (RuntimeError, OSError) as error:
            log.error(f"rank {self._mesh.rank} has no watchdog: {first_line(error)}")
            return
        activity = Activity()
        beats, since, reached = -1, self._clock.now(), self._clock.now()
        while not self._closed.wait(self._pause):
            now = self._clock.now()
            is_active = activity.has_moved() and bool(self.loading)
            if self._beats != beats or self.is_excused() or is_active:
                beats, since = self._beats, now
                self._moves += 1
            try:
                alarm = within(self._seconds, lambda: self._exchange(store, self._clock.now()))
                reached = now
            except (RuntimeError, TimeoutError):  # rank 0's process keeps the store
                alarm = None
            if self._closed.is_set():
                return
            if self._clock.now() - reached > self._seconds:
                self._end_alone(f"has not answered for {self._seconds:g} s")
            if self._is_first_step_made and now - since > self._seconds:
                alarm = alarm or f"no progress for {self._seconds:g} s"
            if alarm is not None:
                self._end_together(store, alarm)

    def _exchange(self, store: Store, now: float) -> str | None:
        """Report that this rank lives; return the alarm, if there is one.

        The main rank returns one of its own where another rank has no new pulse, and until the
        first step is made also where no rank has moved.
        """
        self._pulse += 1
        store.set(f"pulse {self._mesh.rank}", f"{self._pulse} {self._moves}")
        if self._mesh.is_main:
            for rank in range(self._mesh.layout.world):
                key = f"pulse {rank}"
                self._hear(rank, store.get(key).decode() if store.check([key]) else "", now)
            silent = [r for r, (_, since) in self._pulses.items() if now - since > self._seconds]
            if silent:
                return f"nothing heard of rank {ranges(silent)} for {self._seconds:g} s"
            if not self._is_first_step_made and now - self._moved_at > self._seconds:
                return f"no rank has moved for {self._seconds:g} s"
        return store.get(ALARM).decode() if store.check([ALARM]) else None

    def _hear(self, rank: int, pulse: str, now: float) -> None:
        """Note a rank's pulse, on the main rank."""
        if rank not in self._pulses or self._pulses[rank][0] != pulse:
            self._pulses[rank] = pulse, now
        moves = pulse.partition(" ")[2]
        if self._moved.get(rank, "") != moves:
            self._moved[rank], self._moved_at = moves, now

    def _end_together(self, store: Store, why: str) -> None:
        """Raise the alarm, write a report about all ranks, and end this one."""
        mine = self._report()
        reports: dict[int, Report] = {self._mesh.rank: mine}

        def gather() -> None:
            store.set(ALARM, why)
            store.set(f"report {self._mesh.rank}", json.dumps(asdict(mine)))
            deadline = time.monotonic() + 3 * self._pause + 1
            while len(reports) < self._mesh.layout.world and time.monotonic() < deadline:
                time.sleep(0.2)
                reports.update(self._reports(store))

        try:
            within(6 * self._pause + 2, gather)
        except (RuntimeError, TimeoutError):
            if 0 not in reports:  # it has reported about all ranks, and ended, before
                self._end_alone("is not reached any more")
        if self._mesh.rank == min(reports):
            self._write_report(why, reports)
        time.sleep(1.0 if self._mesh.is_main else 0.5)  # rank 0, which keeps the store, ends last
        os._exit(1)

    def _reports(self, store: Store) -> dict[int, Report]:
        """Return the ranks' reports that are in the store."""
        return {
            rank: Report(**json.loads(store.get(f"report {rank}")))
            for rank in range(self._mesh.layout.world)
            if store.check([f"report {rank}"])
        }

    def _end_alone(self, what: str) -> None:
        """Log what became of rank 0 and where this rank is, and end it: there is no store."""
        mine = self._report()
        log.error(
            f"rank {self._mesh.rank}: rank 0, at which the ranks meet, {what}; "
            f"here: {mine.where()}: {mine.words}"
        )
        os._exit(1)

    def _report(self) -> Report:
        """Write this rank's stacks and collectives to files, and return its state."""
        now, record = thread_state(main_thread()), flight_recorder.read()
        try:
            within(2 * self._pause, lambda: self._write_stacks(record))
        except (OSError, TimeoutError) as error:  # a disk may be what it hangs on
            log.error(f"rank {self._mesh.rank}: its stacks cannot be written: {error}")
        report = Report(
            self.step,
            self._mesh.coordinates.pipeline,
            self.layer,
            now.words,
            list(now.awaited),
            os.uname().nodename,
            self.loading,
            started=record.started,
        )
        if record.unfinished is not None and not now.awaited:
            report.unfinished, report.group = record.unfinished.words, record.unfinished.group
            report.number = record.unfinished.number
            report.awaited = list(record.unfinished.awaited)
        return report

    def _write_stacks(self, record: Record) -> None:
        """Write the stacks of all threads, and the last collectives, to this rank's files."""
        self._folder.mkdir(parents=True, exist_ok=True)
        mine = self._folder / f"rank-{self._mesh.rank:05d}.txt"
        if record.text:
            mine.with_suffix(".json").write_text(record.text, encoding="utf-8")
        with open(mine, "w", encoding="utf-8") as file:
            traceback.print_stack(main_thread(), file=file)
            file.write("\nall threads:\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)

    def _write_report(self, why: str, reports: dict[int, Report]) -> None:
        """Log the report about all ranks, and write it to a file."""
        lines = [f"training stands still: {why}", *in_words(self._mesh.layout.world, reports)]
        lines.append(f"each rank's stack is in {self._folder}; the run ends, to be started again")
        text, file = "\n".join(lines), self._folder / "report.txt"
        log.error(text)
        with suppress(OSError, TimeoutError):
            within(2 * self._pause, lambda: file.write_text(text + "\n", encoding="utf-8"))


def within(seconds: float, action: Callable[[], T]) -> T:
    """Return the action's result; raise TimeoutError where it takes longer than `seconds`.

    The process of a store may be stopped, and a disk may hang.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(action())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result(timeout=seconds)
