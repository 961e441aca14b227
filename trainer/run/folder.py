"""The run folder: what a run leaves behind, and whether a command may go on in it."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from model.errors import UserError
from parallel.layout import Layout
from trainer.checkpoint.store import Store
from trainer.config.load import Configuration, flat, load
from trainer.files import replace, sync
from trainer.logs.log import log
from trainer.run.environment import environment

FREE_TO_CHANGE = (
    "parallel.",
    "checkpoint.",
    "logging.",
    "faults.",
    "train.micro_batch_size",
    "train.steps",
)
"""Keys that a resumed run may change. Most leave every step's result as it is; train.steps moves
the end of the learning rate's cosine, and faults says which steps are skipped."""


BEFORE = ("failures", "save", "stop")
"""Files that others write into a run folder, perhaps before the run does."""


@dataclass(frozen=True)
class RunFolder:
    """`runs/<name>`: config.yaml, environment.json, metrics.jsonl, tensorboard/, checkpoints/,
    forecast.png, evaluation.json, and `done` or `saved`."""

    path: Path

    @property
    def store(self) -> Store:
        return Store(self.path / "checkpoints")

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    def exists(self) -> bool:
        return self.config_file.is_file()

    def is_done(self) -> bool:
        return (self.path / "done").exists()

    def configuration(self) -> Configuration:
        if not self.exists():
            raise UserError(f"{self.path} is no run folder: it has no config.yaml")
        return load(self.config_file)

    def check(self, configuration: Configuration, resume: str) -> None:
        """Refuse a folder that cannot be written or that belongs to something else."""
        if self.exists():
            if resume == "never":
                raise UserError(
                    f"{self.path} holds a run already; choose another --run-dir, or resume it"
                )
            stored = self.configuration().settings.model_dump()
            check_same(configuration, stored, f"{self.path} holds a run of another configuration")
        elif self.path.exists() and not self.path.is_dir():
            raise UserError(f"--run-dir: {self.path} is a file; choose a folder")
        elif self.path.is_dir() and self._foreign():
            raise UserError(f"--run-dir: {self.path} holds other files; choose an empty folder")
        self._check_writable()

    def _foreign(self) -> bool:
        """Whether there is more than what may lie there before a run's first start."""
        return any(
            file.name not in BEFORE and not file.name.startswith(".")
            for file in self.path.iterdir()
        )

    def _check_writable(self) -> None:
        """Try where the first folder would be made; nothing is left behind."""
        existing = self.path
        while not existing.exists():
            existing = existing.parent
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise UserError(
                f"--run-dir: cannot write in {existing}: {error.strerror}; choose another folder"
            ) from None

    def open(self, configuration: Configuration, layout: Layout, device: str) -> None:
        """Write what the run is, before its first step."""
        settings = configuration.settings.model_dump()
        replace(self.config_file, yaml.safe_dump(settings, sort_keys=False))
        replace(self.path / "environment.json", json.dumps(environment(layout, device), indent=1))
        self.store.folder.mkdir(exist_ok=True)
        sync(self.path)
        sync(self.path.parent)
        for note in self.store.remove_unfinished():
            log.warning(note)
        for path, why in self.store.damaged().items():
            aside = self.store.quarantine(path)
            log.warning("%s is damaged: %s; it is now %s", path, why, aside.name)
        for marker in ("done", "saved"):
            (self.path / marker).unlink(missing_ok=True)

    def record(self, **facts: Any) -> None:
        """Add what became known in the first step to environment.json."""
        file = self.path / "environment.json"
        known = json.loads(file.read_text(encoding="utf-8"))
        replace(file, json.dumps({**known, **facts}, indent=1))

    def mark(self, marker: str, step: int) -> None:
        """`done` (finished) or `saved` (stopped by a signal, to be resumed)."""
        replace(self.path / marker, f"step {step}\n")


def check_same(configuration: Configuration, stored: dict[str, Any], what: str) -> None:
    """Refuse `stored` settings that would compute something else, naming each key."""
    ours, theirs = flat(configuration.settings.model_dump()), flat(stored)
    different = [
        f"{key} is {theirs.get(key)!r} there and {ours.get(key)!r} here"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key) and not key.startswith(FREE_TO_CHANGE)
    ]
    if different:
        raise UserError(f"{what}: {', '.join(different)}; choose another --run-dir")
