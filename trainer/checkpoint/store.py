"""Checkpoints in a run folder: which there are and what they are. Imports no torch.

    checkpoints/
      latest                      the newest committed checkpoint's name
      step-00000200/
        checkpoint.json           format, step, samples, layout
        .metadata                 where each part of each global tensor lies
        __0_0.distcp              what rank 0 held of weights, exp_avg and exp_avg_sq

A reader trusts a folder named step-XXXXXXXX: a half-written one has another name.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import UserError

FORMAT = 1

_NAME = re.compile(r"step-(\d{8,})")


def name_of(step: int) -> str:
    return f"step-{step:08d}"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint."""

    path: Path

    @property
    def step(self) -> int:
        match = _NAME.fullmatch(self.path.name)
        assert match is not None
        return int(match[1])

    def description(self) -> dict[str, Any]:
        """checkpoint.json."""
        try:
            text = (self.path / "checkpoint.json").read_text(encoding="utf-8")
            content = json.loads(text)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path} is no checkpoint: checkpoint.json: {error}") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else None
            raise UserError(f"{self.path} has format {found}; this version reads {FORMAT}")
        return content


class Store:
    """The checkpoints of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def committed(self) -> list[Checkpoint]:
        """Oldest first."""
        folders = self.folder.iterdir() if self.folder.is_dir() else ()
        found = [
            Checkpoint(folder)
            for folder in folders
            if _NAME.fullmatch(folder.name) and (folder / "checkpoint.json").is_file()
        ]
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def newest(self) -> Checkpoint | None:
        return next(reversed(self.committed()), None)

    def retain(self, keep: int) -> None:
        """Remove all but the newest `keep` checkpoints."""
        for checkpoint in self.committed()[:-keep]:
            shutil.rmtree(checkpoint.path)

    def unfinished(self, step: int) -> Path:
        """Where a checkpoint is written before it is committed."""
        return self.folder / f".{name_of(step)}.partial"

    def remove_unfinished(self) -> None:
        """What a killed save has left."""
        for folder in self.folder.glob(".step-*.partial"):
            shutil.rmtree(folder)
