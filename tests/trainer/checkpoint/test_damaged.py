"""Damage to any file of a checkpoint is noticed, and the checkpoint before it used."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from model.errors import UserError
from tests import ranks
from tests.settings import planned, train_rank
from tests.trainer.checkpoint.conftest import SETTINGS
from tests.trainer.checkpoint.damage import FILES, cut_short, flip
from trainer.checkpoint.manifest import verify
from trainer.checkpoint.store import Store
from trainer.logs.metrics import read_metrics


@pytest.mark.parametrize("harm", [flip, cut_short, Path.unlink, lambda file: file.write_text("")])
@pytest.mark.parametrize("name", FILES)
def test_harm_to_any_file_is_seen_and_the_one_before_is_used(
    tmp_path: Path, run_folder: Path, name: str, harm: Any
) -> None:
    folder = shutil.copytree(run_folder / "checkpoints", tmp_path / "checkpoints")
    store = Store(folder)
    assert sorted(f.name for f in (folder / "step-00000004").iterdir()) == sorted(FILES)
    newest = store.newest(contents=True)
    assert newest is not None and newest.step == 4
    harm(folder / "step-00000004" / name)
    assert verify(folder / "step-00000004") is not None
    before = store.newest(contents=True)
    assert before is not None and before.step == 3


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        *((name, flip) for name in FILES),
        ("__1_0.distcp", cut_short),
        (".metadata", Path.unlink),
        ("checkpoint.json", lambda file: file.write_text(file.read_text().replace("2", "9", 1))),
    ],
)
def test_a_run_goes_on_from_the_one_before_a_damaged_one(
    tmp_path: Path, run_folder: Path, name: str, harm: Any
) -> None:
    """The end is bit for bit what it was, on the same layout."""
    run = shutil.copytree(run_folder, tmp_path / "run")
    whole = read_metrics(run / "metrics.jsonl")
    (run / "done").unlink()
    harm(run / "checkpoints" / "step-00000004" / name)
    ranks.run(train_rank, 2, run, SETTINGS)
    again = read_metrics(run / "metrics.jsonl")
    for ours, theirs in zip(again, whole, strict=True):
        assert (ours["step"], ours["loss"], ours["grad_norm"]) == (
            theirs["step"],
            theirs["loss"],
            theirs["grad_norm"],
        )
    assert verify(run / "checkpoints" / "step-00000004.damaged") is not None
    assert verify(run / "checkpoints" / "step-00000004") is None


def test_with_no_whole_checkpoint_left_a_run_does_not_start_over(
    tmp_path: Path, run_folder: Path
) -> None:
    run = shutil.copytree(run_folder, tmp_path / "run")
    (run / "done").unlink()
    for folder in (run / "checkpoints").glob("step-*"):
        (folder / "manifest").unlink()
    with pytest.raises(UserError, match="has no whole checkpoint left: step-"):
        planned(run, SETTINGS, 2)


def test_the_last_checkpoint_s_damage_is_said_once_with_a_way_out(
    tmp_path: Path, run_folder: Path
) -> None:
    run = shutil.copytree(run_folder, tmp_path / "run")
    (run / "done").unlink()
    newest, *others = sorted((run / "checkpoints").glob("step-*"), reverse=True)
    for folder in others:
        shutil.rmtree(folder)
    flip(newest / "__1_0.distcp")
    with pytest.raises(ranks.RanksFailedError) as failed:
        ranks.run(train_rank, 2, run, SETTINGS)
    said = str(failed.value)
    assert f"it is now {newest.name}.damaged, and there is no whole one before it; restore" in said
    assert "is used" not in said
