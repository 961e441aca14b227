"""The GPU benchmarks are rehearsed on a CPU: a card's time is not for finding typing mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import PARTS
from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_each_part_leaves_its_numbers(tmp_path: Path, part: str) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--quick", "--part", part]
    ended = subprocess.run(
        [*command, "--out", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    record = json.loads((tmp_path / f"{part}.json").read_text())
    assert record["results"] and all(record["results"].values())
    assert part in ended.stdout


def test_without_a_gpu_full_sizes_are_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", "norms", "--out", tmp_path / "out"]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env={"PATH": "", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2 and "--quick" in ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_cpu_s_benchmarks_leave_one_file_of_tables(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--out", tmp_path / "measured.md"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    written = (tmp_path / "measured.md").read_text()
    for title in (
        "Dense stacks",
        "The engine beside",
        "Mixture of experts",
        "Saving and loading",
        "Windows",
        "Forecasts of a table",
    ):
        assert f"\n## {title}" in written
