"""The script's calls of launch/requeue.py, with a pretended scontrol."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import requeue, slurm_job
from launch.slurm_job import Job, UnknownJobError, parse_job
from tests.conftest import ROOT

JOB = (
    "JobId=7 JobName=my train UserId=me(1) JobState={state} Reason=None Restarts={restarts} "
    "EndTime={end} ExcNodeList={excluded} Command=slurm/train_large.sh"
)
SCONTROL = """#!/bin/sh
echo "$@" >> {folder}/asked
[ "$1" = -o ] && cat {folder}/job
exit 0
"""


class Slurm:
    """A pretended Slurm with job 7, whose script decides what to do."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run"
        program = folder / "scontrol"
        program.write_text(SCONTROL.format(folder=folder))
        program.chmod(0o755)
        self.set()

    def set(
        self,
        state: str = "RUNNING",
        restarts: int = 0,
        excluded: str = "(null)",
        end: str = "Unknown",
    ) -> None:
        """Choose what scontrol prints of the job."""
        line = JOB.format(state=state, restarts=restarts, excluded=excluded, end=end)
        (self.folder / "job").write_text(line + "\n")

    def decide(
        self, *arguments: str, stdin: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Call launch/requeue.py as the script does."""
        environment = {"PATH": f"{self.folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
        return subprocess.run(
            [sys.executable, "-ES", "-m", "launch.requeue", *arguments, f"--run={self.run}"],
            cwd=ROOT,
            env=environment | variables,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def asked(self) -> list[str]:
        """Return what scontrol was called to do."""
        lines = (self.folder / "asked").read_text().splitlines()
        return [line for line in lines if not line.startswith("-o show job")]


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


def test_nothing_to_decide_lets_the_script_go_on(slurm: Slurm) -> None:
    for arguments in (["start"], ["gpus", "0", "2", "8"], ["plan", "0"], ["preflight", "0"]):
        done = slurm.decide(*arguments, stdin="{}")
        assert (done.returncode, done.stdout, done.stderr) == (10, "", "")
    script = (ROOT / "slurm" / "train_large.sh").read_text()
    assert f"((code == {requeue.GO_ON}))" in script
    assert not slurm.run.exists()


def test_a_saved_run_is_requeued(slurm: Slurm) -> None:
    slurm.run.mkdir()
    (slurm.run / "saved").write_text("step 50\n")
    done = slurm.decide("training", "0", "step 40")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "train_large: step 50 is saved; the job is requeued\n"
    assert slurm.asked() == ["requeue 7"] and not (slurm.run / "failures").exists()


@pytest.mark.parametrize(
    ("before", "after"), [("(null)", "node2"), ("node[4-5]", "node[4-5],node2")]
)
def test_an_unfit_node_is_excluded_beside_those_that_are(
    slurm: Slurm, before: str, after: str
) -> None:
    slurm.set(excluded=before)
    done = slurm.decide("preflight", "1", stdin='{"unfit": {"node2": "no disk"}}')
    assert done.returncode == 0
    assert "failed after step 0: node2 cannot train; the job is requeued" in done.stdout
    assert slurm.asked() == ["requeue 7", f"update JobId=7 ExcNodeList={after}"]


def test_failures_are_recorded_and_the_third_ends_the_job(slurm: Slurm) -> None:
    slurm.run.mkdir()
    (slurm.run / "metrics.jsonl").write_text('{"step": 40, "loss": 1.0}\n')
    (slurm.run / "failures").write_text("job 7, step 30: start 0, lightning\n")
    codes = []
    for start in ("1", "2", "3"):
        slurm.set(restarts=int(start))
        done = slurm.decide("training", "137", "", SLURM_RESTART_COUNT=start)
        codes.append(done.returncode)
    assert codes == [0, 0, 1]
    assert (slurm.run / "failures").read_text().splitlines() == [
        "job 7, step 30: start 0, lightning",
        "job 7, step 40: start 1, the ranks ended with code 137",
        "job 7, step 40: start 2, the ranks ended with code 137",
        "job 7, step 40: start 3, the ranks ended with code 137",
    ]
    assert done.stderr == (
        "train_large: the ranks ended with code 137; failed 3 times after step 40, for the reason "
        "above; giving up\n"
    )
    assert slurm.asked() == ["requeue 7", "requeue 7"]


def test_a_signal_to_the_script_counts_as_a_failure_of_the_array(slurm: Slurm) -> None:
    done = slurm.decide("plan", "0", "--signalled", stdin="{}", SLURM_ARRAY_JOB_ID="5")
    assert done.returncode == 0 and "USR1 came before it could be heeded" in done.stdout
    assert (slurm.run / "failures").read_text().startswith("job 5, step 0: start 0, USR1 came")


def test_an_attempt_that_is_over_requeues_and_records_nothing(slurm: Slurm) -> None:
    slurm.set(restarts=1)
    done = slurm.decide("training", "1", "")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "train_large: start 0 is over: the job is RUNNING, start 1\n"
    assert slurm.asked() == [] and not slurm.run.exists()


def test_without_requeue_a_failure_is_recorded_and_ends_the_job(slurm: Slurm) -> None:
    done = slurm.decide("training", "1", "", FORESCALE_REQUEUE="no")
    assert done.returncode == 1 and slurm.asked() == []
    assert "failed after step 0: the ranks ended with code 1; the same command goes" in done.stderr
    assert (slurm.run / "failures").exists()


def test_failures_that_cannot_be_written_end_the_job(slurm: Slurm) -> None:
    slurm.run.write_text("a file in the way")
    done = slurm.decide("gpus", "1", "2", "")
    assert done.returncode == 1 and slurm.asked() == []
    assert "failures cannot be written, so nothing is requeued" in done.stderr


def test_at_the_time_limit_the_job_is_requeued(slurm: Slurm) -> None:
    assert slurm.decide("limit").returncode == requeue.GO_ON  # there is none
    slurm.set(end="2024-05-01T12:00:00")
    assert slurm.decide("limit", FORESCALE_REQUEUE="no").returncode == requeue.GO_ON
    assert slurm.asked() == []
    done = slurm.decide("limit")
    assert done.returncode == 0 and slurm.asked() == ["requeue 7"]
    assert "nothing was saved before the time limit; the job is requeued" in done.stdout


def test_of_an_arrays_jobs_the_right_one_is_read() -> None:
    lines = [
        JOB.format(state="PENDING", restarts=3, excluded="a", end="Unknown").replace("=7 ", "=70 "),
        JOB.format(state="RUNNING", restarts=0, excluded="(null)", end="2024-05-01T12:00:00"),
    ]
    text = "\n".join(lines)
    assert parse_job("7", text) == Job("RUNNING", "0", "", "2024-05-01T12:00:00")
    assert parse_job("70", text) == Job("PENDING", "3", "a", "Unknown")
    assert parse_job("8", text) is None and parse_job("7", "") is None


def test_a_controller_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    line = JOB.format(state="RUNNING", restarts=0, excluded="(null)", end="Unknown")
    answers = ["", "slurm_load_jobs error\n", line]
    monkeypatch.setattr(slurm_job.time, "sleep", slept.append)
    monkeypatch.setattr(slurm_job, "_scontrol", lambda *_: (0, answers.pop(0)))
    assert slurm_job.show_job("7").state == "RUNNING" and slept == [10, 10]
    monkeypatch.setattr(slurm_job, "_scontrol", lambda *_: (1, ""))
    with pytest.raises(UnknownJobError, match="Slurm knows nothing of job 7"):
        slurm_job.show_job("7")
    assert sum(slept) == 10 * 61


@pytest.mark.parametrize("name", ["requeue", "slurm_job"])
def test_the_policy_runs_under_a_hosts_old_python(name: str) -> None:
    """Its grammar is that of Python 3.6, and it imports the standard library alone."""
    tree = ast.parse((ROOT / "launch" / f"{name}.py").read_text(), feature_version=(3, 6))
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(str(node.module))
    assert modules <= sys.stdlib_module_names | {"launch.slurm_job"}
    assert "__future__" not in modules  # it has no annotations yet


def test_the_policy_needs_no_packages() -> None:
    python = f"{sys.base_prefix}/bin/python3"
    command = [python, "-ES", "-m", "launch.requeue", "folder", "configs/large.yaml", "a=b"]
    done = subprocess.run(command, cwd=ROOT, env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "runs/large\n", "")
