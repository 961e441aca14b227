"""The run folder: what a run leaves behind, and whether a command may go on in it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from model.errors import UserError
from parallel.layout import Layout
from trainer.checkpoint.store import Checkpoint, Store
from trainer.config.load import Configuration, load
from trainer.files import replace

FREE_TO_CHANGE = ("parallel.", "checkpoint.", "logging.", "train.micro_batch_size", "train.steps")
"""Keys that a resumed run may change: they do not change what is computed in a step."""


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
        """Refuse a folder that cannot be written or that belongs to other settings."""
        if self.exists():
            if resume == "never":
                raise UserError(
                    f"{self.path} holds a run already; choose another --run-dir, or resume it"
                )
            self._check_same(configuration)
        elif self.path.exists() and not self.path.is_dir():
            raise UserError(f"--run-dir: {self.path} is a file; choose a folder")
        self._check_writable()

    def _check_same(self, configuration: Configuration) -> None:
        ours = flat(configuration.settings.model_dump())
        theirs = flat(self.configuration().settings.model_dump())
        different = [
            f"{key} is {theirs.get(key)!r} there and {ours.get(key)!r} here"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key) and not key.startswith(FREE_TO_CHANGE)
        ]
        if different:
            raise UserError(
                f"{self.path} holds a run of another configuration: {', '.join(different)}; "
                "choose another --run-dir"
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

    def resume_point(self, resume: str) -> Checkpoint | None:
        """The checkpoint to go on from: `auto`, `never`, or a checkpoint's path."""
        if resume == "never":
            return None
        if resume == "auto":
            return self.store.newest()
        path = Path(resume)
        checkpoints = Store(path.parent).committed() if path.is_dir() else []
        chosen = [c for c in checkpoints if c.path.name == path.name]
        if not chosen:
            raise UserError(f"--resume: {resume} is no checkpoint; they are called step-00000200")
        return chosen[0]

    def open(self, configuration: Configuration, layout: Layout, device: str) -> None:
        """Write what the run is, before its first step."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "checkpoints").mkdir(exist_ok=True)
        settings = configuration.settings.model_dump()
        replace(self.config_file, yaml.safe_dump(settings, sort_keys=False))
        replace(self.path / "environment.json", json.dumps(_environment(layout, device), indent=1))
        for marker in ("done", "saved"):
            (self.path / marker).unlink(missing_ok=True)

    def mark(self, marker: str, step: int) -> None:
        """`done` (finished) or `saved` (stopped by a signal, to be resumed)."""
        replace(self.path / marker, f"step {step}\n")


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def _environment(layout: Layout, device: str) -> dict[str, Any]:
    packages = ("forescale", "torch", "deepspeed", "numpy", "pandas", "pyarrow")
    return {
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in packages},
        "commit": _commit(),
        "layout": {"world": layout.world, "pipeline": layout.pipeline, "data": layout.data,
                   "tensor": layout.tensor, "expert": layout.expert},
        "device": device,
        "attention": "torch.nn.functional.scaled_dot_product_attention",
        "platform": platform.platform(),
        "processors": os.cpu_count(),
    }  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The project's commit, where it runs from a git checkout."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True,
            text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
