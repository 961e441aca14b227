"""A full disk stops no run at once, and never costs an old checkpoint or a row of metrics."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests import ranks
from tests.conftest import ROOT, skip
from tests.faults.saves import SETTINGS, committed
from tests.settings import UNSCORED, train_rank, words_of
from trainer.logs.metrics import read_metrics


def _train_with_a_size_limit(rank: int, world: int, run: Path, changes: dict[str, Any]) -> str:
    """Train where no file may be larger than 100 kB; a checkpoint's are."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    return words_of(rank, world, run, changes)


def test_a_file_size_limit_is_told_and_old_checkpoints_stay_good(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ranks.run(train_rank, 2, run, {**SETTINGS, "train.steps": 2, "train.warmup_steps": 1})
    before = {f.name: f.read_bytes() for f in (run / "checkpoints/step-00000002").iterdir()}
    said = ranks.run(_train_with_a_size_limit, 2, run, {**SETTINGS, "train.warmup_steps": 1})
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
    """Train on a file system of `size` kB, in a mount namespace of its own.

    Returns the exit code, what was printed, and a copy of the run folder.
    """
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


def _train_on_a_full_disk(rank: int, world: int, run: Path, changes: dict[str, Any]) -> str:
    """Train with metrics.jsonl on a full disk from step 3 to step 5."""
    write, now = os.write, 0

    def on_step(step: int) -> None:
        nonlocal now
        now = step

    def write_some(file: int, content: bytes) -> int:
        """Write half a line, then no more."""
        if 3 <= now <= 5 and Path(f"/proc/self/fd/{file}").readlink().name == "metrics.jsonl":
            if len(content) > 40:
                return write(file, content[:40])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, content)

    with patch("os.write", write_some):
        return words_of(rank, world, run, changes, on_step=on_step)


def test_metrics_wait_for_a_full_disk(tmp_path: Path) -> None:
    """Rows that did not fit come when there is room, each once."""
    changes = {**UNSCORED, "checkpoint.every": 2, "checkpoint.keep": 9}
    [said] = ranks.run(_train_on_a_full_disk, 1, tmp_path / "run", changes)
    assert "rows are kept in memory until it can be written" in said
    assert "the checkpoint of step 4 failed" in said and "metrics.jsonl: " in said
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert committed(tmp_path / "run") == [2, 6, 8]
