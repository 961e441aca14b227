"""A run that is interrupted is saved or resumed, requeued, and ends as if nothing had been."""

from __future__ import annotations

import os
import re
import signal

import pytest

from tests.conftest import note_time
from tests.slurm.jobs import FEW, LONG, Submit
from trainer.logs.metrics import Row, without_machine

pytestmark = pytest.mark.timeout(600)


@pytest.mark.slow
def test_a_time_limit_saves_requeues_and_finishes(submit: Submit) -> None:
    """No step is lost at the signal, which Slurm sends up to a minute early."""
    steps = 1500
    job = submit(
        f"train.steps={steps}", "checkpoint.every=10000", flags=("--time=30", "--signal=USR1@90")
    )
    minutes = int(job.wait_for_step(1)) // 60 + 2
    job.limit(minutes)
    job.wait(lambda: (job.run / "saved").exists(), "the signal", 90)
    job.limit(30)
    step = int((job.run / "saved").read_text().split()[1])
    assert len(job.rows()) == step < steps
    assert [p.name for p in (job.run / "checkpoints").glob("step-*")] == [f"step-{step:08d}"]
    note_time("saved to training again", job.wait_for_step(step + 1))
    job.wait_until_done(300)
    assert f"step {step} is saved; the job is requeued" in job.said()
    assert [row["step"] for row in job.rows()] == list(range(1, steps + 1))


@pytest.mark.slow
def test_a_signal_before_the_first_step_requests_stop(submit: Submit) -> None:
    """While it plans, and while the ranks import torch: started again, as if nothing had been."""
    job = submit("train.steps=3")
    for start, word, tasks in ((1, "launch plan", 1), (2, "launch/train.py", 4)):
        job.wait(lambda w=word, n=tasks: len(job.cluster.tasks(w)) == n, word)
        for process in job.cluster.tasks(word):
            os.kill(process.pid, signal.SIGUSR1)
        job.wait(lambda start=start: job.starts() == start + 1, "the next start")
    job.wait_until_done()
    assert job.said().count("USR1 came before it could be heeded") == 2
    assert [row["step"] for row in job.rows()] == [1, 2, 3]


@pytest.mark.slow
def test_a_preempted_job_comes_back(submit: Submit, undisturbed: list[Row]) -> None:
    job = submit(*LONG)
    job.wait_for_step(50)
    job.cluster.run(
        "sbatch",
        "--partition=urgent",
        "--nodes=4",
        "--exclusive",
        "--time=1",
        "--output=/dev/null",
        "--wrap=sleep 3",
    )
    job.wait(lambda: (job.run / "saved").exists(), "the signal", 60)
    step = len(job.rows())
    note_time("preempted to training again", job.wait_for_step(step + 1))
    job.wait_until_done()
    assert without_machine(job.rows()) == without_machine(undisturbed)
    assert job.starts() == 2


@pytest.mark.slow
@pytest.mark.xdist_group("waits for Slurm's minute, beside others")
def test_a_run_that_hangs_at_its_time_limit_comes_back(
    submit: Submit, undisturbed: list[Row]
) -> None:
    job = submit(*LONG, "faults.hang_seconds=1000", flags=("--time=2", "--signal=USR1@1"))
    job.wait_for_step(50)

    def stopped() -> bool:
        """Slurm lets them go on with the signal that it sends."""
        for process in job.cluster.tasks("launch/train.py"):
            os.kill(process.pid, signal.SIGSTOP)
        return "is requeued" in job.said()

    job.wait(stopped, "the requeue", 150)
    job.wait_until_done()
    assert job.starts() == 2
    assert "nothing was saved before the time limit; the job is requeued" in job.said()
    assert without_machine(job.rows()) == without_machine(undisturbed)


@pytest.mark.slow
def test_a_signal_to_the_script_reaches_the_ranks(submit: Submit, undisturbed: list[Row]) -> None:
    """--signal=B:USR1; and a run that was to start anew goes on after it."""
    job = submit(*LONG, "--resume=never")
    job.wait_for_step(50)
    job.cluster.run("scancel", "--batch", "--signal=USR1", job.number)
    job.wait(lambda: job.starts() == 2, "the second start")
    assert re.search(r"step \d+ is saved; the job is requeued", job.said())
    job.wait_until_done()
    assert without_machine(job.rows()) == without_machine(undisturbed)


@pytest.mark.slow
def test_a_failure_without_requeue_is_a_failed_job(submit: Submit) -> None:
    job = submit(
        "train.learning_rate=1e30",
        "train.warmup_steps=0",
        "train.steps=100",
        flags=FEW,
        FORESCALE_REQUEUE="no",
    )
    job.wait(lambda: job.facts().get("JobState") == "FAILED", "the end")
    assert "the same command goes on from there" in job.said() and job.starts() == 1


@pytest.mark.slow
def test_three_failures_at_one_step_give_up(submit: Submit) -> None:
    job = submit("train.learning_rate=1e30", "train.warmup_steps=0", "train.steps=100", flags=FEW)
    job.wait(lambda: job.facts().get("JobState") == "FAILED", "the end", 240)
    assert job.starts() == 3
    assert re.search(r"failed 3 times after step \d+, for the reason above; giving up", job.said())
    assert "lower train.learning_rate" in job.said()


@pytest.mark.slow
def test_the_stop_file_stops_for_good(submit: Submit) -> None:
    job = submit(*LONG, "train.steps=3000", flags=FEW)
    job.wait_for_step(20)
    (job.run / "save").touch()
    job.wait(lambda: not (job.run / "save").exists(), "the save")
    (job.run / "stop").touch()
    job.wait(lambda: job.facts().get("JobState") == "COMPLETED", "the end")
    assert (job.run / "saved").exists() and job.starts() == 1
    assert "was asked to stop" in job.said()
    again = submit(*LONG, "train.steps=3000", flags=FEW)
    again.wait(lambda: again.facts().get("JobState") == "COMPLETED", "the end")
    assert "asks this run to stand still" in again.said()


@pytest.mark.slow
def test_a_job_array_goes_on_where_requeue_is_forbidden(
    submit: Submit, undisturbed: list[Row]
) -> None:
    job = submit(*LONG, flags=("--array=1-3%1", "--no-requeue"), FORESCALE_REQUEUE="no")
    job.wait_for_step(50)
    for process in job.cluster.tasks("launch/train.py"):
        os.kill(process.pid, signal.SIGUSR1)
    job.wait(lambda: (job.run / "done").exists(), "the end", 200)
    assert without_machine(job.rows()) == without_machine(undisturbed)
    assert "the same command goes on from there, as does the next of a chain" in job.said()
