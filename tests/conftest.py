"""What all tests share: which of them may run beside others, and what they may lack."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from tests import report
from tests.report import note_time as note_time

ROOT = Path(__file__).resolve().parent.parent


ALONE = (
    "tests/faults/test_stragglers.py",
    "tests/faults/test_watchdog.py",
    "tests/launch/test_processes.py::test_a_rank_that_fails_alone",
    "tests/slurm/test_start.py::test_sixteen_ranks",
)
"""Beginnings of the names of tests whose ranks would be late beside others."""

CLUSTERS = {
    "tests/slurm/test_lost_ranks.py": 0,
    "tests/slurm/test_launchers.py": 0,
    "tests/slurm/test_requeue.py": 1,
    "tests/slurm/test_start.py": 1,
}
"""Files of slow tests that start jobs -> which of two clusters they use.

Their ranks would be late beside others too, but the jobs wait for Slurm half of the time: those of
two clusters run beside each other.
"""

CLUSTER_GROUPS = ("cluster 1", "cluster 2")

SHARED = ("tests/trainer/checkpoint", "tests/trainer/weights", "tests/slurm")
"""Folders whose tests share a run or a cluster."""

DIVIDED = ("tests/gpu/test_runs.py", "tests/layouts/test_bytes.py", "tests/layouts/test_parity.py")
"""Files whose tests share little: each may run on another worker."""


def group_of(item: pytest.Item) -> str | None:
    """Return the name of the tests that one worker runs together with this one.

    Tests of a file belong together, for its fixtures are made once; a test may name another group
    itself.
    """
    named = item.get_closest_marker("xdist_group")
    if named is not None:
        return str(named.args[0])
    file = item.path.relative_to(ROOT).as_posix()
    if f"{file}::{item.name}".startswith(ALONE):
        return "alone"
    if file in CLUSTERS and item.get_closest_marker("slow") is not None:
        return CLUSTER_GROUPS[CLUSTERS[file]]
    if file in DIVIDED:
        return None
    return next((folder for folder in SHARED if file.startswith(folder)), file)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Divide the tests among workers: groups first, which take long, and last what runs alone.

    Of each kind those with the longest timeouts come first.
    """
    groups = {item: group_of(item) for item in items}
    last = [None, *CLUSTER_GROUPS, "alone"]

    def place(item: pytest.Item) -> tuple[int, float]:
        limit = item.get_closest_marker("timeout")
        group = groups[item]
        return last.index(group) if group in last else -1, -limit.args[0] if limit else 0.0

    items.sort(key=place)
    for item, group in groups.items():
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group), append=False)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Stop a worker that would not run the tests of a group together."""
    if not hasattr(session.config, "workerinput"):
        return
    lost = [item for item in session.items if group_of(item) and "@" not in item.nodeid]
    if lost:
        raise pytest.UsageError(
            f"pytest-xdist gives {lost[0].nodeid} no group with pytest {pytest.__version__}; "
            "install the versions in constraints.txt"
        )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run a test beside those of other workers, or while these wait."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    with open(lock_of(os.getppid()), "a+b") as lock:
        fcntl.lockf(lock, *lock_for(group_of(item)))
        return (yield)


def lock_for(group: str | None) -> tuple[int, int, int]:
    """Return how a group's tests lock the workers' file: kind, number of bytes, the first of them.

    Each cluster has a byte of its own. What runs alone takes all bytes, and all others share them.
    """
    if group in CLUSTER_GROUPS:
        return fcntl.LOCK_EX, 1, CLUSTER_GROUPS.index(group)
    kind = fcntl.LOCK_EX if group == "alone" else fcntl.LOCK_SH
    return kind, len(CLUSTER_GROUPS), 0


def lock_of(starter: int) -> Path:
    """Return the file by which the workers that a process has started wait for each other."""
    return Path(tempfile.gettempdir()) / f"forescale-tests-{starter}.lock"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send what a worker's tests have reported to the process that shows it, which ends last."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["report"] = report.content()
    else:
        lock_of(os.getpid()).unlink(missing_ok=True)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a worker's tests have reported."""
    output = getattr(node, "workeroutput", None)
    if output is not None:
        report.merge(output["report"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    report.show(terminalreporter)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the tables that tests and their ranks prepare out of the checkout."""
    os.environ.setdefault("FORESCALE_CACHE", str(tmp_path_factory.mktemp("cache")))


def skip(why: str) -> NoReturn:
    """Skip a test for what a machine may lack; fail it where FORESCALE_NO_SKIPS is set."""
    if os.environ.get("FORESCALE_NO_SKIPS"):
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a test as a user starts a command: at the top of the checkout."""
    monkeypatch.chdir(ROOT)
    torch.manual_seed(0)


@pytest.fixture
def real_data() -> Path:
    """A folder with ETTh1.csv.gz and others, named by FORESCALE_TEST_DATA."""
    folder = os.environ.get("FORESCALE_TEST_DATA")
    if not folder:
        pytest.skip("FORESCALE_TEST_DATA names no folder with ETTh1.csv.gz")
    return Path(folder)
