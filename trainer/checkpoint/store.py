"""Checkpoints in a run folder: which there are and what they are. Imports no torch.

    checkpoints/
      latest                      the newest committed checkpoint's name
      step-00000200/
        checkpoint.json           format, step, samples, layout, settings, facts of the series
        .metadata                 where each part of each global tensor lies
        __0_0.distcp              what rank 0 held of weights, exp_avg and exp_avg_sq
        manifest                  every other file's size and sha256

A reader trusts a folder named step-XXXXXXXX whose manifest holds: a half-written one has another
name, and one that has been damaged since is put aside as step-XXXXXXXX.damaged.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic's wish before Python 3.12

from model.errors import UserError
from model.validation import check_content
from trainer.checkpoint.manifest import verify

FORMAT = 3

_NAME = re.compile(r"step-(\d{8,})")


class Description(TypedDict):
    """checkpoint.json."""

    format: int
    step: int
    samples: int
    layout: dict[str, int]
    data: str
    settings: dict[str, Any]
    series: dict[str, Any]
    bad_steps: dict[str, Any]


_DESCRIPTION = TypeAdapter(Description)


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

    def verify(self, *, contents: bool = True, reader: int = 0, readers: int = 1) -> str | None:
        """What is wrong with it, in words; None if it is whole. See `manifest.verify`."""
        wrong = verify(self.path, contents=contents, reader=reader, readers=readers)
        if wrong is None and _NAME.fullmatch(self.path.name):
            try:
                step = json.loads((self.path / "checkpoint.json").read_text(encoding="utf-8"))[
                    "step"
                ]
            except (OSError, ValueError, TypeError, KeyError) as error:
                return f"checkpoint.json: {error}"
            if step != self.step:
                return f"it is of step {step}"
        return wrong

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
        where = f"{self.path} does not say what it holds: checkpoint.json"
        check_content(_DESCRIPTION, content, where)
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
            if _NAME.fullmatch(folder.name) and folder.is_dir()
        ]
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def has(self, step: int) -> bool:
        return (self.folder / name_of(step)).is_dir()

    def newest(self, *, contents: bool = False) -> Checkpoint | None:
        """The newest that is whole by its files' sizes, or by their contents too."""
        for checkpoint in reversed(self.committed()):
            if checkpoint.verify(contents=contents) is None:
                return checkpoint
        return None

    def damaged(self) -> dict[Path, str]:
        """Those that are not whole by their files' sizes, and why."""
        wrong = {c.path: c.verify(contents=False) for c in self.committed()}
        return {path: why for path, why in wrong.items() if why is not None}

    def quarantine(self, path: Path) -> Path:
        """Out of the readers' way, for somebody to look at."""
        aside = path.with_name(f"{path.name}.damaged")
        if aside.exists():
            shutil.rmtree(aside)
        return path.rename(aside)

    def retain(self, keep: int, keep_every: int) -> None:
        """Remove all but the newest `keep` checkpoints and every one at a multiple of
        `keep_every` steps; 0 for none of these."""
        for checkpoint in self.committed()[:-keep]:
            if not keep_every or checkpoint.step % keep_every:
                self.remove(checkpoint.path)

    def remove(self, path: Path) -> None:
        """Out of the readers' sight at once: a kill leaves no half of it that looks whole."""
        shutil.rmtree(self.hide(path))

    def hide(self, path: Path) -> Path:
        """Under a name that no reader looks at."""
        return path.rename(self._hidden(path.name))

    def begin(self, step: int) -> Path:
        """A folder to write a checkpoint in before it is committed; no other process has it."""
        self.folder.mkdir(exist_ok=True)
        beside = self._hidden(name_of(step))
        beside.mkdir()
        return beside

    def _hidden(self, name: str) -> Path:
        return self.folder / f".{name}.{uuid.uuid4().hex}.partial"

    def remove_unfinished(self) -> list[str]:
        """What a killed save has left, of the new checkpoint or of old ones; what cannot be
        removed is told."""
        return [
            f"{folder} cannot be removed: {error}"
            for folder in self.folder.glob(".step-*.partial")
            for error in _removed(folder)
        ]


def _removed(folder: Path) -> Iterator[str]:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        yield error.strerror or str(error)
