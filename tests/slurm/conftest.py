"""One cluster for all tests of a session, jobs on it, and the run that nothing happens to."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests import ranks
from tests.conftest import ROOT, skip
from tests.settings import train_rank
from tests.slurm.cluster import Cluster, missing
from tests.slurm.jobs import LONG, QUICK, Job, Submit
from trainer.logs.metrics import Row


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of four nodes."""
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
    cluster.wait_for_idle()


@pytest.fixture
def submit(unused: Cluster, tmp_path: Path) -> Submit:
    """Submits jobs whose run folder and log lie in the test's own folder."""

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


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """The run of LONG that nothing happens to, on the same layout without Slurm."""
    settings = {k: yaml.safe_load(v) for k, v in (s.split("=", 1) for s in (*QUICK, *LONG))}
    return ranks.run(train_rank, 4, tmp_path_factory.mktemp("x") / "run", settings)[0]
