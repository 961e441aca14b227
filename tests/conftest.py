"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


TIMES: list[str] = []


def note_time(what: str, seconds: float) -> None:
    """For the summary: from one event to another."""
    TIMES.append(f"{what}: {seconds:.1f} s")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TIMES:
        terminalreporter.section("times")
        for line in TIMES:
            terminalreporter.write_line(line)


def skip(why: str) -> NoReturn:
    """For what a machine may lack; where FORESCALE_NO_SKIPS is set nothing may be lacking."""
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
