"""What can be said of the scripts, and of the cluster that tests start, without a Slurm."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, skip
from tests.slurm.cluster import Cluster


def test_outside_slurm_the_script_says_how_to_submit_it() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    done = subprocess.run(
        ["bash", "slurm/train_large.sh"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "train_large: submit it: sbatch slurm/train_large.sh\n"


def test_scripts_are_clean() -> None:
    if shutil.which("shellcheck") is None:
        skip("no shellcheck here: apt-get install shellcheck")
    for script in sorted((ROOT / "slurm").glob("*.sh")):
        subprocess.run(["shellcheck", str(script)], check=True)


def test_a_cluster_takes_no_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="holds other files; choose an empty folder"):
        Cluster(tmp_path).start()
    assert (tmp_path / "thesis.txt").exists()
