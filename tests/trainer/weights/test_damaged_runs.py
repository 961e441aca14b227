"""Whatever takes weights from a run takes its newest intact checkpoint, and says which."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.cli import main
from model.errors import UserError
from tests import ranks
from tests.settings import words_of
from tests.trainer.checkpoint.damage import cut_short, flip
from tests.trainer.weights.conftest import SETTINGS
from trainer.forecast.forecaster import Forecaster
from trainer.weights.export import export
from trainer.weights.export_format import Export
from trainer.weights.source import find

Harm = Callable[[Path], None]


def damaged(run: Path, folder: Path, harm: Harm, *steps: int) -> Path:
    """Return a copy of a run with one file of some checkpoints harmed."""
    copy = shutil.copytree(run, folder)
    for step in steps:
        harm(copy / "checkpoints" / f"step-{step:08d}" / "__1_0.distcp")
    return copy


@pytest.mark.parametrize("harm", [flip, cut_short, Path.unlink])
def test_the_one_before_a_damaged_newest_is_used_and_named(
    run: Path, tmp_path: Path, harm: Harm, caplog: pytest.LogCaptureFixture
) -> None:
    copy = damaged(run, tmp_path / "run", harm, 3)
    with caplog.at_level(logging.WARNING, "forescale"):
        assert Forecaster.load(copy).step == 2
        loaded = [record.getMessage() for record in caplog.records]
        caplog.clear()
        export(find(copy), tmp_path / "out")
        exported = [record.getMessage() for record in caplog.records]
    assert Export(tmp_path / "out").description()["step"] == 2
    [sentence] = loaded
    assert sentence.startswith(f"{copy}/checkpoints/step-00000003 is damaged: __1_0.distcp")
    assert sentence.endswith("; step-00000002 is used")
    assert exported == loaded
    with pytest.raises(UserError, match="step-00000003 is damaged: __1_0"):
        export(find(copy / "checkpoints" / "step-00000003"), tmp_path / "other")


@pytest.mark.parametrize("harm", [flip, cut_short])
@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_where_all_are_damaged_that_is_what_is_said(
    run: Path, tmp_path: Path, harm: Harm, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = damaged(run, tmp_path / "run", harm, 2, 3)
    with pytest.raises(SystemExit) as ended:
        main([command, str(copy), *([str(tmp_path / "out")] if command == "export" else [])])
    assert ended.value.code == 2 and not (tmp_path / "out").exists()
    said = capsys.readouterr().err
    assert f"forescale: {copy} has no whole checkpoint left: step-0000000" in said
    assert "__1_0.distcp" in said and said.endswith("; restore one\n")


def test_a_run_without_checkpoints_was_trained_or_was_not(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match=r"has no checkpoint any more \(done is there\); restore"):
        find(copy)
    for name in ("done", "metrics.jsonl"):
        (copy / name).unlink()
    with pytest.raises(UserError, match="has no checkpoint yet; train it first"):
        find(copy)


@pytest.mark.parametrize("harm", [flip, cut_short])
def test_a_run_begins_with_the_weights_before_damaged_ones(
    run: Path, tmp_path: Path, harm: Harm
) -> None:
    copy = damaged(run, tmp_path / "run", harm, 3)
    changes = {**SETTINGS, "train.steps": 1, "model.init_from": str(copy)}
    [said, _] = ranks.run(words_of, 2, tmp_path / "new", changes)
    assert "model.init_from: " in said and "; step-00000002 is used" in said
    assert f"tensors taken over from {copy}/checkpoints/step-00000002" in said


def test_a_run_begins_with_no_damaged_weights(run: Path, tmp_path: Path) -> None:
    copy = damaged(run, tmp_path / "run", flip, 2, 3)
    changes = {**SETTINGS, "model.init_from": str(copy)}
    with pytest.raises(ranks.RanksFailedError, match=r"init_from: .* has no whole checkpoint left"):
        ranks.run(words_of, 1, tmp_path / "new", changes)
    assert not (tmp_path / "new" / "config.yaml").exists()
