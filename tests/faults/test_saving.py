"""Saves that fail, wait, or come from a run that has been replaced."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from model.errors import RunFailedError
from tests import ranks
from tests.conftest import ROOT, skip
from tests.settings import train_rank
from trainer.checkpoint.manifest import verify
from trainer.logs.metrics import Row, read_metrics
from trainer.run.folder import RunFolder
from trainer.run.lease import Attempt, acquire

SETTINGS: dict[str, Any] = {
    "data.rows": 800,
    "logging.tensorboard": False,
    "train.steps": 8,
    "checkpoint.every": 2,
    "parallel.pipeline": 2,
}


def told(rows: list[Row]) -> list[tuple[float, ...]]:
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]


def committed(run: Path) -> list[int]:
    """Steps of the checkpoints, each of them whole."""
    store = RunFolder(run).store
    assert all(verify(checkpoint.path) is None for checkpoint in store.committed())
    return [checkpoint.step for checkpoint in store.committed()]


def _train_with(rank: int, world: int, run: Path, changes: dict[str, Any], hook: Any) -> str:
    """What a rank says, with `hook(rank)` in force; the failure that ends it last."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        hook(rank, run)
        try:
            train_rank(rank, world, run, dict(changes))
        except RunFailedError as error:
            print(f"{type(error).__name__}: {error}")
    return said.getvalue()


def _failing_writes(*calls: int) -> Any:
    """On rank 1 the writes with these numbers find the disk full."""

    def hook(rank: int, run: Path) -> None:
        import trainer.checkpoint.storage as storage

        original, count = storage.Writer.write_data, 0

        def write(self: Any, *arguments: Any) -> Any:
            nonlocal count
            count += 1
            if rank == 1 and count in calls:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(self, *arguments)

        storage.Writer.write_data = write  # type: ignore[method-assign]

    return hook


def _fail_once(rank: int, world: int, run: Path, changes: dict[str, Any]) -> str:
    return _train_with(rank, world, run, changes, _failing_writes(2))


def _fail_twice(rank: int, world: int, run: Path, changes: dict[str, Any]) -> str:
    return _train_with(rank, world, run, changes, _failing_writes(2, 3))


def _fail_last(rank: int, world: int, run: Path, changes: dict[str, Any]) -> str:
    return _train_with(rank, world, run, changes, _failing_writes(4))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return ranks.run(train_rank, 2, tmp_path_factory.mktemp("whole") / "run", dict(SETTINGS))[0]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_failed_save_is_told_and_training_goes_on(
    tmp_path: Path, undisturbed: list[Row], asynchronous: bool
) -> None:
    run = tmp_path / "run"
    changes = {**SETTINGS, "checkpoint.asynchronous": asynchronous, "checkpoint.keep": 9}
    said = ranks.run(_fail_once, 2, run, changes)
    assert (
        "the checkpoint of step 4 failed at writing the tensors: rank 1: OSError: [Errno 28] "
        "No space left on device; the checkpoints before it are as they were"
    ) in said[0]
    assert "failed" not in said[1]
    assert committed(run) == [2, 6, 8]
    assert told(read_metrics(run / "metrics.jsonl")) == told(undisturbed)
    assert (run / "done").exists() and not list((run / "checkpoints").glob(".*"))


def test_two_failed_saves_in_a_row_stop_the_run(tmp_path: Path, undisturbed: list[Row]) -> None:
    run = tmp_path / "run"
    said = ranks.run(_fail_twice, 2, run, SETTINGS)
    for text in said:
        assert text.strip().endswith("as did the one before; the run stops")
        assert "SaveFailedError: the checkpoint of step 6 failed at writing the tensors" in text
    assert committed(run) == [2]
    assert not (run / "done").exists()
    resumed = ranks.run(train_rank, 2, run, dict(SETTINGS))[0]
    assert told(resumed) == told(undisturbed)


def test_the_last_checkpoint_is_tried_once_more(tmp_path: Path) -> None:
    said = ranks.run(_fail_last, 2, tmp_path / "run", SETTINGS)
    assert "the checkpoint of step 8 failed" in said[0]
    assert committed(tmp_path / "run")[-1] == 8 and (tmp_path / "run" / "done").exists()


def _size_limit(rank: int, world: int, run: Path, changes: dict[str, Any]) -> str:
    """No file may be larger than 100 kB; a checkpoint's are."""

    def hook(rank: int, run: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    return _train_with(rank, world, run, changes, hook)


def test_a_file_size_limit_is_told_and_old_checkpoints_stay_good(
    tmp_path: Path, undisturbed: list[Row]
) -> None:
    run = tmp_path / "run"
    ranks.run(train_rank, 2, run, {**SETTINGS, "train.steps": 2, "train.warmup_steps": 1})
    before = {f.name: f.read_bytes() for f in (run / "checkpoints/step-00000002").iterdir()}
    said = ranks.run(_size_limit, 2, run, {**SETTINGS, "train.warmup_steps": 1})
    assert "the checkpoint of step 4 failed" in said[0] and "File too large" in said[0]
    assert "SaveFailedError: the checkpoint of step 6 failed" in said[0]
    assert committed(run) == [2]
    assert before == {f.name: f.read_bytes() for f in (run / "checkpoints/step-00000002").iterdir()}


MOUNT = """
mount -t tmpfs -o size={size}k none {folder} || exit 77
{python} launch/train.py configs/tiny.yaml --run-dir {folder}/run {settings} || code=$?
cp -r {folder}/run {kept}
exit ${{code:-0}}
"""


def _train_on_a_disk_of(size: int, tmp_path: Path, *settings: str) -> tuple[int, str, Path]:
    """A real file system of `size` kB in a mount namespace of its own."""
    (tmp_path / "disk").mkdir()
    script = MOUNT.format(
        size=size,
        folder=tmp_path / "disk",
        python=sys.executable,
        kept=tmp_path / "kept",
        settings=" ".join(settings),
    )
    if shutil.which("unshare") is None or os.geteuid() != 0:
        skip("mounting a small disk takes root and unshare (apt-get install util-linux)")
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode == 77:
        skip("this container may not mount a small disk")
    return done.returncode, done.stdout + done.stderr, tmp_path / "kept"


QUICK = ["data.rows=800", "train.steps=8", "checkpoint.every=2", "checkpoint.keep=2"]


def test_a_full_disk_stops_a_run_with_its_old_checkpoints_good(tmp_path: Path) -> None:
    """A checkpoint is 1.7 MB: one fits, the second never does."""
    code, said, run = _train_on_a_disk_of(2800, tmp_path, *QUICK)
    assert code == 1 and "Traceback" not in said, said
    assert "the checkpoint of step 4 failed" in said and "No space left on device" in said
    assert "forescale: the checkpoint of step 6 failed" in said
    assert committed(run) == [2]
    assert not list((run / "checkpoints").glob(".*"))  # the room is given back


def test_metrics_wait_for_a_full_disk(tmp_path: Path) -> None:
    """Rows that did not fit come when there is room, each once."""
    hook = "tests.faults.full_disk"
    done = subprocess.run(
        [sys.executable, "-m", hook, str(tmp_path / "run")],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "rows are kept in memory until it can be written" in done.stdout
    assert "the checkpoint of step 4 failed" in done.stdout and "metrics.jsonl: " in done.stdout
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert committed(tmp_path / "run") == [2, 6, 8]


def _slow_disk(rank: int, world: int, run: Path, changes: dict[str, Any]) -> list[int]:
    """The first save is not written before step 5 has begun: a save that blocked would hang."""
    from trainer.checkpoint.storage import Storage

    begun = threading.Event()
    in_flight: list[int] = []

    class SlowDisk(Storage):
        def write(self, *arguments: Any) -> None:
            in_flight.append(threading.active_count())
            assert begun.wait(timeout=60)
            super().write(*arguments)

    def on_step(step: int) -> None:
        if step == 5:
            begun.set()

    train_rank(rank, world, run, dict(changes), on_step=on_step, storage=SlowDisk())
    return in_flight


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, undisturbed: list[Row]
) -> None:
    """And what is written is the state as it was: the steps since have not touched it."""
    run = tmp_path / "run"
    changes = {**SETTINGS, "checkpoint.every": 4, "checkpoint.keep": 9}
    ranks.run(_slow_disk, 2, run, changes)
    assert committed(run) == [4, 8]
    plain = tmp_path / "plain"
    ranks.run(train_rank, 2, plain, {**changes, "checkpoint.asynchronous": False})
    for name in ("__0_0.distcp", "__1_0.distcp"):
        files = [(r / "checkpoints/step-00000004" / name).read_bytes() for r in (run, plain)]
        assert files[0] == files[1]
    assert told(read_metrics(run / "metrics.jsonl")) == told(undisturbed)


def _untidy(rank: int, world: int, run: Path, changes: dict[str, Any]) -> str:
    """Old checkpoints cannot be removed: somebody reads them over the network, or guards them."""

    def hook(rank: int, run: Path) -> None:
        import trainer.checkpoint.store as store

        def busy(*_: Any) -> None:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

        store.shutil.rmtree = busy  # type: ignore[assignment]

    return _train_with(rank, world, run, changes, hook)


def test_a_commit_counts_whatever_becomes_of_older_ones(
    tmp_path: Path, undisturbed: list[Row]
) -> None:
    run = tmp_path / "run"
    said = ranks.run(_untidy, 2, run, {**SETTINGS, "checkpoint.keep": 1})
    assert "older checkpoints cannot be tidied away: [Errno 39] Directory not empty" in said[0]
    assert "the checkpoint of" not in said[0]
    assert committed(run) == [8] and (run / "done").exists()
    more = ranks.run(_untidy, 2, run, {**SETTINGS, "train.steps": 9})
    assert "cannot be removed: Directory not empty" in more[0]


def _taken_in_between(rank: int, world: int, run: Path, changes: dict[str, Any]) -> str:
    """A newer start comes after the last look at the owner, and commits the same step first."""
    os.environ["SLURM_JOB_ID"] = "7"
    stack = contextlib.ExitStack()

    def hook(rank: int, run: Path) -> None:
        from trainer.run.lease import Lease

        is_held = Lease.is_held

        def look(self: Lease) -> bool:
            answer = is_held(self)
            newer = run / "checkpoints" / "step-00000004"
            if not newer.exists() and (run / "checkpoints" / "step-00000002").exists():
                stack.enter_context(acquire(run, Attempt("slurm 7", (0, 1, 0))))
                shutil.copytree(run / "checkpoints" / "step-00000002", newer)
            return answer

        Lease.is_held = look  # type: ignore[method-assign]

    return _train_with(rank, world, run, changes, hook)


def test_a_newer_starts_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = ranks.run(_taken_in_between, 2, run, {**SETTINGS, "checkpoint.asynchronous": False})
    assert all("LeaseLostError" in text for text in said)
    held = [
        (run / "checkpoints" / name / "manifest").read_bytes()
        for name in ("step-00000002", "step-00000004")
    ]
    assert held[0] == held[1]


def _taken_over(rank: int, world: int, run: Path, changes: dict[str, Any]) -> str:
    """A newer start of the same job comes when step 5 begins."""
    os.environ["SLURM_JOB_ID"] = "7"
    stack = contextlib.ExitStack()

    def hook(rank: int, run: Path) -> None:
        from trainer.engine.engine import Engine

        steps = Engine.train_step

        def step(self: Engine, number: int, *batches: Any) -> Any:
            if rank == 0 and number == 5:
                stack.enter_context(acquire(run, Attempt("slurm 7", (0, 1, 0))))
            return steps(self, number, *batches)

        Engine.train_step = step  # type: ignore[method-assign]

    return _train_with(rank, world, run, changes, hook)


def test_an_older_incarnation_cannot_commit(tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = ranks.run(_taken_over, 2, run, {**SETTINGS, "checkpoint.asynchronous": False})
    for text in said:
        assert f"LeaseLostError: {run} is this start's no longer: a newer start of the job" in text
    assert committed(run) == [2, 4]
    assert not (run / "saved").exists() and not (run / "done").exists()
    assert not list((run / "checkpoints").glob(".*"))
