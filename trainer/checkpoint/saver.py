"""Saving checkpoints: written to a hidden folder, synced, summed, and committed by one rename.

A save runs in a thread and on a process group of its own while training continues. All ranks go
through its phases together: where one fails, on whichever rank, all ranks know it before the next
phase, nothing is committed, and no rank waits for another.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from model.errors import LeaseLostError, SaveFailedError
from model.sentences import first_line
from parallel.mesh import Mesh
from trainer.checkpoint.manifest import (
    DESCRIBING,
    DESCRIPTION,
    Entry,
    entry,
    verify,
    write_manifest,
)
from trainer.checkpoint.staging import Staging
from trainer.checkpoint.store import FORMAT, LATEST, Store, name_of
from trainer.checkpoint.tensor_files import Shapes, Storage
from trainer.config.settings import CheckpointConfig
from trainer.files import replace, sync, write_synced
from trainer.logs.log import log

T = TypeVar("T")


class Phase(StrEnum):
    """The phases of a save, in order.

    Between WRITING and RENAMING a kill leaves files that are no checkpoint yet.
    """

    COPYING = "copying the state"
    OPENING = "making its folder"
    WRITING = "writing the tensors"
    SEALING = "writing the manifest"
    RENAMING = "the rename"
    TIDYING = "removing older ones"


TIMEOUT = timedelta(hours=2)
"""Time that ranks wait for the slowest disk among them."""


class _FailedError(Exception):
    """A phase failed on some rank."""


class Saver:
    """Saves the checkpoints of one run. All ranks make theirs together.

    `shapes` are those of all tensors of the whole state. `may_commit` returns, on the main rank,
    whether the run folder is still this attempt's. `on_phase` is called with each phase of a save
    and the save's step, None at its end; `storage` writes the tensors.
    """

    def __init__(
        self,
        store: Store,
        mesh: Mesh,
        config: CheckpointConfig,
        shapes: Shapes,
        may_commit: Callable[[], bool],
        *,
        on_phase: Callable[[Phase | None, int], None] = lambda phase, step: None,
        storage: Storage | None = None,
    ) -> None:
        self._store, self._mesh, self._config, self._shapes = store, mesh, config, shapes
        self._may_commit, self._on_phase = may_commit, on_phase
        self._storage = storage or Storage()
        self._staging = Staging(mesh.device)
        self._group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self._committed: set[int] = set()
        self._in_flight: Future[None] | None = None
        self._failures = 0
        self.is_waiting = False
        """Whether the caller waits for the disk."""

    def save(
        self,
        step: int,
        state: Mapping[str, Tensor],
        description: dict[str, Any],
        abort_reason: str | None = None,
        *,
        best: int | None = None,
    ) -> None:
        """Save the checkpoint of `step`; return once `state` may change.

        That is once it is copied, or committed where saving is not asynchronous. The checkpoint of
        the step `best`, by the main rank, is not removed as an older one. `abort_reason` says why
        this rank cannot let the checkpoint be committed. Raises SaveFailedError at the second
        failure in a row; the first one is only reported. Raises LeaseLostError where the run folder
        belongs to a newer attempt of the job.
        """
        self.wait()
        if self._config.asynchronous:
            self._on_phase(Phase.COPYING, step)
            state = self._staging.copy(state)
        self._in_flight = Future()
        threading.Thread(
            target=self._run,
            args=(self._in_flight, step, state, description, abort_reason, best),
            name="checkpoint",
            daemon=True,
        ).start()
        if not self._config.asynchronous:
            self.wait()

    def wait(self) -> bool:
        """Wait until nothing is in flight; return whether the last checkpoint was committed."""
        if self._in_flight is not None:
            running, self._in_flight = self._in_flight, None
            self.is_waiting = True
            try:
                running.result()
                self._failures = 0
            except _FailedError as error:
                self._failures += 1
                if self._failures > 1:
                    sentence = f"{error}, as did the one before; the run stops"
                    raise SaveFailedError(sentence) from None
            finally:
                self.is_waiting = False
        return self._failures == 0

    def close(self) -> None:
        """Wait for what is in flight, whether it succeeds or not, and leave the group."""
        self.is_waiting = True
        if self._in_flight is None or self._in_flight.exception() is None:
            dist.destroy_process_group(self._group)

    def _run(self, done: Future[None], step: int, *what: Any) -> None:
        """Make a save in the thread, and set its result."""
        try:
            self._make(step, *what)
            done.set_result(None)
        except BaseException as error:
            if self._mesh.is_main and isinstance(error, _FailedError):
                log.error("%s; the checkpoints before it are as they were", error)
            done.set_exception(error)
        finally:
            self._on_phase(None, step)

    def _make(
        self,
        step: int,
        state: Mapping[str, Tensor],
        description: dict[str, Any],
        abort_reason: str | None,
        best: int | None,
    ) -> None:
        """Go through the phases after COPYING; raise where one fails."""
        opened = self._on_all_ranks(step, Phase.OPENING, lambda: self._open(step, abort_reason))
        folder = Path(opened[0])

        def write() -> dict[str, Entry]:
            return self._storage.write(folder, state, self._shapes, self._group)

        try:
            sums = self._on_all_ranks(step, Phase.WRITING, write)
            content = {"format": FORMAT, "step": step, **description}
            self._on_all_ranks(step, Phase.SEALING, lambda: self._seal(folder, content, sums))
            self._on_all_ranks(step, Phase.RENAMING, lambda: self._commit(folder, step))
        except (_FailedError, LeaseLostError):
            if self._mesh.is_main:
                shutil.rmtree(folder, ignore_errors=True)  # a full disk needs the room
            raise
        self._on_all_ranks(step, Phase.TIDYING, lambda: self._tidy(step, best))

    def _open(self, step: int, abort_reason: str | None) -> str:
        """Make the folder to write in; return its path on the main rank."""
        if abort_reason is not None:
            raise OSError(abort_reason)
        return str(self._store.begin(step)) if self._mesh.is_main else ""

    def _seal(self, folder: Path, content: dict[str, Any], sums: list[dict[str, Entry]]) -> None:
        """Write the description and the manifest."""
        if not self._mesh.is_main:
            return
        write_synced(folder / DESCRIPTION, json.dumps(content, indent=1))
        entries = {name: one for of_rank in sums for name, one in of_rank.items()}
        entries |= {name: entry(folder / name) for name in DESCRIBING}
        write_manifest(folder, entries)
        sync(folder)

    @property
    def _run_folder(self) -> Path:
        return self._store.folder.parent

    def _commit(self, folder: Path, step: int) -> None:
        """Rename the folder to its final name: from here on the checkpoint counts."""
        if not self._mesh.is_main:
            return
        if not self._may_commit():
            raise LeaseLostError(self._run_folder)
        final = self._store.folder / name_of(step)
        old = None
        if step in self._committed and final.exists():
            old = self._store.hide(final)  # the same step again, after an error past its rename
        elif final.exists():
            self._clear(final)
        os.rename(folder, final)
        self._committed.add(step)
        sync(self._store.folder)
        if old is not None:
            shutil.rmtree(old)

    def _clear(self, final: Path) -> None:
        """Set aside what somebody has put where a checkpoint is about to be.

        Raises LeaseLostError where it is a whole checkpoint: only a newer attempt makes steps that
        this run has yet to make.
        """
        if verify(final, contents=False) is None or not self._may_commit():
            raise LeaseLostError(self._run_folder)
        aside = self._store.quarantine(final)
        log.warning("%s was there already, and is no checkpoint; it is now %s", final, aside.name)

    def _tidy(self, step: int, best: int | None) -> None:
        """Point `latest` to the checkpoint of `step`, the newest one, and remove older ones.

        That of the step `best` stays.

        An error is only logged: the checkpoint is committed.
        """
        if not self._mesh.is_main:
            return
        if not self._may_commit():
            raise LeaseLostError(self._run_folder)
        try:
            replace(self._store.folder / LATEST, name_of(step))
            self._store.retain(self._config.keep, self._config.keep_every, best)
        except OSError as error:
            log.warning("older checkpoints cannot be tidied away: %s", error)

    def _on_all_ranks(self, step: int, phase: Phase, action: Callable[[], T]) -> list[T]:
        """Return the action's results on all ranks; raise on all of them where one failed."""
        self._on_phase(phase, step)
        mine: tuple[T | None, str | None]
        try:
            mine = action(), None
        except LeaseLostError:
            mine = None, ""
        except (Exception, CheckpointException) as error:  # whatever a disk or a library brings
            mine = None, _sentence(error, self._mesh.rank)
        outcomes: list[Any] = [None] * self._mesh.layout.world
        dist.all_gather_object(outcomes, mine, group=self._group)
        wrong = [text for _, text in outcomes if text is not None]
        if "" in wrong:
            raise LeaseLostError(self._run_folder)
        if wrong:
            raise _FailedError(f"the checkpoint of step {step} failed at {phase}: {wrong[0]}")
        return [result for result, _ in outcomes]


def _sentence(error: BaseException, rank: int) -> str:
    """Return a sentence about an error: the rank that had it first, and the error's first line."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (cause, _) = next(iter(error.failures.items()))
        return _sentence(cause, rank)
    kind, line = type(error).__name__, first_line(error)
    return f"rank {rank}: {kind}" if line == kind else f"rank {rank}: {kind}: {line}"
