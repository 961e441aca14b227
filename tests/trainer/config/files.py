"""Configuration files of a few lines, and the sentences about mistakes in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.errors import UserError
from trainer.config import load


def written(tmp_path: Path, text: str) -> Path:
    """Return a file with a text."""
    file = tmp_path / "my.yaml"
    file.write_text(text)
    return file


def mistake(tmp_path: Path, text: str) -> str:
    """Return the one line that a file with a text is refused with."""
    with pytest.raises(UserError) as caught:
        load(written(tmp_path, text))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{tmp_path}/")
