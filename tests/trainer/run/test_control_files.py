"""Files that somebody puts into a run folder ask for a checkpoint or for the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.errors import UserError
from tests import ranks
from tests.settings import UNSCORED, planned, train_plan, train_rank
from trainer.run.folder import RunFolder


def _train_and_touch(
    rank: int, world: int, run: Path, overrides: dict[str, Any], at: int, file: str
) -> str:
    """Train; the file appears in step `at`."""
    import trainer.run.control_files

    trainer.run.control_files.READ_INTERVAL = 0.0

    def on_step(step: int) -> None:
        if step == at and rank == 0:
            (run / file).touch()

    return train_plan(planned(run, overrides, world), rank, on_step=on_step)


@pytest.mark.parametrize("switch", ["stop", "save"])
def test_files_in_the_run_folder_ask_for_a_stop_or_a_save(tmp_path: Path, switch: str) -> None:
    run = tmp_path / "run"
    outcome = ranks.run(_train_and_touch, 2, run, {**UNSCORED, "parallel.pipeline": 2}, 3, switch)
    steps = [c.step for c in RunFolder(run).store.committed()]
    if switch == "save":
        assert outcome == ["done", "done"] and steps == [3, 8] and not (run / "save").exists()
        return
    assert outcome == ["saved", "saved"] and steps == [3]
    with pytest.raises(UserError, match="asks this run to stand still; remove it to go on"):
        planned(run, {**UNSCORED, "parallel.pipeline": 2}, 2)
    (run / "stop").unlink()
    rows = ranks.run(train_rank, 2, run, {**UNSCORED, "parallel.pipeline": 2})[0]
    assert [row["step"] for row in rows] == list(range(1, 9))


def test_a_stopped_run_says_how_it_goes_on(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.way_on() == "the same command goes on from there"
    run.stop_file.touch()
    assert run.way_on() == f"it stands still until {run.stop_file} is removed"
