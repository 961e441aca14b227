"""One run in a folder at a time, and of a job only its newest attempt."""

from __future__ import annotations

import errno
import json
import multiprocessing
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from model.errors import UserError
from trainer.run.lease import NAME, Attempt, acquire, is_restart, refuse_if_leased

FIRST = Attempt("slurm 7", (0, 0, 0))
SECOND = Attempt("slurm 7", (0, 1, 0))
OTHER = Attempt("slurm 8", (0, 0, 0))
ALONE = Attempt("", (0, 0, 0))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Attempt("", (0, 0, 0))),
        ({"SLURM_JOB_ID": "7"}, FIRST),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, SECOND),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": ""}, FIRST),
        (
            {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"},
            Attempt("slurm 7", (2, 0, 0)),
        ),
        (
            {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "2"},
            Attempt("", (0, 0, 2)),
        ),
        (
            {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "2"},
            Attempt("torchrun x", (0, 0, 2)),
        ),
    ],
)
def test_an_attempt_is_read_from_the_scheduler(
    variables: dict[str, str], expected: Attempt
) -> None:
    assert Attempt.here(variables) == expected


@pytest.mark.parametrize("attempt", [ALONE, FIRST])
def test_a_folder_is_free_again_after_a_run(tmp_path: Path, attempt: Attempt) -> None:
    for _ in range(2):
        with acquire(tmp_path, attempt) as lease:
            assert lease.is_held()
    refuse_if_leased(tmp_path, ALONE)
    assert [f.name for f in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize(
    ("holder", "comes"),
    [(ALONE, ALONE), (ALONE, FIRST), (FIRST, FIRST), (FIRST, OTHER), (OTHER, FIRST)],
)
def test_two_runs_cannot_have_a_folder(tmp_path: Path, holder: Attempt, comes: Attempt) -> None:
    with acquire(tmp_path, holder) as lease:
        for refused in (
            lambda: refuse_if_leased(tmp_path, comes),
            lambda: acquire(tmp_path, comes).__enter__(),
        ):
            with pytest.raises(UserError, match=r"another process is training in .* on .*wait for"):
                refused()
        assert lease.is_held()


def test_a_newer_attempt_takes_over_and_the_older_one_learns_of_it(tmp_path: Path) -> None:
    with ExitStack() as stack:
        older = stack.enter_context(acquire(tmp_path, FIRST))
        newer = stack.enter_context(acquire(tmp_path, SECOND))
        assert newer.is_held() and not older.is_held()
        with pytest.raises(UserError, match="a newer start of this job"):
            acquire(tmp_path, FIRST).__enter__()
    with acquire(tmp_path, FIRST) as again:  # when it has ended: torchrun's count starts over
        assert again.is_held()


def test_without_locks_an_older_start_is_told_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("trainer.run.lease.fcntl.flock", unsupported)
    with (
        acquire(tmp_path, SECOND),
        pytest.raises(UserError, match=r"if it is gone, remove .*\.owner"),
    ):
        acquire(tmp_path, FIRST).__enter__()
    with acquire(tmp_path, OTHER) as another:
        assert another.is_held()


@pytest.mark.parametrize("text", ['{"turn": 5}', '{"job": "slurm 7", "turn": ["a"]}', "[]", ""])
def test_a_strange_record_is_nobodys(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    with acquire(tmp_path, FIRST) as lease:
        assert lease.is_held()


def test_a_folder_in_its_place_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(UserError, match="cannot be opened: Is a directory"):
        acquire(tmp_path, FIRST).__enter__()


def test_a_half_written_or_missing_record_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"job": "slurm 7", "tu')
    with acquire(tmp_path, ALONE) as lease:
        (tmp_path / NAME).unlink()
        assert not lease.is_held()


def _compete(folder: Path, gate: Any, won: Any) -> None:
    gate.wait()
    try:
        with acquire(folder, ALONE) as lease:
            won.put(json.loads((folder / NAME).read_text())["process"])
            gate.wait()
            won.put(lease.is_held())
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
    first, second = Attempt("slurm 7", (0, 0)), Attempt("slurm 7", (0, 1))
    assert not is_restart(tmp_path, first)
    with acquire(tmp_path, first):
        assert is_restart(tmp_path, first)  # another rank of the same start
    assert is_restart(tmp_path, second)
    assert not is_restart(tmp_path, Attempt("slurm 8", (0, 0)))
    with acquire(tmp_path, Attempt("", (0, 0))):
        assert not is_restart(tmp_path, Attempt("", (0, 0)))


@pytest.mark.parametrize(
    "content",
    ["[1]", "5", '"token"', "{}", "[" * 100_000, "\0", '{"turn": 5}', '{"turn": [1e999]}'],
)
def test_a_spoiled_record_is_nobodys(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    assert not is_restart(tmp_path, FIRST)
    with acquire(tmp_path, FIRST) as lease:
        assert lease.is_held()
        (tmp_path / NAME).write_text(content)
        assert not lease.is_held()
