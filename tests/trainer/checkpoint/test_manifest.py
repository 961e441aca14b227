"""A manifest holds what a checkpoint's files must be."""

from __future__ import annotations

import json
import os
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from trainer.checkpoint.manifest import verify


def test_a_strange_file_is_nobodys_concern(tmp_path: Path, run_folder: Path) -> None:
    folder = shutil.copytree(run_folder / "checkpoints" / "step-00000004", tmp_path / "c")
    (folder / ".DS_Store").write_text("")
    assert verify(folder) is None


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "{}",
        '{"a": 5}',
        '{"a": [1e999, "y"]}',
        '{"../x": [1, "y"]}',
        '{"..": [1, "y"]}',
        '{".": [1, "y"]}',
        '{"": [1, "y"]}',
        '{"/etc/passwd": [1, "y"]}',
        '{"a\\u0000b": [1, "y"]}',
    ],
)
def test_a_manifest_of_something_else_is_damage(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest").write_text(f"{sha256(text.encode()).hexdigest()}\n{text}")
    assert (verify(tmp_path) or "").startswith("manifest: the manifest ")


def test_a_file_that_cannot_be_read_is_damage(tmp_path: Path, run_folder: Path) -> None:
    folder = shutil.copytree(run_folder / "checkpoints" / "step-00000004", tmp_path / "c")
    (folder / "__0_0.distcp").unlink()
    (folder / "__0_0.distcp").symlink_to(tmp_path / "nowhere")
    assert verify(folder) == "__0_0.distcp: No such file or directory"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"\\ud800": [1, "y"]}', '{"a": ["x", "y"]}'])
def test_a_manifest_that_nobody_can_read_is_damage(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest").write_text(f"{sha256(text.encode()).hexdigest()}\n{text}")
    assert verify(tmp_path) is not None


def test_what_is_no_file_is_damage(tmp_path: Path) -> None:
    """A pipe is not read: that would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    text = json.dumps({"pipe": [0, "y"]})
    (tmp_path / "manifest").write_text(f"{sha256(text.encode()).hexdigest()}\n{text}")
    assert verify(tmp_path) == "pipe is no file"
