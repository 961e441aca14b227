"""The checkpoints in a run folder. Imports no torch.

    checkpoints/
      latest                      the newest committed checkpoint's name
      step-00000200/
        checkpoint.json           format, step, samples, layout, settings, facts of the series
        .metadata                 the file and place of each chunk of each global tensor
        __0_0.distcp              rank 0's chunks of weights, exp_avg and exp_avg_sq
        manifest                  every other file's size and sha256

Readers trust a folder named step-XXXXXXXX that agrees with its manifest: a half-written one has
another name, and one that is no longer intact is quarantined as step-XXXXXXXX.damaged.
"""

from __future__ import annotations

import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field, FiniteFloat, TypeAdapter
from typing_extensions import TypedDict  # pydantic's wish before Python 3.12

from model.errors import UserError
from model.validation import check_content
from trainer.checkpoint.manifest import DESCRIPTION, verify
from trainer.files import read_json

FORMAT = 3
"""Version of the format, which checkpoint.json holds."""

LATEST = "latest"
"""Name of the file with the newest checkpoint's name."""

_NAME = re.compile(r"step-(\d{8,})", re.ASCII)

Count = Annotated[int, Field(strict=True, ge=0)]
"""A number of steps or samples."""


class SkippedStepsContent(TypedDict):
    """The record of skipped steps in checkpoint.json; see trainer/faults/skipped_steps.py."""

    skipped: NotRequired[Count]
    norms: NotRequired[list[FiniteFloat]]


class Description(TypedDict):
    """The content of checkpoint.json."""

    format: int
    step: Count
    samples: Count
    layout: dict[str, int]
    data: str
    settings: dict[str, Any]
    series: dict[str, Any]
    bad_steps: SkippedStepsContent


_DESCRIPTION = TypeAdapter(Description)


def name_of(step: int) -> str:
    """Return the name of the folder with the checkpoint of `step`."""
    return f"step-{step:08d}"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint."""

    path: Path

    def exists(self) -> bool:
        """Return whether the folder describes a checkpoint, intact or not."""
        return (self.path / DESCRIPTION).is_file()

    @property
    def step(self) -> int:
        """The number of steps that were made, by the folder's name."""
        match = _NAME.fullmatch(self.path.name)
        assert match is not None
        return int(match[1])

    def verify(self, *, contents: bool = True, reader: int = 0, readers: int = 1) -> str | None:
        """Return what is wrong with it, in words, or None if it is intact; see `manifest.verify`.

        The step that it describes must also be its folder's.
        """
        wrong = verify(self.path, contents=contents, reader=reader, readers=readers)
        if wrong is None and _NAME.fullmatch(self.path.name):
            try:
                step = self._content()["step"]
            except (OSError, ValueError, TypeError, KeyError) as error:
                return f"{DESCRIPTION}: {error}"
            if step != self.step:
                return f"it is of step {step}"
        return wrong

    def description(self) -> dict[str, Any]:
        """Return the content of checkpoint.json.

        Raises UserError where there is none, or one of something else than this version reads.
        """
        try:
            content = self._content()
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path} is no checkpoint: {DESCRIPTION}: {error}") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else None
            raise UserError(f"{self.path} has format {found}; this version reads {FORMAT}")
        where = f"{self.path} does not say what it holds: {DESCRIPTION}"
        check_content(_DESCRIPTION, content, where)
        return content

    def _content(self) -> Any:
        return read_json(self.path / DESCRIPTION)


class Store:
    """The checkpoints of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def committed(self) -> list[Checkpoint]:
        """Return the committed checkpoints, oldest first, intact or not."""
        folders = self.folder.iterdir() if self.folder.is_dir() else ()
        found = [
            Checkpoint(folder)
            for folder in folders
            if _NAME.fullmatch(folder.name) and folder.is_dir()
        ]
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def checkpoint(self, step: int) -> Checkpoint:
        """Return the checkpoint of `step`, whether it is there or not."""
        return Checkpoint(self.folder / name_of(step))

    def has(self, step: int) -> bool:
        """Return whether the checkpoint of `step` is committed."""
        return self.checkpoint(step).path.is_dir()

    def newest(self, *, contents: bool = False) -> Checkpoint | None:
        """Return the newest checkpoint that is intact by its files' sizes, or by `contents` too."""
        for checkpoint in reversed(self.committed()):
            if checkpoint.verify(contents=contents) is None:
                return checkpoint
        return None

    def verify(self) -> dict[Path, str]:
        """Return the checkpoints that are not intact by their files' sizes -> what is wrong."""
        wrong = {c.path: c.verify(contents=False) for c in self.committed()}
        return {path: why for path, why in wrong.items() if why is not None}

    def quarantine(self, path: Path) -> Path:
        """Rename a checkpoint so that readers ignore it; return its new path."""
        quarantined = path.with_name(f"{path.name}.damaged")
        if quarantined.is_dir():
            shutil.rmtree(quarantined)
        else:
            quarantined.unlink(missing_ok=True)
        return path.rename(quarantined)

    def retain(self, keep: int, keep_every: int, best: int | None = None) -> None:
        """Remove all checkpoints but the newest `keep` and those at multiples of `keep_every`.

        With `keep_every` 0 only the newest stay, and that of the step `best`. A folder that is not
        intact by its files' sizes is not among the newest: a good checkpoint is never removed for
        it.
        """
        older = self.committed()
        while keep and older:
            keep -= older.pop().verify(contents=False) is None
        for checkpoint in older:
            if checkpoint.step != best and (not keep_every or checkpoint.step % keep_every):
                self.remove(checkpoint.path)

    def remove(self, path: Path) -> None:
        """Remove a checkpoint, hidden first: a kill leaves no half of it that looks intact."""
        shutil.rmtree(self.hide(path))

    def hide(self, path: Path) -> Path:
        """Rename a checkpoint to a name that readers ignore; return its new path."""
        return path.rename(self._hidden(path.name))

    def begin(self, step: int) -> Path:
        """Make a new hidden folder in which to write a checkpoint before it is committed."""
        self.folder.mkdir(exist_ok=True)
        folder = self._hidden(name_of(step))
        folder.mkdir()
        return folder

    def _hidden(self, name: str) -> Path:
        return self.folder / f".{name}.{uuid.uuid4().hex}.partial"

    def remove_unfinished(self) -> list[str]:
        """Remove what a killed save has left, of the new checkpoint or of old ones.

        Returns a sentence about each folder that cannot be removed.
        """
        notes = []
        for folder in self.folder.glob(".step-*.partial"):
            try:
                shutil.rmtree(folder)
            except OSError as error:
                notes.append(f"{folder} cannot be removed: {error.strerror or error}")
        return notes
