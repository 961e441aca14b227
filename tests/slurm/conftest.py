"""One cluster for all tests of a session, and jobs on it."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT, skip
from tests.slurm.cluster import Cluster, missing
from trainer.logs.metrics import Row, read_metrics

QUICK = ("data.rows=600", "logging.tensorboard=false", "data.split=[0.9,0.1,0.0]")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    why = missing()
    if why is not None:
        skip(why)
    made = Cluster(tmp_path_factory.mktemp("slurm"), nodes=4)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def unused(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster without jobs, before and after."""
    yield cluster
    cluster.run("scancel", "--user=root", check=False)
    for name in cluster.names:
        if name not in cluster.daemons:
            cluster.start_node(name)
        cluster.run("scontrol", "update", f"NodeName={name}", "State=RESUME", check=False)
    for process in cluster.tasks("launch/train.py"):
        subprocess.run(["kill", "-KILL", str(process.pid)], check=False)
    cluster.wait(lambda: set(cluster.states().values()) == {"IDLE"}, "the nodes to be idle")


@dataclass
class Job:
    """slurm/train_large.sh on the cluster."""

    cluster: Cluster
    number: str
    run: Path
    log: Path

    def rows(self) -> list[Row]:
        return read_metrics(self.run / "metrics.jsonl")

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def facts(self) -> dict[str, str]:
        return self.cluster.job(self.number)

    def limit(self, minutes: int) -> None:
        self.cluster.run("scontrol", "update", f"JobId={self.number}", f"TimeLimit={minutes}")

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 120) -> float:
        """The seconds that it took."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > seconds:
                state = self.facts().get("JobState")
                raise TimeoutError(f"waited for {what}; the job is {state}\n{self.said()}")
            time.sleep(0.05)
        return time.monotonic() - began

    def wait_for_step(self, step: int, seconds: float = 120) -> float:
        return self.wait(lambda: len(self.rows()) >= step, f"step {step}", seconds)

    def wait_until_done(self, seconds: float = 180) -> float:
        def ended() -> bool:
            return self.facts().get("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")

        took = self.wait(ended, "the job to end", seconds)
        assert self.facts()["JobState"] == "COMPLETED", self.said()
        assert (self.run / "done").exists(), self.said()
        return took

    def starts(self) -> int:
        return len(re.findall(r"^train_large: job \d+, start \d+,", self.said(), re.MULTILINE))


@pytest.fixture
def submit(unused: Cluster, tmp_path: Path) -> Callable[..., Job]:
    """submit(settings, *sbatch's flags, script's variables by keyword) on 2 nodes of 2 tasks."""

    def start(*settings: str, flags: tuple[str, ...] = (), **variables: str) -> Job:
        run = tmp_path / "run"
        exported = {"OMP_NUM_THREADS": "1", "FORESCALE_PREFLIGHT": "no", **variables}
        command = [
            "sbatch",
            "--parsable",
            "--nodes=2",
            "--ntasks-per-node=2",
            "--cpus-per-task=1",
            f"--output={tmp_path}/job.log",
            f"--chdir={ROOT}",
            "--export=ALL," + ",".join(f"{k}={v}" for k, v in exported.items()),
            *flags,
            "slurm/train_large.sh",
            "configs/tiny.yaml",
            f"--run-dir={run}",
            *QUICK,
            *settings,
        ]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=unused.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return Job(unused, done.stdout.strip(), run, tmp_path / "job.log")

    return start
