"""What all tests share: which of them may run beside others, and what they may lack."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from tests import report
from tests.report import note_time as note_time

ROOT = Path(__file__).resolve().parent.parent


ALONE = (
    "tests/faults/test_kills.py",
    "tests/faults/test_stragglers.py",
    "tests/faults/test_watchdog.py",
    "tests/launch/test_preflight.py",
    "tests/launch/test_processes.py::test_a_rank_",
    "tests/slurm",
)
"""Beginnings of the names of tests whose ranks others would make late."""

SHARED = ("tests/trainer/checkpoint", "tests/trainer/weights")
"""Folders whose tests share a run."""

DIVIDED = ("tests/layouts/test_bytes.py", "tests/layouts/test_parity.py")
"""Files whose tests share little: each may run on another worker."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark which tests need the machine alone, and which belong to one worker of several.

    Tests of a file run on one worker, for its fixtures are made there; a test may name another
    group itself.
    """
    for item in items:
        file = item.path.relative_to(ROOT).as_posix()
        if f"{file}::{item.name}".startswith(ALONE):
            item.add_marker(pytest.mark.alone)
        if item.get_closest_marker("xdist_group") is None and file not in DIVIDED:
            folder = next((folder for folder in SHARED if file.startswith(folder)), None)
            item.add_marker(pytest.mark.xdist_group(folder or file))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send what a worker's tests have reported to the process that shows it."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["report"] = report.content()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a worker's tests have reported."""
    output = getattr(node, "workeroutput", None)
    if output is not None:
        report.merge(output["report"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    report.show(terminalreporter)


def skip(why: str) -> NoReturn:
    """Skip a test for what a machine may lack; fail it where FORESCALE_NO_SKIPS is set."""
    if os.environ.get("FORESCALE_NO_SKIPS"):
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configurations are named as users name them, from the top of the checkout."""
    monkeypatch.chdir(ROOT)
    torch.manual_seed(0)


@pytest.fixture
def real_data() -> Path:
    """A folder with ETTh1.csv.gz and others, named by FORESCALE_TEST_DATA."""
    folder = os.environ.get("FORESCALE_TEST_DATA")
    if not folder:
        pytest.skip("FORESCALE_TEST_DATA names no folder with ETTh1.csv.gz")
    return Path(folder)
