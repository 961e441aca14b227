"""Launchers that start ranks over nodes without slurm/train_large.sh."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cluster_environment import free_port
from tests.conftest import ROOT, skip
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import QUICK
from trainer.logs.metrics import read_metrics

pytestmark = pytest.mark.timeout(600)


@pytest.mark.slow
def test_srun_with_pmix_torchrun_and_mpirun_over_nodes(unused: Cluster, tmp_path: Path) -> None:
    """Without the script: ranks by srun --mpi=pmix, by a torchrun on each node, and by mpirun in
    an allocation, which meet where MPI says."""
    if shutil.which("mpirun") is None:
        skip("no mpirun here: apt-get install --no-install-recommends openmpi-bin libopenmpi3")
    program = ["launch/train.py", "configs/tiny.yaml", *QUICK, "train.steps=3"]
    plain = ["srun", "--nodes=2", "--ntasks-per-node=2", "--mpi=pmix", sys.executable]
    torchrun = [
        "srun",
        "--nodes=2",
        "--ntasks-per-node=1",
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{free_port()}",
    ]
    mpirun = [
        "salloc",
        "--nodes=2",
        "--ntasks-per-node=2",
        "mpirun",
        "-np",
        "4",
        "--map-by",
        "ppr:2:node",
        "--mca",
        "btl_tcp_if_include",
        "lo",
        sys.executable,
    ]
    named = [*mpirun[:6], "-x", "MASTER_ADDR=node1", *mpirun[6:]]  # without mpi4py
    found = []
    report = unused.run("srun", "--nodes=1", sys.executable, "-m", "launch", "doctor")
    assert "this process: rank 0 of 1" in report and "## network" in report
    for name, command in (
        ("pmix", plain),
        ("torchrun", torchrun),
        ("mpirun", mpirun),
        ("named", named),
    ):
        run = tmp_path / name
        unused.wait_for_idle()
        done = subprocess.run(
            [*command, *program, f"--run-dir={run}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={
                **unused.environment,
                "OMP_NUM_THREADS": "1",
                "OMPI_ALLOW_RUN_AS_ROOT": "1",
                "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            },
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        table = r"\nnode([12])    0-1    0\nnode(?!\1)[12]    2-3    0\n"
        assert re.search(table, done.stdout), done.stdout
        found.append([row["loss"] for row in read_metrics(run / "metrics.jsonl")])
    assert len(found[0]) == 3 and all(losses == found[0] for losses in found)
