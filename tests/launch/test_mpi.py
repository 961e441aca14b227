"""mpirun, and deepspeed over MPI, start the same run in real processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, skip
from trainer.logs.metrics import read_metrics

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
SETTINGS = (
    "configs/tiny.yaml",
    "data.rows=600",
    "data.split=[0.9,0.1,0.0]",
    "train.steps=3",
    "logging.tensorboard=false",
)


@pytest.fixture(autouse=True)
def _needs_mpi() -> None:
    if shutil.which("mpirun") is None:
        skip("no mpirun here: apt-get install --no-install-recommends openmpi-bin libopenmpi3")


def finished(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={
            **os.environ,
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            **variables,
        },
    )


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    run = tmp_path_factory.mktemp("alone") / "run"
    done = finished([sys.executable, "launch/train.py", *SETTINGS, f"--run-dir={run}"])
    assert done.returncode == 0, done.stderr
    return losses(run)


def test_mpirun_starts_the_ranks(tmp_path: Path, alone: list[float]) -> None:
    run = tmp_path / "run"
    done = finished(
        [
            "mpirun",
            "--oversubscribe",
            "-np",
            "2",
            sys.executable,
            "launch/train.py",
            *SETTINGS,
            f"--run-dir={run}",
            "parallel.pipeline=2",
        ]
    )
    assert done.returncode == 0, done.stderr
    assert "the ranks have met at 127.0.0.1:" in done.stdout
    assert re.search(rf"^{os.uname().nodename} +0-1 +0-1$", done.stdout, re.MULTILINE), done.stdout
    assert losses(run) == pytest.approx(alone, rel=1e-5)


def test_deepspeed_with_a_hostfile_over_mpi(tmp_path: Path, alone: list[float]) -> None:
    run = tmp_path / "run"
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    done = finished(
        [
            str(BIN / "deepspeed"),
            "--hostfile",
            str(tmp_path / "hosts"),
            "--launcher",
            "openmpi",
            "--force_multi",
            "--no_ssh_check",
            "--master_addr",
            "127.0.0.1",
            "--launcher_args",
            "--oversubscribe --mca btl_tcp_if_include lo",
            "launch/train.py",
            *SETTINGS,
            f"--run-dir={run}",
            "parallel.tensor=2",
        ]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(run) == pytest.approx(alone, rel=1e-5)


def test_a_mistake_under_mpirun_is_one_line(tmp_path: Path) -> None:
    program = [sys.executable, "launch/train.py", *SETTINGS, f"--run-dir={tmp_path / 'run'}"]
    done = finished(["mpirun", "--oversubscribe", "-np", "2", *program, "parallel.pipeline=3"])
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert sum("parallel.pipeline" in line for line in done.stderr.splitlines()) == 1
