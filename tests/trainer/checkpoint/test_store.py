"""Which folders are checkpoints, and which of them are kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from model.errors import UserError
from trainer.checkpoint.manifest import entry, write_manifest
from trainer.checkpoint.store import FORMAT, Checkpoint, Store, name_of


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
        _make(store, step)
    store.retain(2, 3)
    assert [c.step for c in store.committed()] == [3, 6, 8, 9]


def _make(store: Store, step: int) -> None:
    """Make the smallest checkpoint that is intact."""
    folder = store.folder / name_of(step)
    folder.mkdir()
    (folder / "checkpoint.json").write_text(json.dumps({"step": step}))
    write_manifest(folder, {"checkpoint.json": entry(folder / "checkpoint.json")})


@pytest.mark.parametrize("keep", [1, 2])
def test_no_good_checkpoint_goes_for_a_strange_folder(tmp_path: Path, keep: int) -> None:
    store = Store(tmp_path)
    for step in range(1, 5):
        _make(store, step)
    for name in ("step-99999999", "step-00000009"):
        (tmp_path / name).mkdir()
    store.retain(keep, 0)
    newest = store.newest()
    assert newest is not None and newest.step == 4
    assert [c.step for c in store.committed()] == [*range(5 - keep, 5), 9, 99999999]


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_is_set_aside_replaces_what_was_set_aside(tmp_path: Path, is_folder: bool) -> None:
    store, aside = Store(tmp_path), tmp_path / "step-00000001.damaged"
    aside.mkdir() if is_folder else aside.touch()
    _make(store, 1)
    assert store.quarantine(tmp_path / name_of(1)) == aside
    assert (aside / "checkpoint.json").is_file() and not store.committed()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bad_steps": "none"}, "bad_steps"),
        ({"bad_steps": {"skipped": "1"}}, r"bad_steps\.skipped: expected a whole number"),
        ({"bad_steps": {"skipped": -1}}, r"bad_steps\.skipped"),
        ({"bad_steps": {"norms": "high"}}, r"bad_steps\.norms: expected a list"),
        ({"bad_steps": {"norms": [1.0, "x"]}}, r"bad_steps\.norms"),
        ({"step": "4"}, "step: expected a whole number"),
        ({"samples": None}, "samples: expected a whole number"),
        ({"layout": [2]}, "layout: expected keys below it"),
    ],
)
def test_a_description_of_something_else_is_refused(
    tmp_path: Path, run_folder: Path, change: dict[str, Any], said: str
) -> None:
    folder = shutil.copytree(run_folder / "checkpoints" / "step-00000004", tmp_path / "c")
    file = folder / "checkpoint.json"
    Checkpoint(folder).description()
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=f"does not say what it holds: checkpoint.json: {said}"):
        Checkpoint(folder).description()


def test_a_description_that_is_nested_too_deeply_is_damage(tmp_path: Path) -> None:
    folder = tmp_path / name_of(1)
    folder.mkdir()
    (folder / "checkpoint.json").write_text("[" * 100_000)
    write_manifest(folder, {"checkpoint.json": entry(folder / "checkpoint.json")})
    assert Checkpoint(folder).verify() == "checkpoint.json: it is nested too deeply"
    with pytest.raises(UserError, match=r"is no checkpoint: checkpoint\.json: it is nested too"):
        Checkpoint(folder).description()
