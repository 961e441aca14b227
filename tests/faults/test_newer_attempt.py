"""A newer attempt of a job takes the run folder over, and the older one changes nothing more."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import ranks
from tests.faults.saves import SETTINGS, committed
from tests.settings import words_of
from trainer.checkpoint.saver import Phase
from trainer.run.lease import Attempt, acquire

SYNCHRONOUS = {**SETTINGS, "checkpoint.asynchronous": False}


def _overtaken_in_between(rank: int, world: int, run: Path, changes: dict[str, Any]) -> str:
    """Train; another attempt commits the checkpoint of step 4 when this one is about to.

    As if it had taken the folder over after this one looked at the lease for the last time.
    """

    def on_phase(phase: Phase | None, step: int) -> None:
        if rank == 0 and phase is Phase.RENAMING and step == 4:
            checkpoints = run / "checkpoints"
            shutil.copytree(checkpoints / "step-00000002", checkpoints / "step-00000004")

    return words_of(rank, world, run, changes, on_phase=on_phase)


def test_a_newer_starts_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = ranks.run(_overtaken_in_between, 2, run, SYNCHRONOUS)
    assert all("LeaseLostError" in text for text in said)
    held = [
        (run / "checkpoints" / name / "manifest").read_bytes()
        for name in ("step-00000002", "step-00000004")
    ]
    assert held[0] == held[1]


def _taken_over(rank: int, world: int, run: Path, changes: dict[str, Any]) -> str:
    """Train; a newer start of the same job comes when step 5 begins."""
    os.environ["SLURM_JOB_ID"] = "7"
    newer = contextlib.ExitStack()

    def on_step(step: int) -> None:
        if rank == 0 and step == 5:
            newer.enter_context(acquire(run, Attempt("slurm 7", (0, 1, 0))))

    return words_of(rank, world, run, changes, on_step=on_step)


def test_an_older_attempt_cannot_commit(tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = ranks.run(_taken_over, 2, run, SYNCHRONOUS)
    for text in said:
        assert f"LeaseLostError: {run} is this start's no longer: a newer start of the job" in text
    assert committed(run) == [2, 4]
    assert not (run / "saved").exists() and not (run / "done").exists()
    assert not list((run / "checkpoints").glob(".*"))


def _in_the_way(rank: int, world: int, run: Path, changes: dict[str, Any], is_folder: bool) -> str:
    """Train; before the commit of step 4 somebody puts something in its place."""

    def on_phase(phase: Phase | None, step: int) -> None:
        if phase is Phase.RENAMING and step == 4:
            place = run / "checkpoints" / "step-00000004"
            if is_folder:
                place.mkdir()
                place = place / "notes.txt"
            place.write_text("notes")

    return words_of(rank, world, run, changes, on_phase=on_phase)


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_somebody_puts_in_a_checkpoints_place_is_set_aside(
    tmp_path: Path, is_folder: bool
) -> None:
    run = tmp_path / "run"
    changes = {**SYNCHRONOUS, "parallel.pipeline": 1, "train.steps": 5}
    [said] = ranks.run(_in_the_way, 1, run, changes, is_folder)
    assert "step-00000004 was there already, and is no checkpoint; it is now step-00000004" in said
    assert "newer start" not in said
    assert committed(run) == [2, 4, 5] and (run / "done").exists()
    aside = run / "checkpoints" / "step-00000004.damaged"
    assert (aside / "notes.txt" if is_folder else aside).read_text() == "notes"
