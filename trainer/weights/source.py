"""Sources of trained weights: a run folder, a checkpoint or an export.

Finding and describing one imports no torch; reading it does.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from model.errors import UserError
from model.validation import mistake
from trainer.checkpoint.store import Checkpoint
from trainer.config.settings import Settings
from trainer.data.series_facts import SeriesFacts
from trainer.files import check_reachable
from trainer.run.folder import RunFolder
from trainer.weights.export_folder import Export

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.checkpoint.tensor_files import Shapes


@dataclass(frozen=True)
class WeightsSource(ABC):
    """A folder with weights, and a description of their network."""

    path: Path
    step: int
    """Optimizer steps that the weights were trained for."""
    settings: Settings
    """Settings of the run that trained them."""
    facts: SeriesFacts
    """Facts about the series that they were trained on."""

    @abstractmethod
    def shapes(self) -> Shapes:
        """Return the shapes of `weights/name` and `buffers/name`, among others, by key."""

    @abstractmethod
    def read(self, state: Mapping[str, Tensor]) -> None:
        """Fill tensors or partitions in place, by this process alone."""

    @abstractmethod
    def verify(self, reader: int = 0, readers: int = 1) -> str | None:
        """Return what is wrong with a file, in words, or None if they are intact.

        It reads every `readers`-th file, from `reader` on: ranks share the reading.
        """


class CheckpointSource(WeightsSource):
    """A checkpoint's weights."""

    def shapes(self) -> Shapes:
        from trainer.checkpoint.tensor_files import tensor_shapes

        return tensor_shapes(self.path)

    def read(self, state: Mapping[str, Tensor]) -> None:
        from trainer.checkpoint.tensor_files import read

        read(self.path, state, alone=True)

    def verify(self, reader: int = 0, readers: int = 1) -> str | None:
        return Checkpoint(self.path).verify(reader=reader, readers=readers)


class ExportSource(WeightsSource):
    """An export's weights."""

    def shapes(self) -> Shapes:
        return Export(self.path).shapes()

    def read(self, state: Mapping[str, Tensor]) -> None:
        Export(self.path).read(state)

    def verify(self, reader: int = 0, readers: int = 1) -> str | None:
        return Export(self.path).verify(reader, readers)


def find(path: Path) -> WeightsSource:
    """Return the weights in `path`; of a run folder, those of its newest checkpoint.

    That is the newest one that is intact by its files' sizes. Raises UserError where there are no
    weights.
    """
    check_reachable(path)
    if RunFolder(path).exists():
        newest = RunFolder(path).store.newest()
        if newest is None:
            raise UserError(f"{path} has no checkpoint yet; train it first")
        return _of_checkpoint(newest)
    if Checkpoint(path).exists():
        return _of_checkpoint(Checkpoint(path))
    if Export(path).exists():
        return ExportSource(path, *_parse(path, Export(path).description()))
    raise UserError(f"{path} is neither a run folder nor a checkpoint nor an export")


def _of_checkpoint(checkpoint: Checkpoint) -> WeightsSource:
    return CheckpointSource(checkpoint.path, *_parse(checkpoint.path, checkpoint.description()))


def _parse(path: Path, content: dict[str, Any]) -> tuple[int, Settings, SeriesFacts]:
    """Return step, settings and facts of a description. Raises UserError."""
    try:
        settings = Settings.model_validate_json(json.dumps(content["settings"]))
        return content["step"], settings, SeriesFacts.of(content["series"])
    except ValidationError as error:
        keys, sentence = mistake(error)
        raise UserError(
            f"{path}: what it says of {'.'.join(keys)} cannot be read here: "
            f"{sentence or 'unknown key'}; use the version that wrote it"
        ) from None
