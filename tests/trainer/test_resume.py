"""A run that was stopped is resumed as if it had not been."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from model.errors import UserError
from tests import ranks
from tests.settings import QUICK, UNSCORED, planned, told, train_rank
from trainer.checkpoint.manifest import entry, read_manifest, write_manifest
from trainer.checkpoint.saver import Phase
from trainer.config import load
from trainer.job import train
from trainer.logs.metrics import Row, read_metrics
from trainer.prepare import prepare
from trainer.run.folder import RunFolder
from trainer.run.lease import Attempt, acquire


def _train_and_die(
    rank: int, world: int, run: Path, overrides: dict[str, Any], where: str, at: int
) -> None:
    """Train; every rank is killed when it comes to `where` for the time number `at`."""
    calls: Counter[str] = Counter()

    def reach(point: object) -> None:
        calls[str(point)] += 1
        if point == where and calls[where] == at:
            os.kill(os.getpid(), signal.SIGKILL)

    train_rank(
        rank,
        world,
        run,
        overrides,
        on_step=lambda step: reach("step"),
        on_phase=lambda phase, step: reach(phase),
    )


INTERRUPTED = {
    **UNSCORED,
    "checkpoint.every": 3,
    "parallel.pipeline": 2,
    "checkpoint.asynchronous": False,
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """The run of INTERRUPTED that nothing happens to."""
    return ranks.run(train_rank, 2, tmp_path_factory.mktemp("straight") / "run", INTERRUPTED)[0]


@pytest.mark.parametrize(
    ("where", "at", "steps_seen", "resumes_at"),
    [
        ("step", 6, 5, 3),  # between checkpoints
        (Phase.WRITING, 2, 6, 3),  # in the second save, before a byte is written
        (Phase.RENAMING, 2, 6, 3),  # all is written, the rename is next
        (Phase.TIDYING, 2, 6, 6),  # the rename is done, `latest` is not
    ],
)
def test_after_a_kill_the_run_goes_on_from_its_last_commit(
    tmp_path: Path, straight: list[Row], where: str, at: int, steps_seen: int, resumes_at: int
) -> None:
    with pytest.raises(ranks.RanksFailedError):
        ranks.run(_train_and_die, 2, tmp_path / "cut", INTERRUPTED, where, at)
    run = RunFolder(tmp_path / "cut")
    assert len(read_metrics(run.path / "metrics.jsonl")) == steps_seen
    assert not (run.path / "done").exists() and not (run.path / "saved").exists()
    newest = run.store.newest()
    assert newest is not None and newest.step == resumes_at
    resumed = ranks.run(train_rank, 2, run.path, INTERRUPTED)[0]
    assert told(resumed) == told(straight)
    assert not list(run.store.folder.glob(".*"))


def test_another_layout_goes_on_from_a_given_checkpoint(tmp_path: Path) -> None:
    settings = {**UNSCORED, "model.dropout": 0.0, "checkpoint.every": 4}
    straight = ranks.run(train_rank, 1, tmp_path / "straight", settings)[0]
    point = str(tmp_path / "straight" / "checkpoints" / "step-00000004")
    layout = {"parallel.pipeline": 2, "train.micro_batch_size": 2, "resume": point}
    moved = ranks.run(train_rank, 4, tmp_path / "other", {**settings, **layout})[0]
    assert [row["step"] for row in moved] == [5, 6, 7, 8]
    assert [row["loss"] for row in moved] == pytest.approx(
        [row["loss"] for row in straight[4:]], rel=1e-5
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps with checkpoints at 4 and 8."""
    run = tmp_path_factory.mktemp("finished") / "run"
    ranks.run(train_rank, 1, run, {**QUICK, "checkpoint.every": 4})
    return run


def test_a_finished_run_is_done_and_more_steps_go_on(finished: Path, tmp_path: Path) -> None:
    assert planned(finished, QUICK).start.is_done
    longer = tmp_path / "longer"
    shutil.copytree(finished, longer)
    rows = ranks.run(train_rank, 1, longer, {**QUICK, "train.steps": 10})[0]
    assert [row["step"] for row in rows] == list(range(1, 11))
    (longer / "done").unlink()
    with pytest.raises(UserError, match=r"has made 10 steps already, not 9"):
        planned(longer, {**QUICK, "train.steps": 9})


def test_a_run_s_own_configuration_goes_on_there(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    steps = {"train.steps": 12}
    plan = prepare(load(run / "config.yaml", steps))
    assert plan.run.path == run and plan.start.steps_done == 8
    assert not [one for one in plan.warnings() if "no effect" in one]
    elsewhere = prepare(load(run / "config.yaml", steps), run_dir=tmp_path / "other")
    assert elsewhere.run.path == tmp_path / "other" and elsewhere.start.steps_done == 0
    (run / "environment.json").unlink()
    assert prepare(load(run / "config.yaml", steps)).run.path == Path("runs/config")


def test_going_another_way_takes_another_folder(finished: Path, tmp_path: Path) -> None:
    point = str(finished / "checkpoints" / "step-00000004")
    with pytest.raises(UserError, match=r"has gone on to step-00000008; choose another --run-dir"):
        planned(finished, {**QUICK, "resume": point})
    assert planned(tmp_path / "new", {**QUICK, "resume": point}).start.steps_done == 4
    with pytest.raises(UserError, match=r"is of other settings: train\.seed is 0 there and 1 here"):
        planned(tmp_path / "new", {**QUICK, "train.seed": 1, "resume": point})


def test_the_same_data_may_lie_elsewhere(tmp_path: Path) -> None:
    """A table by itself, and one of a mixture."""
    for folder in ("here", "there", "other"):
        (tmp_path / folder).mkdir()
        points = range(300)
        lines = [f"2024-01-{1 + n // 24 % 28:02}T{n % 24:02},{n % 7}" for n in points]
        (tmp_path / folder / "load.csv").write_text("\n".join(["time,load", *lines]) + "\n")
    other = (tmp_path / "other" / "load.csv").read_text()
    (tmp_path / "other" / "load.csv").write_text(other.replace(",3", ",4"))
    for kind in ("alone", "mixed"):

        def of(folder: str, kind: str = kind) -> dict[str, Any]:
            path = str(tmp_path / folder / "load.csv")
            source = path if kind == "alone" else [{"path": path, "weight": 2.0}]
            return {**UNSCORED, **OWN_TABLE, "data.source": source, "train.steps": 2}

        run = tmp_path / kind
        ranks.run(train_rank, 1, run, of("here"))
        assert planned(run, {**of("there"), "train.steps": 4}).start.steps_done == 2
        with pytest.raises(UserError, match=r"data\.source: .* has changed since"):
            planned(run, of("other"))
    more = [{"path": str(tmp_path / "there" / "load.csv"), "weight": 1.0}]
    with pytest.raises(UserError, match=r"data\.source is .*2\.0"):
        planned(tmp_path / "mixed", {**of("there"), "data.source": more})


OWN_TABLE = {
    "data.targets": ["load"],
    "data.covariates": [],
    "data.calendar": [],
    "data.rows": None,
    "data.timezone": None,
    "data.context_length": 48,
    "data.prediction_length": 16,
}


def test_changed_data_is_noticed(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    file = run / "checkpoints" / "step-00000008" / "checkpoint.json"
    file.write_text(file.read_text().replace(json.loads(file.read_text())["data"], "other"))
    entries = read_manifest(file.parent) | {file.name: entry(file)}
    (file.parent / "manifest").unlink()
    write_manifest(file.parent, entries)
    with pytest.raises(UserError, match=r"data\.source: vic_elec has changed since"):
        planned(run, QUICK)


def test_a_copy_beside_the_checkpoints_is_no_checkpoint(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    folder = run / "checkpoints"
    shutil.copytree(folder / "step-00000008", folder / "step-00000008.bak")
    assert [c.step for c in RunFolder(run).store.committed()] == [4, 8]


def test_a_plan_that_is_out_of_date_is_refused(finished: Path, tmp_path: Path) -> None:
    """Another command has gone on in the folder between the look and the start."""
    run = shutil.copytree(finished, tmp_path / "run")
    plan = planned(run, {**QUICK, "train.steps": 9})
    ranks.run(train_rank, 1, run, {**QUICK, "train.steps": 10})
    with pytest.raises(UserError, match="has gone on to step-00000010 since this command looked"):
        train(plan)
    assert (run / "done").exists()


def test_two_runs_cannot_share_a_folder(finished: Path) -> None:
    plan = planned(finished, {**QUICK, "train.steps": 9})
    with (
        acquire(plan.run.path, Attempt("", ())),
        pytest.raises(UserError, match="another process is training"),
    ):
        train(plan)


def _clear(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("gone", "shown"),
    [
        (["checkpoints"], "done is there"),
        (["checkpoints/step-*"], "done is there"),
        (["done", "checkpoints/step-*"], "checkpoints/latest is there"),
        (["done", "checkpoints"], "metrics.jsonl has 8 steps"),
    ],
)
def test_a_run_whose_checkpoints_are_gone_does_not_start_over(
    finished: Path, tmp_path: Path, gone: list[str], shown: str
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    for pattern in gone:
        _clear(run, pattern)
    settings = {**QUICK, "checkpoint.every": 3}
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("  every: 4\n", "  every: 3\n", 1)
    )
    held = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(UserError, match="has no checkpoint any more; restore one, name") as refused:
        planned(run, settings)
    assert f"({shown})" in str(refused.value)
    assert held == {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    moved = str(finished / "checkpoints" / "step-00000004")
    assert planned(run, {**settings, "resume": moved}).start.steps_done == 4
    shutil.copytree(moved, run / "checkpoints" / "step-00000004")
    assert planned(run, settings).start.steps_done == 4


def test_a_run_from_elsewhere_without_a_checkpoint_of_its_own_does_not_start_over(
    finished: Path, tmp_path: Path
) -> None:
    run, moved = tmp_path / "run", str(finished / "checkpoints" / "step-00000004")
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("done", "checkpoints"))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[4:6]))
    with pytest.raises(UserError, match="began at step 5, from a checkpoint of another folder"):
        planned(run, QUICK)
    assert planned(run, {**QUICK, "resume": moved}).start.steps_done == 4


def test_a_run_whose_only_checkpoint_is_set_aside_does_not_start_over(
    finished: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    _clear(run, "done")
    _clear(run, "checkpoints/latest")
    _clear(run, "checkpoints/step-00000004")
    RunFolder(run).store.quarantine(run / "checkpoints" / "step-00000008")
    with pytest.raises(UserError, match=r"\(checkpoints/step-00000008\.damaged is there\)"):
        planned(run, QUICK)


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_over(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever starts it again, and its scheduler also where a full disk took no checkpoint."""
    run = shutil.copytree(finished, tmp_path / "run")
    _clear(run, "done")
    _clear(run, "checkpoints")
    assert planned(run, {**QUICK, "checkpoint.every": 4}).start.steps_done == 0
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("  every: 4\n", "  every: 1\n", 1))
    with pytest.raises(UserError, match="has 8 steps"):
        planned(run, QUICK)
    (run / ".owner").write_text(json.dumps({"job": "slurm 7", "turn": [0, 0, 0]}))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert planned(run, QUICK).start.steps_done == 0
