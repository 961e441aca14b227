"""Nodes die, ranks are killed or stopped, processes outlive their start: the run comes back."""

from __future__ import annotations

import os
import re
import signal

import pytest

from tests.conftest import note_time
from tests.slurm.jobs import LONG, Submit
from trainer.logs.metrics import Row, without_machine

pytestmark = pytest.mark.timeout(600)


def expanded(ranges: str) -> set[int]:
    """Return the numbers that a text such as `0-2, 5` stands for."""
    pairs = [part.partition("-") for part in ranges.split(", ")]
    return {n for first, _, last in pairs for n in range(int(first), int(last or first) + 1)}


@pytest.mark.slow
def test_a_dead_node_is_replaced(submit: Submit, undisturbed: list[Row]) -> None:
    job = submit(*LONG)
    job.wait_for_step(50)
    job.cluster.run("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    job.wait(lambda: job.starts() == 2, "the second start")
    note_time("node down to training again", job.wait_for_step(len(job.rows()) + 1))
    assert "node2" not in job.said().split("start 1,")[1].splitlines()[0]
    job.wait_until_done()
    assert without_machine(job.rows()) == without_machine(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 3])
def test_a_killed_rank_ends_the_start_and_the_next_goes_on(
    submit: Submit, undisturbed: list[Row], rank: int
) -> None:
    job = submit(*LONG)
    job.wait_for_step(50)
    [victim] = [p for p in job.cluster.tasks("launch/train.py") if p.rank == rank]
    os.kill(victim.pid, signal.SIGKILL)
    job.wait(lambda: job.starts() == 2, "the second start")
    note_time("killed rank to training again", job.wait_for_step(len(job.rows()) + 1))
    job.wait_until_done()
    assert without_machine(job.rows()) == without_machine(undisturbed)
    assert (job.run / "failures").read_text().count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_a_stopped_rank_is_reported_and_the_run_resumed(
    submit: Submit, undisturbed: list[Row], rank: int
) -> None:
    job = submit(*LONG)
    job.wait_for_step(50)
    [victim] = [p for p in job.cluster.tasks("launch/train.py") if p.rank == rank]
    os.kill(victim.pid, signal.SIGSTOP)
    job.wait(lambda: job.starts() == 2, "the second start")
    note_time("stopped rank to training again", job.wait_for_step(len(job.rows()) + 1))
    if rank == 0:
        assert "rank 0, at which the ranks meet, has not answered for 5 s" in job.said()
    else:
        assert "rank 2: does not answer: stopped, dead or cut off" in job.said()
        waits = re.findall(r"waits for rank ([^;]+);", job.said())
        assert waits and all(2 in expanded(ranks) for ranks in waits)
    job.wait_until_done()
    assert without_machine(job.rows()) == without_machine(undisturbed)


@pytest.mark.slow
def test_what_is_left_of_an_older_start_cannot_commit(
    submit: Submit, undisturbed: list[Row]
) -> None:
    """The daemon of the node with rank 0 dies and its tasks live on: Slurm starts the job again
    elsewhere, beside them."""
    job = submit(*LONG, "checkpoint.keep=100")
    job.wait_for_step(30)
    tasks = [p for p in job.cluster.tasks("launch/train.py") if p.node == "node1"]
    old = [*tasks, *job.cluster.script(job.number)]
    for process in old:
        os.kill(process.pid, signal.SIGSTOP)  # or it would be done before Slurm notices
    job.cluster.kill_daemon("node1")
    job.wait(lambda: job.starts() == 2, "the second start", 120)
    job.wait_for_step(len(job.rows()) + 5)
    for process in old:
        os.kill(process.pid, signal.SIGCONT)
    job.wait_until_done()
    assert without_machine(job.rows()) == without_machine(undisturbed)
    for process in old:
        job.wait(process.has_ended, f"the end of {process.words()}")
    assert job.starts() == 2 and not (job.run / "failures").exists()
    assert "start 0 is over: the job is RUNNING, start 1" in job.said()


@pytest.mark.slow
def test_a_node_that_cannot_train_is_kept_away_from(submit: Submit) -> None:
    """The run's file system is not what it should be on one of two nodes."""
    job = submit("train.steps=3", flags=("--hold", "--exclude=node4"), FORESCALE_PREFLIGHT="yes")
    job.cluster.inside("node2", "mount", "-t", "tmpfs", "-o", "ro", "none", str(job.log.parent))
    try:
        job.cluster.run("scontrol", "release", job.number)
        job.wait_until_done()
    finally:
        job.cluster.inside("node2", "umount", str(job.log.parent))
    assert re.search(r"^unfit node2: .*Read-only file system", job.said(), re.MULTILINE)
    assert "node2 cannot train; the job is requeued" in job.said()
    assert "preflight: node1, node3 can train" in job.said()
    assert set(job.facts()["ExcNodeList"].split(",")) == {"node2", "node4"} or (
        job.facts()["ExcNodeList"] == "node[2,4]"
    )
    assert [row["step"] for row in job.rows()] == [1, 2, 3]


@pytest.mark.slow
def test_a_node_that_hangs_before_training_is_kept_away_from(submit: Submit) -> None:
    job = submit("train.steps=3", FORESCALE_PREFLIGHT="yes", FORESCALE_START_SECONDS="15")
    job.wait(lambda: len(job.cluster.tasks("launch preflight")) == 2, "the preflight")
    [victim] = [p for p in job.cluster.tasks("launch preflight") if p.rank == 1]
    os.kill(victim.pid, signal.SIGSTOP)
    job.wait_until_done()
    assert "unfit node2: did not come within 15 s" in job.said()
    assert job.facts()["ExcNodeList"] == "node2" and job.starts() == 2
