"""One run in a folder at a time, and of a job only its newest incarnation."""

from __future__ import annotations

import errno
import json
import multiprocessing
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from model.errors import UserError
from trainer.run.lease import NAME, Incarnation, is_later_start, own, refuse_if_taken

FIRST = Incarnation("slurm 7", (0, 0, 0))
SECOND = Incarnation("slurm 7", (0, 1, 0))
OTHER = Incarnation("slurm 8", (0, 0, 0))
ALONE = Incarnation("", (0, 0, 0))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Incarnation("", (0, 0, 0))),
        ({"SLURM_JOB_ID": "7"}, FIRST),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, SECOND),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": ""}, FIRST),
        (
            {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"},
            Incarnation("slurm 7", (2, 0, 0)),
        ),
        (
            {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "2"},
            Incarnation("", (0, 0, 2)),
        ),
        (
            {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "2"},
            Incarnation("torchrun x", (0, 0, 2)),
        ),
    ],
)
def test_an_incarnation_is_read_from_the_scheduler(
    variables: dict[str, str], expected: Incarnation
) -> None:
    assert Incarnation.here(variables) == expected


@pytest.mark.parametrize("incarnation", [ALONE, FIRST])
def test_a_folder_is_free_again_after_a_run(tmp_path: Path, incarnation: Incarnation) -> None:
    for _ in range(2):
        with own(tmp_path, incarnation) as ownership:
            assert ownership.lasts()
    refuse_if_taken(tmp_path, ALONE)
    assert [f.name for f in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize(
    ("holder", "comes"),
    [(ALONE, ALONE), (ALONE, FIRST), (FIRST, FIRST), (FIRST, OTHER), (OTHER, FIRST)],
)
def test_two_runs_cannot_have_a_folder(
    tmp_path: Path, holder: Incarnation, comes: Incarnation
) -> None:
    with own(tmp_path, holder) as ownership:
        for refused in (
            lambda: refuse_if_taken(tmp_path, comes),
            lambda: own(tmp_path, comes).__enter__(),
        ):
            with pytest.raises(UserError, match=r"another process is training in .* on .*wait for"):
                refused()
        assert ownership.lasts()


def test_a_newer_incarnation_takes_over_and_the_older_one_learns_of_it(tmp_path: Path) -> None:
    with ExitStack() as stack:
        older = stack.enter_context(own(tmp_path, FIRST))
        newer = stack.enter_context(own(tmp_path, SECOND))
        assert newer.lasts() and not older.lasts()
        with pytest.raises(UserError, match="a newer start of this job"):
            own(tmp_path, FIRST).__enter__()
    with own(tmp_path, FIRST) as again:  # when it has ended: torchrun's count starts over
        assert again.lasts()


def test_without_locks_an_older_start_is_told_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("trainer.run.lease.fcntl.flock", unsupported)
    with own(tmp_path, SECOND), pytest.raises(UserError, match=r"if it is gone, remove .*\.owner"):
        own(tmp_path, FIRST).__enter__()
    with own(tmp_path, OTHER) as another:
        assert another.lasts()


@pytest.mark.parametrize("text", ['{"turn": 5}', '{"job": "slurm 7", "turn": ["a"]}', "[]", ""])
def test_a_strange_record_is_nobodys(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    with own(tmp_path, FIRST) as ownership:
        assert ownership.lasts()


def test_a_folder_in_its_place_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(UserError, match="cannot be opened: Is a directory"):
        own(tmp_path, FIRST).__enter__()


def test_a_half_written_or_missing_record_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"job": "slurm 7", "tu')
    with own(tmp_path, ALONE) as ownership:
        (tmp_path / NAME).unlink()
        assert not ownership.lasts()


def _compete(folder: Path, gate: Any, won: Any) -> None:
    gate.wait()
    try:
        with own(folder, ALONE) as ownership:
            won.put(json.loads((folder / NAME).read_text())["process"])
            gate.wait()
            won.put(ownership.lasts())
    except UserError:
        gate.wait()
        won.put(None)


def test_of_several_that_come_at_once_one_gets_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for round_ in range(10):
        folder = tmp_path / str(round_)
        folder.mkdir()
        gate, won = context.Barrier(4), context.Queue()
        racers = [context.Process(target=_compete, args=(folder, gate, won)) for _ in range(4)]
        for racer in racers:
            racer.start()
        told = [won.get(timeout=30) for _ in range(5)]
        for racer in racers:
            racer.join()
        assert told.count(None) == 3 and told.count(True) == 1, told


def test_a_later_start_of_a_job_knows_its_own_run(tmp_path: Path) -> None:
    first, second = Incarnation("slurm 7", (0, 0)), Incarnation("slurm 7", (0, 1))
    assert not is_later_start(tmp_path, first)
    with own(tmp_path, first):
        assert is_later_start(tmp_path, first)  # another rank of the same start
    assert is_later_start(tmp_path, second)
    assert not is_later_start(tmp_path, Incarnation("slurm 8", (0, 0)))
    with own(tmp_path, Incarnation("", (0, 0))):
        assert not is_later_start(tmp_path, Incarnation("", (0, 0)))
