"""A file that a command cannot write is one line with exit code 2, and nothing is left of it."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.launch.test_prepare import _limit_files
from tests.trainer.forecast.test_future import MANY, shops, trained
from trainer.config.table_settings import TableConfig
from trainer.data.prepare_set import prepare_set


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, the set of it, and a run that was trained on the set."""
    folder = tmp_path_factory.mktemp("full")
    shops(a=200, bb=150).to_csv(folder / "shops.csv", index=False)
    prepare_set([str(folder / "shops.csv")], folder / "set", TableConfig(id_column="shop"))
    changes = {**MANY, "data.source": str(folder / "set"), "data.split": [0.7, 0.1, 0.2]}
    trained(folder, changes)
    return folder


def ended(
    folder: Path, arguments: list[str], limit: int | None
) -> subprocess.CompletedProcess[str]:
    """Run a command whose files can have at most `limit` bytes, as on a disk that is full then."""
    return subprocess.run(
        [sys.executable, "-m", "launch", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=None if limit is None else partial(_limit_files, limit),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "name", "limit"),
    [
        (["init", "shops.csv", "out.yaml"], "out.yaml", 100),
        (["forecast", "run", "--input", "set", "--output", "out.csv"], "out.csv", 100),
        (["forecast", "run", "--input", "set", "--output", "out.parquet"], "out.parquet", 100),
        (
            ["forecast", "run", "--input", "set", "--output", "fits.csv", "--plot", "out.png"],
            "out.png",
            20_000,
        ),
        (["evaluate", "run", "--report", "out.html"], "out.html", 1000),
        (["export", "run", "out.pt2"], "out.pt2", 1000),
        (["export", "run", "out"], "out", 1000),
        (["show", "set", "--picture", "out.png"], "out.png", 1000),
    ],
)
def test_a_full_disk_is_said_and_leaves_nothing(
    folder: Path, arguments: list[str], name: str, limit: int
) -> None:
    if arguments[0] == "init":  # what it prepares stays for the next time
        assert ended(folder, ["init", "shops.csv", "first.yaml"], None).returncode == 0
    before = sorted(path.name for path in folder.iterdir())
    stopped = ended(folder, arguments, limit)
    assert stopped.returncode == 2, stopped.stderr
    (line,) = [one for one in stopped.stderr.splitlines() if one.startswith("forescale: ")]
    assert name in line and "File too large" in line
    assert "Traceback" not in stopped.stderr
    (folder / "fits.csv").unlink(missing_ok=True)
    assert sorted(path.name for path in folder.iterdir()) == before
