"""The Python of docs/how-to.md runs as it is printed."""

from __future__ import annotations

from pathlib import Path

import pytest

import forescale
from tests.conftest import ROOT
from tests.documentation import blocks
from tests.settings import TINY

PYTHON = [block.text for block in blocks(ROOT / "docs" / "how-to.md") if block.language == "python"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run of two steps in runs/tiny."""
    folder = tmp_path_factory.mktemp("how-to")
    (folder / "runs").mkdir()
    settings = {"train.steps": 2, "data.rows": 800, "logging.tensorboard": False}
    forescale.train(TINY, run_dir=folder / "runs" / "tiny", **settings)
    return folder


def test_there_are_blocks() -> None:
    assert len(PYTHON) >= 2


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_a_block_runs(
    number: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    exec(compile(PYTHON[number], f"block {number}", "exec"), {})
    assert capsys.readouterr().out
