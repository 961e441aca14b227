"""A run that a signal has stopped is saved, and its exit code says that it is not done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch.cli import main
from tests import ranks
from tests.conftest import ROOT
from tests.settings import TINY
from trainer.faults.signals import StopRequest, stop_on_signal
from trainer.logs.metrics import read_metrics

LONG = {"data.rows": 800, "logging.tensorboard": False, "train.steps": 3000}
SETTINGS = [f"{key}={str(value).lower()}" for key, value in LONG.items()]


def _signal_later(run: Path, number: int) -> None:
    """Send this process a signal once the run has made two steps."""

    def send() -> None:
        while len(read_metrics(run / "metrics.jsonl")) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


def _start(rank: int, world: int, run: Path, number: int) -> int:
    """Train by the command line's `start`; the last rank gets a signal. Returns the exit code."""
    from launch.start import start

    if rank == world - 1:
        _signal_later(run, number)
    return start(TINY, SETTINGS, run_dir=run, resume="auto", ranks=None)


def test_a_run_that_a_signal_stops_ends_with_the_signals_code_on_all_ranks(tmp_path: Path) -> None:
    """Ctrl-C under --ranks is in test_processes.py."""
    assert ranks.run(_start, 2, tmp_path / "run", signal.SIGTERM) == [143, 143]
    assert (tmp_path / "run" / "saved").exists() and not (tmp_path / "run" / "done").exists()


def _train_from_python(rank: int, world: int, run: Path) -> str:
    """Train by the library; the process gets a Ctrl-C. Returns what is raised."""
    import forescale

    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # jobs of a shell's background ignore it
    _signal_later(run, signal.SIGINT)
    try:
        forescale.train(TINY, run_dir=run, **LONG)
    except KeyboardInterrupt:
        return "interrupted"
    return "done"


def test_ctrl_c_interrupts_what_follows_in_python(tmp_path: Path) -> None:
    assert ranks.run(_train_from_python, 1, tmp_path / "run") == ["interrupted"]
    assert (tmp_path / "run" / "saved").exists()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGHUP, 129),
        (signal.SIGUSR1, 0),
    ],
)
def test_each_signal_has_its_code(number: int, code: int) -> None:
    stop = StopRequest()
    stop(number, None)
    assert stop.exit_code == code


def test_a_second_ctrl_c_ends_the_process_unless_it_is_the_same_one() -> None:
    """A launcher passes on at once what the terminal has sent; a person takes longer."""
    code = (
        "import signal, os, sys, time\n"
        "from trainer.faults.signals import StopRequest, stop_on_signal\n"
        "with stop_on_signal():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(float(sys.argv[1]))\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(0.1)\n"
    )
    for seconds, expected in (("0.05", 0), ("0.4", -signal.SIGINT)):
        done = subprocess.run([sys.executable, "-c", code, seconds], cwd=ROOT, check=False)
        assert done.returncode == expected


def test_the_first_signal_counts() -> None:
    stop = StopRequest()
    assert stop.exit_code == 0 and not stop
    stop(signal.SIGUSR1, None)
    stop(signal.SIGTERM, None)
    assert stop.exit_code == 0 and stop


@pytest.mark.parametrize(("before", "stops"), [(signal.SIG_IGN, False), (signal.SIG_DFL, True)])
def test_a_hang_up_that_nohup_ignores_stops_nothing(before: signal.Handlers, stops: bool) -> None:
    earlier = signal.signal(signal.SIGHUP, before)
    try:
        with stop_on_signal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert bool(stop) is stops
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, earlier)


def test_any_command_ends_with_130_after_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("launch.doctor.report", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 130
    assert capsys.readouterr().err.strip() == "forescale: interrupted"
