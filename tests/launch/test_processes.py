"""Every launcher starts the same run, in real processes, and passes signals and mistakes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.cluster_environment import free_port
from tests.conftest import ROOT
from trainer.logs.metrics import read_metrics

BIN = Path(sys.executable).parent
SCORED = ["data.rows=800", "logging.tensorboard=false"]
QUICK = [*SCORED, "data.split=[0.8,0.2,0.0]"]
"""The settings of a run without test windows, which take as long to score and draw as its steps."""


def environment() -> dict[str, str]:
    return {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def finished(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Return the losses of one process, through the library's public API.

    A notebook shows whatever is written to standard error; DeepSpeed would try compilers there.
    """
    run = tmp_path_factory.mktemp("alone") / "run"
    compilers = tmp_path_factory.mktemp("compilers")
    for name in ("cc", "gcc", "c++", "g++", "clang", "nvcc"):
        (compilers / name).write_text(f"#!/bin/sh\necho {name} $* >> {compilers}/called\nexit 1\n")
        (compilers / name).chmod(0o755)
    code = (
        "import forescale\n"
        f"for run in ({str(run)!r}, {str(run) + '-again'!r}):\n"
        "    forescale.train('configs/tiny.yaml', run_dir=run, "
        "data={'rows': 800, 'split': [0.8, 0.1, 0.1]}, **{'logging.tensorboard': False})"
    )
    ended = finished(["env", f"PATH={compilers}:{os.environ['PATH']}", sys.executable, "-c", code])
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    assert not (compilers / "called").exists(), (compilers / "called").read_text()
    first, again = (
        [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]
        for folder in (run, run.with_name("run-again"))
    )
    assert first == again and len(first) == 10
    return first


LAUNCHERS: dict[str, list[Any]] = {
    "ranks": [BIN / "forescale", "train", "configs/tiny.yaml", "--ranks", "2"],
    "deepspeed": [
        BIN / "deepspeed",
        "--num_accelerators",
        "2",
        "launch/train.py",
        "configs/tiny.yaml",
    ],
    "deepspeed-folder": [
        BIN / "deepspeed",
        "--num_accelerators",
        "2",
        "launch",
        "train",
        "configs/tiny.yaml",
    ],
    "torchrun": [BIN / "torchrun", "--nproc-per-node", "2", "launch/train.py", "configs/tiny.yaml"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_starts_the_same_run(
    launcher: str, alone: list[float], tmp_path: Path
) -> None:
    command = list(LAUNCHERS[launcher])
    if launcher == "torchrun":
        command[1:1] = ["--master-port", str(free_port())]
    if launcher.startswith("deepspeed"):
        command[1:1] = ["--master_port", str(free_port())]
    run = tmp_path / "run"
    ended = finished([*command, "--run-dir", run, "parallel.pipeline=2", *QUICK])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    losses = [row["loss"] for row in read_metrics(run / "metrics.jsonl")]
    assert losses == pytest.approx(alone, rel=1e-5)
    assert "Traceback" not in ended.stderr and "step 10/10" in ended.stdout


@pytest.mark.slow
def test_quiet_is_inherited_by_the_ranks(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [BIN / "forescale", "train", "configs/tiny.yaml", "--ranks", "2", "--quiet"]
    settings = [*QUICK, "train.steps=2"]
    ended = finished([*command, "--run-dir", run, *settings])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout == "data: data.split leaves no test window: the run will not be scored\n"
    assert len(read_metrics(run / "metrics.jsonl")) == 2


def test_a_run_that_fails_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    command = [BIN / "forescale", "train", "configs/tiny.yaml", "--run-dir", tmp_path / "run"]
    settings = ["train.steps=100", "train.learning_rate=1e30", "train.warmup_steps=0"]
    ended = finished([*command, *QUICK, *settings])
    assert ended.returncode == 1
    assert ended.stderr.startswith("forescale: step ") and ended.stderr.count("\n") == 1
    assert "lower train.learning_rate in a new run" in ended.stderr


@pytest.mark.slow
def test_a_mistake_under_the_launcher_is_said_once_with_exit_code_2(tmp_path: Path) -> None:
    ended = finished(
        [
            BIN / "deepspeed",
            "--num_accelerators",
            "2",
            "--master_port",
            str(free_port()),
            "launch/train.py",
            "configs/tiny.yaml",
            "parallel.pipeline=3",
            "--run-dir",
            tmp_path / "run",
        ]
    )
    assert ended.returncode == 2
    assert ended.stderr.count("forescale: ") == 1
    assert "2 ranks" in ended.stderr and "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture
def training(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a long run on two ranks, and wait for some steps."""
    command = [
        BIN / "forescale",
        "train",
        "configs/tiny.yaml",
        "--ranks",
        "2",
        "--run-dir",
        tmp_path / "run",
        "parallel.pipeline=2",
        "train.steps=300",
        *SCORED,
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(read_metrics(tmp_path / "run" / "metrics.jsonl")) < 5:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    yield process
    if process.poll() is None:
        process.kill()


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_resumes(
    training: subprocess.Popen[str], tmp_path: Path
) -> None:
    os.killpg(training.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
    output, _ = training.communicate(timeout=60)
    run = tmp_path / "run"
    steps = len(read_metrics(run / "metrics.jsonl"))
    assert training.returncode == 130, output
    assert f"saved at step {steps}; the same command goes on from there" in output
    assert (run / "saved").read_text() == f"step {steps}\n" and 5 <= steps < 300
    assert "Traceback" not in output
    again = finished(
        [
            BIN / "forescale",
            "train",
            "configs/tiny.yaml",
            "--ranks",
            "2",
            "--run-dir",
            run,
            "parallel.pipeline=2",
            f"train.steps={steps + 3}",
            *SCORED,
        ]
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == list(range(1, steps + 4))
    assert json.loads((run / "evaluation.json").read_text())["step"] == steps + 3
    third = finished(
        [
            BIN / "forescale",
            "train",
            "configs/tiny.yaml",
            "--run-dir",
            run,
            f"train.steps={steps + 3}",
            *SCORED,
        ]
    )
    assert third.returncode == 0 and "nothing is left to do" in third.stdout


def test_ranks_save_and_end_when_the_process_that_started_them_is_killed(
    training: subprocess.Popen[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    training.kill()
    training.wait()
    deadline = time.monotonic() + 60
    while not (run / "saved").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    steps = len(read_metrics(run / "metrics.jsonl"))
    assert (run / "saved").read_text() == f"step {steps}\n" and steps < 300


def test_ctrl_c_ends_a_rank_that_waits_for_others(tmp_path: Path) -> None:
    waiting = subprocess.Popen(
        [
            sys.executable,
            "launch/train.py",
            "configs/tiny.yaml",
            "--run-dir",
            tmp_path / "run",
            "parallel.pipeline=2",
            *QUICK,
        ],
        cwd=ROOT,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        env={
            **environment(),
            "RANK": "0",
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        },
    )
    owner = tmp_path / "run" / ".owner"
    deadline = time.monotonic() + 60
    while not owner.exists():
        assert time.monotonic() < deadline and waiting.poll() is None
        time.sleep(0.1)
    time.sleep(1.0)
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(timeout=20) != 0


@pytest.mark.slow
def test_a_second_ctrl_c_tells_whether_the_run_was_saved(
    training: subprocess.Popen[str], tmp_path: Path
) -> None:
    os.killpg(training.pid, signal.SIGINT)
    time.sleep(0.3)
    if training.poll() is None:
        os.killpg(training.pid, signal.SIGINT)
    output, _ = training.communicate(timeout=60)
    assert training.returncode == 130, output
    is_saved = (tmp_path / "run" / "saved").exists()
    assert ("without saving" in output) == (not is_saved), output


def start_by_hand(rank: int, world: int, port: int, *settings: str) -> subprocess.Popen[str]:
    """Start one rank, as a launcher that is not known here would."""
    mine = environment() | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "FORESCALE_START_SECONDS": "8",
    }
    command = [sys.executable, "launch/train.py", "configs/tiny.yaml", *QUICK, *settings]
    return subprocess.Popen(command, cwd=ROOT, env=mine, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("present", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rank_whose_mate_does_not_come_says_so_and_stops(tmp_path: Path, present: int) -> None:
    rank = start_by_hand(present, 2, free_port(), f"--run-dir={tmp_path / 'run'}")
    said = rank.communicate(timeout=60)[1]
    assert rank.returncode == 2
    assert "Traceback" not in said and said.count("forescale: ") == 1
    expected = ("rank 1 of 2 did not come within 8 s, and rank 0 did", "rank 1 cannot reach the")
    assert expected[present] in said


def test_a_rank_that_fails_alone_is_quoted_by_rank_0(tmp_path: Path) -> None:
    port, run = free_port(), f"--run-dir={tmp_path / 'run'}"
    first = start_by_hand(0, 2, port, run)
    other = start_by_hand(1, 2, port, run, "data.source=/nowhere/x.csv")
    said = first.communicate(timeout=60)[1]
    assert other.wait(timeout=60) == first.returncode == 2
    assert "forescale: rank 1: data.source: there is no file /nowhere/x.csv" in said
