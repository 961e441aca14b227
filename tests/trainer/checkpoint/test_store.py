"""Which folders are checkpoints, and which of them are kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from model.errors import UserError
from trainer.checkpoint.store import FORMAT, Checkpoint, Store


def test_the_newest_are_kept_and_latest_names_the_last(run_folder: Path) -> None:
    store = Store(run_folder / "checkpoints")
    assert [checkpoint.step for checkpoint in store.committed()] == [3, 4]
    assert (store.folder / "latest").read_text() == "step-00000004"
    assert not list(store.folder.glob(".*"))


def test_what_is_half_written_is_no_checkpoint(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / ".step-00000009.partial").mkdir()
    (tmp_path / ".step-00000009.partial" / "checkpoint.json").write_text("{}")
    (tmp_path / "step-00000008").mkdir()
    assert store.newest() is None
    assert list(store.verify()) == [tmp_path / "step-00000008"]


def test_a_future_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match=f"has format 99; this version reads {FORMAT}"):
        Checkpoint(tmp_path).description()


def test_a_copy_under_another_name_is_of_another_step(tmp_path: Path, run_folder: Path) -> None:
    folder = tmp_path / "step-00000099"
    shutil.copytree(run_folder / "checkpoints" / "step-00000004", folder)
    assert Checkpoint(folder).verify() == "it is of step 4"


def test_every_so_many_steps_one_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for step in range(1, 10):
        (tmp_path / f"step-{step:08d}").mkdir()
    store.retain(2, 3)
    assert [c.step for c in store.committed()] == [3, 6, 8, 9]
