"""Saves checkpoints: written beside, synced, summed, and committed by one rename.

This goes on in a thread and on a process group of its own while training goes on. Each phase is
made by all ranks together: where one fails, on whichever rank, all know it before the next,
nothing is committed, and nobody waits.
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
from trainer.checkpoint.manifest import Entry, entry, write_manifest
from trainer.checkpoint.staging import Staging
from trainer.checkpoint.storage import Shapes, Storage
from trainer.checkpoint.store import FORMAT, Store, name_of
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
    SUMMING = "summing the files"
    SEALING = "writing the manifest"
    RENAMING = "the rename"
    TIDYING = "removing older ones"


TIMEOUT = timedelta(hours=2)
"""How long ranks wait for the slowest disk among them."""


class _FailedError(Exception):
    """A phase failed on some rank."""


class Saver:
    """The checkpoints of one run, as its ranks write them. Made by all ranks together.

    `shapes` are those of all tensors of the whole state. `may_commit`, on the main rank, says
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
    ) -> None:
        """Return once the state is copied, or committed where saving is not asynchronous.

        `abort_reason`: why this rank cannot let the checkpoint be committed. Raises SaveFailedError
        at the second failure in a row; the first one is only reported. Raises LeaseLostError where
        the run folder belongs to a newer attempt of the job.
        """
        self.wait()
        if self._config.asynchronous:
            self._on_phase(Phase.COPYING, step)
            state = self._staging.copy(state)
        self._in_flight = Future()
        threading.Thread(
            target=self._run,
            args=(self._in_flight, step, state, description, abort_reason),
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
                    raise SaveFailedError(
                        f"{error}, as did the one before; the run stops"
                    ) from None
            finally:
                self.is_waiting = False
        return self._failures == 0

    def close(self) -> None:
        """Wait for what is in flight, whatever comes of it, and leave the group."""
        self.is_waiting = True
        if self._in_flight is None or self._in_flight.exception() is None:
            dist.destroy_process_group(self._group)

    def _run(self, done: Future[None], step: int, *what: Any) -> None:
        try:
            self._write(step, *what)
            done.set_result(None)
        except BaseException as error:
            if self._mesh.is_main and isinstance(error, _FailedError):
                log.error("%s; the checkpoints before it are as they were", error)
            done.set_exception(error)
        finally:
            self._on_phase(None, step)

    def _write(
        self,
        step: int,
        state: Mapping[str, Tensor],
        description: dict[str, Any],
        abort_reason: str | None,
    ) -> None:
        def opened() -> str:
            if abort_reason is not None:
                raise OSError(abort_reason)
            return str(self._store.begin(step)) if self._mesh.is_main else ""

        beside = Path(self._together(step, Phase.OPENING, opened)[0])
        try:
            self._together(
                step,
                Phase.WRITING,
                lambda: self._storage.write(beside, state, self._shapes, self._group),
            )
            mine = f"__{self._mesh.rank}_*"
            sums = self._together(
                step, Phase.SUMMING, lambda: {f.name: entry(f) for f in beside.glob(mine)}
            )
            self._together(step, Phase.SEALING, lambda: self._seal(beside, step, description, sums))
            self._together(step, Phase.RENAMING, lambda: self._commit(beside, step))
        except (_FailedError, LeaseLostError):
            if self._mesh.is_main:
                shutil.rmtree(beside, ignore_errors=True)  # a full disk needs the room
            raise
        self._together(step, Phase.TIDYING, self._tidy)

    def _write_tensors(self, beside: Path, state: Mapping[str, Tensor]) -> None:
        self._storage.write(beside, state, self._shapes, self._group)

    def _seal(
        self, beside: Path, step: int, description: dict[str, Any], sums: list[dict[str, Entry]]
    ) -> None:
        if not self._mesh.is_main:
            return
        text = json.dumps({"format": FORMAT, "step": step, **description}, indent=1)
        write_synced(beside / "checkpoint.json", text)
        entries = {name: one for of_rank in sums for name, one in of_rank.items()}
        entries |= {name: entry(beside / name) for name in ("checkpoint.json", ".metadata")}
        write_manifest(beside, entries)
        sync(beside)

    @property
    def _run_folder(self) -> Path:
        return self._store.folder.parent

    def _commit(self, beside: Path, step: int) -> None:
        """Rename the folder: from here on the checkpoint counts."""
        if not self._mesh.is_main:
            return
        if not self._may_commit():
            raise LeaseLostError(self._run_folder)
        final = self._store.folder / name_of(step)
        old = None
        if final.exists():
            if step not in self._committed:
                # Nobody else makes steps that this run has yet to make.
                raise LeaseLostError(self._run_folder)
            old = self._store.hide(final)  # the same step again, after an error past its rename
        os.rename(beside, final)
        self._committed.add(step)
        sync(self._store.folder)
        if old is not None:
            shutil.rmtree(old)

    def _tidy(self) -> None:
        """Remove older checkpoints; this one is committed, whatever comes of it."""
        if not self._mesh.is_main:
            return
        if not self._may_commit():
            raise LeaseLostError(self._run_folder)
        try:
            newest = self._store.committed()[-1]
            replace(self._store.folder / "latest", newest.path.name)
            self._store.retain(self._config.keep, self._config.keep_every)
        except OSError as error:
            log.warning("older checkpoints cannot be tidied away: %s", error)

    def _together(self, step: int, phase: Phase, action: Callable[[], T]) -> list[T]:
        """Return the results of all ranks; raise on all of them where one failed."""
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
    """Return the rank on which something went wrong first, and the first line of what."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (cause, _) = next(iter(error.failures.items()))
        return _sentence(cause, rank)
    kind, line = type(error).__name__, first_line(error)
    return f"rank {rank}: {kind}" if line == kind else f"rank {rank}: {kind}: {line}"
