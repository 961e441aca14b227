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

from parallel.groups import Mesh
from trainer.checkpoint.manifest import Entry, entry, write_manifest
from trainer.checkpoint.staging import Staging
from trainer.checkpoint.storage import Shapes, write
from trainer.checkpoint.store import FORMAT, Store, name_of
from trainer.config.settings import CheckpointConfig
from trainer.faults.failures import LeaseLostError, SaveFailedError
from trainer.files import replace, sync, write_synced
from trainer.logs.progress import say
from trainer.run.lease import Lease

T = TypeVar("T")


class Phase(StrEnum):
    """What a save is at, in this order. Between WRITING and RENAMING a kill leaves files that are
    no checkpoint yet."""

    COPYING = "copying the state"
    OPENING = "making its folder"
    WRITING = "writing the tensors"
    SUMMING = "summing the files"
    SEALING = "writing the manifest"
    RENAMING = "the rename"
    TIDYING = "removing older ones"


PATIENCE = timedelta(hours=2)
"""That ranks wait for the slowest disk among them."""


class _FailedError(Exception):
    """A phase failed on some rank."""


class Saver:
    """The checkpoints of one run, as its ranks write them. Made by all ranks together.

    `shapes` are those of all tensors of the whole state, `lease` the main rank's right to
    write in the run folder.
    """

    def __init__(
        self,
        store: Store,
        mesh: Mesh,
        config: CheckpointConfig,
        shapes: Shapes,
        lease: Lease | None,
    ) -> None:
        self._store, self._mesh, self._config, self._shapes = store, mesh, config, shapes
        self._lease = lease
        self._staging = Staging(mesh.device)
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._committed: set[int] = set()
        self._in_flight: Future[None] | None = None
        self._failures = 0
        self.phase: Phase | None = None
        self.is_waiting = False
        """The caller waits for the disk."""

    def save(
        self,
        step: int,
        state: Mapping[str, Tensor],
        description: dict[str, Any],
        abort_reason: str | None = None,
    ) -> None:
        """Returns once the state is copied, or committed where saving is not asynchronous.

        `abort_reason`: why this rank cannot let the checkpoint be committed. Raises SaveFailedError
        at the second failure in a row; the first one is only told. Raises LeaseLostError where
        the run folder belongs to a newer incarnation.
        """
        self.wait()
        if self._config.asynchronous:
            self.phase = Phase.COPYING
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
        """Until nothing is in flight; whether the last checkpoint was committed."""
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
        """Let what is in flight end, whatever comes of it."""
        self.is_waiting = True
        if self._in_flight is None or self._in_flight.exception() is None:
            dist.destroy_process_group(self._group)

    def _run(self, done: Future[None], *what: Any) -> None:
        try:
            self._write(*what)
            done.set_result(None)
        except BaseException as error:
            if self._mesh.is_main and isinstance(error, _FailedError):
                say(f"{error}; the checkpoints before it are as they were")
            done.set_exception(error)
        finally:
            self.phase = None

    def _write(
        self,
        step: int,
        state: Mapping[str, Tensor],
        description: dict[str, Any],
        abort_reason: str | None,
    ) -> None:
        what = f"the checkpoint of step {step}"

        def opened() -> str:
            if abort_reason is not None:
                raise OSError(abort_reason)
            return str(self._store.begin(step)) if self._mesh.is_main else ""

        told = self._together(what, Phase.OPENING, opened)
        beside = Path(told[0])
        try:
            self._together(
                what, Phase.WRITING, lambda: write(beside, state, self._shapes, self._group)
            )
            mine = f"__{self._mesh.rank}_*"
            sums = self._together(
                what, Phase.SUMMING, lambda: {f.name: entry(f) for f in beside.glob(mine)}
            )
            self._together(what, Phase.SEALING, lambda: self._seal(beside, step, description, sums))
            self._together(what, Phase.RENAMING, lambda: self._commit(beside, step))
        except (_FailedError, LeaseLostError):
            if self._mesh.is_main:
                shutil.rmtree(beside, ignore_errors=True)  # a full disk needs the room
            raise
        self._together(what, Phase.TIDYING, self._tidy)

    def _seal(
        self, beside: Path, step: int, description: dict[str, Any], sums: list[dict[str, Entry]]
    ) -> None:
        if not self._mesh.is_main:
            return
        text = json.dumps({"format": FORMAT, "step": step, **description}, indent=1)
        write_synced(beside / "checkpoint.json", text)
        entries = {name: one for told in sums for name, one in told.items()}
        entries |= {name: entry(beside / name) for name in ("checkpoint.json", ".metadata")}
        write_manifest(beside, entries)
        sync(beside)

    @property
    def _folder(self) -> Path:
        """The run's."""
        return self._store.folder.parent

    def _commit(self, beside: Path, step: int) -> None:
        """From here on it counts."""
        if self._lease is None:
            return
        if not self._lease.is_held():
            raise LeaseLostError(self._folder)
        final = self._store.folder / name_of(step)
        old = None
        if final.exists():
            if step not in self._committed:
                # Nobody else makes steps that this run has yet to make.
                raise LeaseLostError(self._folder)
            old = self._store.hide(final)  # the same step again, after an error past its rename
        os.rename(beside, final)
        self._committed.add(step)
        sync(self._store.folder)
        if old is not None:
            shutil.rmtree(old)

    def _tidy(self) -> None:
        """The checkpoint is committed, whatever comes of this."""
        if self._lease is None:
            return
        if not self._lease.is_held():
            raise LeaseLostError(self._folder)
        try:
            newest = self._store.committed()[-1]
            replace(self._store.folder / "latest", newest.path.name)
            self._store.retain(self._config.keep, self._config.keep_every)
        except OSError as error:
            say(f"older checkpoints cannot be tidied away: {error}")

    def _together(self, what: str, phase: Phase, action: Callable[[], T]) -> list[T]:
        """The results of all ranks; raises on all where one failed."""
        self.phase = phase
        mine: tuple[T | None, str | None]
        try:
            mine = action(), None
        except LeaseLostError:
            mine = None, ""
        except (Exception, CheckpointException) as error:  # whatever a disk or a library brings
            mine = None, _sentence(error, self._mesh.rank)
        told: list[Any] = [None] * self._mesh.layout.world
        dist.all_gather_object(told, mine, group=self._group)
        wrong = [text for _, text in told if text is not None]
        if "" in wrong:
            raise LeaseLostError(self._folder)
        if wrong:
            raise _FailedError(f"{what} failed at {phase}: {wrong[0]}")
        return [result for result, _ in told]


def _sentence(error: BaseException, rank: int) -> str:
    """The rank on which something went wrong first, and the first line of what."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (cause, _) = next(iter(error.failures.items()))
        return _sentence(cause, rank)
    lines = str(error).strip().splitlines()
    return f"rank {rank}: {type(error).__name__}{f': {lines[0]}' if lines else ''}"
