"""100 times kill -9 at random moments, and nothing is lost.

Each rank writes which save it is in, and at what, into shared memory, which says after its death
where it died.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from tests import ranks
from tests.settings import train_rank
from trainer.checkpoint.manifest import verify
from trainer.checkpoint.saver import Phase
from trainer.checkpoint.tensor_files import read, tensor_shapes
from trainer.logs.metrics import read_metrics, without_machine
from trainer.run.folder import RunFolder

KILLS, IN_A_PHASE = int(os.environ.get("FORESCALE_KILLS", "100")), 6
WORLD, STEPS, EVERY = 2, 900, 2
SETTINGS: dict[str, Any] = {
    "data.rows": 600,
    "data.split": [0.9, 0.1, 0.0],
    "logging.tensorboard": False,
    "train.steps": STEPS,
    "checkpoint.every": EVERY,
    "checkpoint.keep": 3,
    "parallel.pipeline": WORLD,
    "model.dropout": 0.1,
}

PHASES = list(Phase)
BETWEEN = [Phase.WRITING, Phase.SEALING, Phase.RENAMING]
"""From the first write to the rename."""
PLACE = struct.Struct("=iI")
"""Of each rank on the board: its save's phase, from 1, and step."""


@dataclass(frozen=True)
class Kill:
    """Which rank died, after how many steps, and in which phase of a save, if any."""

    rank: int
    step: int
    phase: Phase | None
    saving: int
    """The step of the save that the rank was in, or of the last one."""
    committed: int
    """The newest checkpoint after it."""

    @property
    def is_between(self) -> bool:
        """Between the first write of a save and its rename."""
        return self.phase in BETWEEN and self.committed < self.saving

    def __str__(self) -> str:
        if self.phase is None:
            return "no save going on"
        renamed = self.phase is Phase.RENAMING and not self.is_between
        return f"{self.phase}{', done' if renamed else ''}"


def _watched(rank: int, world: int, run: Path, board: Path) -> None:
    """Train, and keep this rank's place on `board` up to date."""
    memory = mmap.mmap(os.open(board, os.O_RDWR), world * PLACE.size)

    def enter(phase: Phase | None, step: int) -> None:
        code = 0 if phase is None else 1 + PHASES.index(phase)
        PLACE.pack_into(memory, rank * PLACE.size, code, step)
        if phase is Phase.RENAMING:
            time.sleep(0.002)  # the rename takes no time that a kill could meet

    train_rank(rank, world, run, dict(SETTINGS), on_phase=enter)


class Ranks:
    """The ranks of one attempt, and where they are."""

    def __init__(self, run: Path, folder: Path) -> None:
        board = folder / "board"
        board.write_bytes(bytes(WORLD * PLACE.size))
        self._memory = mmap.mmap(os.open(board, os.O_RDWR), WORLD * PLACE.size)
        pipes = [Pipe(duplex=False) for _ in range(WORLD)]
        logs = [folder / f"rank-{rank}.log" for rank in range(WORLD)]
        self.processes = ranks.start(_watched, (run, board), [w for _, w in pipes], logs)

    def place(self, rank: int) -> tuple[Phase | None, int]:
        """The phase of its save, if one is going on, and the save's step."""
        code, step = PLACE.unpack_from(self._memory, rank * PLACE.size)
        return (PHASES[code - 1] if code else None), step

    def are_alive(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def kill(self, *victims: int) -> None:
        for rank in victims:
            pid = self.processes[rank].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        for rank in victims:
            self.processes[rank].join()

    def end(self) -> None:
        """The others notice; whoever has not within some seconds is ended too."""
        deadline = time.monotonic() + 5
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()


def at_a_moment(chance: random.Random) -> Callable[[Ranks, int], None]:
    """Anywhere: starting, loading, training, saving."""

    def wait(alive: Ranks, rank: int) -> None:
        time.sleep(chance.uniform(0.0, 2.0))

    return wait


def in_phase(phase: Phase, chance: random.Random) -> Callable[[Ranks, int], None]:
    """Some moment after the rank has come to a phase of its first, second or third save."""
    number, delay = chance.choice([1, 2, 2, 3]), chance.uniform(0.0, 0.002)
    pause = 0.0001  # leaves the ranks their processors

    def wait(alive: Ranks, rank: int) -> None:
        deadline = time.monotonic() + 30
        for _ in range(number):
            while alive.place(rank)[0] is phase and alive.are_alive():
                time.sleep(pause)
            while alive.place(rank)[0] is not phase and alive.are_alive():
                assert time.monotonic() < deadline
                time.sleep(pause)
        until = time.monotonic() + delay
        while time.monotonic() < until:
            pass

    return wait


def state(run: Path) -> dict[str, Any]:
    newest = RunFolder(run).store.newest(contents=True)
    assert newest is not None and newest.step == STEPS
    import torch

    tensors = {name: torch.zeros(shape) for name, shape in tensor_shapes(newest.path).items()}
    read(newest.path, tensors, alone=True)
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def next_moment(
    chance: random.Random, seen: list[Kill]
) -> tuple[Callable[[Ranks, int], None], int]:
    """What the record still lacks; half of the kills are aimed at saves."""
    found = Counter(kill.phase for kill in seen if kill.is_between)
    rank = chance.randrange(WORLD)
    if len(seen) % 2 or found.total() < KILLS // 2 + len(seen) - KILLS:
        lacking = [p for p in BETWEEN if found[p] < IN_A_PHASE]
        return in_phase(chance.choice(lacking or BETWEEN), chance), rank
    return at_a_moment(chance), rank


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_lose_nothing(tmp_path: Path, record_property: Callable[..., None]) -> None:
    chance = random.Random(20)
    run = tmp_path / "run"
    kills: list[Kill] = []
    committed = 0
    while len(kills) < KILLS or _missing(kills):
        assert len(kills) < 2 * KILLS and committed < STEPS - 20, "too few kills met a save"
        alive = Ranks(run, tmp_path)
        wait, rank = next_moment(chance, kills)
        wait(alive, rank)
        victims = [rank] if chance.random() < 0.8 else [rank, 1 - rank]
        alive.kill(*victims)
        phase, saving = alive.place(rank)
        alive.end()
        newest = _newest(run)
        rows = [row["step"] for row in read_metrics(run / "metrics.jsonl")]
        assert newest >= committed, "a committed checkpoint was lost"
        assert rows == list(range(1, len(rows) + 1)) and len(rows) >= newest
        committed = newest
        kills.append(Kill(rank, len(rows), phase, saving, committed))
    finished = ranks.run(train_rank, WORLD, run, dict(SETTINGS), timeout=600)[0]
    straight = ranks.run(train_rank, WORLD, tmp_path / "straight", dict(SETTINGS), timeout=600)[0]
    assert without_machine(finished) == without_machine(straight) and len(straight) == STEPS
    assert state(run) == state(tmp_path / "straight")
    assert not list((run / "checkpoints").glob(".*")) and (run / "done").exists()
    _report(kills)


def _newest(run: Path) -> int:
    """The step that the next attempt goes on from; 0 where there is no checkpoint yet."""
    store = RunFolder(run).store
    for checkpoint in store.committed():
        assert verify(checkpoint.path) is None, "a committed checkpoint is not whole"
    newest = store.newest()
    return newest.step if newest else 0


def _missing(kills: list[Kill]) -> bool:
    found = Counter(kill.phase for kill in kills if kill.is_between)
    return (
        any(found[phase] < IN_A_PHASE for phase in BETWEEN)
        or found.total() < KILLS // 2
        or len({kill.rank for kill in kills}) < WORLD
    )


def _report(kills: list[Kill]) -> None:
    for number, kill in enumerate(kills, start=1):
        print(
            f"kill {number}: rank {kill.rank} after step {kill.step}, {kill}; the next "
            f"attempt goes on from {kill.committed}"
        )
    for phase, count in Counter(map(str, kills)).most_common():
        print(f"{count:4d}  {phase}")
    between = sum(kill.is_between for kill in kills)
    print(f"{len(kills)} kills, {between} of them between the first write and the rename")
