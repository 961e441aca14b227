"""The run folder: the files of a run, and the check whether a command may continue in it."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from model.errors import UserError
from parallel.layout import Layout
from trainer.checkpoint.store import LATEST, Store
from trainer.config.load import Configuration, flat, load
from trainer.config.settings import Settings
from trainer.files import nearest_existing, read_json, replace, sync
from trainer.logs.log import log
from trainer.logs.metrics import read_metrics
from trainer.run.best import Best
from trainer.run.environment import environment

FREE_TO_CHANGE = (
    "parallel.",
    "checkpoint.",
    "logging.",
    "faults.",
    "data.prefetch_steps",
    "data.score_every",
    "data.validate_on",
    "train.device",
    "train.micro_batch_size",
    "train.patience",
    "train.steps",
)
"""Keys that a resumed run may change. Most leave every step's result as it is; train.steps moves
the end of the learning rate's cosine, and faults says which steps are skipped."""

DONE_MARKER, SAVED_MARKER = "done", "saved"
"""Names of the file that says how a run ended: finished, or stopped by a signal, to be resumed."""

SAVE, STOP = "save", "stop"
"""Names of the control files."""

HANG = "hang"
"""Name of the folder with the watchdog's report."""

WRITTEN_EARLY = ("failures", SAVE, STOP, HANG)
"""Names of what may be in a run folder before the run has begun there: others have written it, or
a start that hung."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, `runs/<name>`, and the names of the files in it."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The settings, as resolved."""
        return self.path / "config.yaml"

    @property
    def environment_file(self) -> Path:
        """Versions, commit and layout, and what becomes known in the run."""
        return self.path / "environment.json"

    @property
    def metrics_file(self) -> Path:
        """A line for each optimizer step."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard_folder(self) -> Path:
        """The metrics as TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def profile_folder(self) -> Path:
        """Traces of profiled steps."""
        return self.path / "profile"

    @property
    def store(self) -> Store:
        """The checkpoints."""
        return Store(self.path / "checkpoints")

    @property
    def evaluation_file(self) -> Path:
        """The scores on the test windows."""
        return self.path / "evaluation.json"

    @property
    def picture_file(self) -> Path:
        """A picture of some forecasts of test windows."""
        return self.path / "forecast.png"

    @property
    def hang_folder(self) -> Path:
        """The report about a run that hung, with the stacks and collectives of its ranks."""
        return self.path / HANG

    @property
    def save_file(self) -> Path:
        """The control file that requests a checkpoint."""
        return self.path / SAVE

    @property
    def stop_file(self) -> Path:
        """The control file that requests a stop."""
        return self.path / STOP

    def exists(self) -> bool:
        """Return whether a run has begun in the folder."""
        return self.config_file.is_file()

    def is_saved(self) -> bool:
        """Return whether the last attempt has saved and stopped before the end."""
        return (self.path / SAVED_MARKER).is_file()

    def is_done(self) -> bool:
        """Return whether the run has finished."""
        return (self.path / DONE_MARKER).exists()

    def configuration(self) -> Configuration:
        """Return the run's configuration. Raises UserError where there is no run."""
        if not self.exists():
            raise UserError(f"{self.path} is no run folder: it has no {self.config_file.name}")
        return load(self.config_file)

    def had_checkpoints(self, *, by_rows: bool = True) -> str | None:
        """Return what shows that the run has had checkpoints, in words; None where nothing does.

        With `by_rows` that may be rows of metrics.jsonl: a run that has gone on for twice the steps
        between checkpoints has committed the first one, unless it could not be written.
        """
        for name in (DONE_MARKER, SAVED_MARKER):
            if (self.path / name).exists():
                return f"{name} is there"
        folder = self.store.folder
        with suppress(OSError):
            damaged = sorted(path.name for path in folder.iterdir() if path.suffix == ".damaged")
            if damaged:
                return f"{folder.name}/{damaged[-1]} is there"
            if (folder / LATEST).exists():
                return f"{folder.name}/{LATEST} is there"
        if not by_rows:
            return None
        steps = max((row["step"] for row in read_metrics(self.metrics_file)), default=0)
        many = steps > 2 * self.configuration().settings.checkpoint.every
        return f"{self.metrics_file.name} has {steps} steps" if many else None

    def scores(self) -> dict[int, float]:
        """Return step -> score of the validations by which the run chooses its best checkpoint.

        There are none where it keeps the newest ones alone. Raises UserError where its
        configuration cannot be read.
        """
        score = self.configuration().settings.checkpoint.best
        return Best(score, rows=read_metrics(self.metrics_file)).scores if score else {}

    def first_step(self) -> int | None:
        """Return the first step that has a row in metrics.jsonl; None where there is no row."""
        return min((row["step"] for row in read_metrics(self.metrics_file)), default=None)

    def check(self, configuration: Configuration, resume: str) -> None:
        """Raise UserError for a folder that cannot be written or belongs to something else."""
        self._check_kinds()
        if self.exists():
            if resume == "never":
                raise UserError(
                    f"{self.path} holds a run already; choose another --run-dir, or resume it"
                )
            stored = self.configuration().settings.model_dump()
            check_same(configuration, stored, f"{self.path} holds a run of another configuration")
        elif self.path.exists() and not self.path.is_dir():
            raise UserError(f"--run-dir: {self.path} is a file; choose a folder")
        elif self.path.is_dir() and self._has_foreign_files():
            raise UserError(f"--run-dir: {self.path} holds other files; choose an empty folder")
        self._check_writable()

    def _check_kinds(self) -> None:
        """Raise UserError where there is a folder in a file's place, or a file in a folder's."""
        files = (
            self.config_file,
            self.environment_file,
            self.metrics_file,
            self.evaluation_file,
            self.picture_file,
            self.path / DONE_MARKER,
            self.path / SAVED_MARKER,
        )
        for path in (*files, self.store.folder, self.tensorboard_folder):
            if path.exists() and path.is_dir() == (path in files):
                is_, has = ("folder", "file") if path in files else ("file", "folder")
                raise UserError(f"{path} is a {is_}, where a run has a {has}; move it elsewhere")

    def _has_foreign_files(self) -> bool:
        """Return whether there are more files than may be there before a run's first start."""
        names = [file.name for file in self.path.iterdir()]
        return any(name not in WRITTEN_EARLY and not name.startswith(".") for name in names)

    def _check_writable(self) -> None:
        """Raise UserError where no file can be made, trying one that leaves nothing behind."""
        existing = nearest_existing(self.path)
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise UserError(
                f"--run-dir: cannot write in {existing}: {error.strerror}; choose another folder"
            ) from None

    def open(self, configuration: Configuration, layout: Layout, device: str) -> None:
        """Prepare the folder for the first step.

        Write settings and environment, quarantine checkpoints that are not intact, and remove what
        an earlier start left unfinished and its marker.
        """
        settings = configuration.settings.model_dump()
        replace(self.config_file, yaml.safe_dump(settings, sort_keys=False))
        replace(self.environment_file, json.dumps(environment(layout, device), indent=1))
        self.store.folder.mkdir(exist_ok=True)
        sync(self.path)
        sync(self.path.parent)
        for note in self.store.remove_unfinished():
            log.warning(note)
        for path, why in self.store.verify().items():
            quarantined = self.store.quarantine(path)
            log.warning("%s is damaged: %s; it is now %s", path, why, quarantined.name)
        for marker in (DONE_MARKER, SAVED_MARKER):
            (self.path / marker).unlink(missing_ok=True)

    def record(self, **entries: Any) -> None:
        """Add entries to environment.json, which is begun anew where it has been spoiled."""
        try:
            known = {**read_json(self.environment_file)}
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s cannot be read, and begins anew: %s", self.environment_file, error)
            known = {}
        replace(self.environment_file, json.dumps({**known, **entries}, indent=1))

    def way_on(self) -> str:
        """Return how a run that was stopped goes on, in words."""
        if self.stop_file.exists():
            return f"it stands still until {self.stop_file} is removed"
        return "the same command goes on from there"

    def mark(self, marker: str, step: int) -> None:
        """Write DONE_MARKER or SAVED_MARKER, with the last step."""
        replace(self.path / marker, f"step {step}\n")


def check_same(configuration: Configuration, stored: dict[str, Any], what: str) -> None:
    """Raise UserError naming the keys in which `stored` settings would compute something else.

    `what` begins the sentence. Keys that the version before had not are at their defaults, by which
    everything is as it was. Where the series lie may change: a checkpoint knows them by their
    digest.
    """
    ours = _without_paths(flat(configuration.settings.model_dump()))
    theirs = _without_paths(flat(Settings().model_dump()) | flat(stored))
    different = [
        f"{key} is {theirs.get(key)!r} there and {ours.get(key)!r} here"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key) and not key.startswith(FREE_TO_CHANGE)
    ]
    if different:
        raise UserError(f"{what}: {', '.join(different)}; choose another --run-dir")


def _without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings by key without the paths of data.source."""
    source = settings["data.source"]
    kept = None
    if isinstance(source, list):
        kept = [{key: value for key, value in one.items() if key != "path"} for one in source]
    return settings | {"data.source": kept}
