"""Trained weights, wherever they lie: in a run folder, a checkpoint or an export.

Finding and describing them imports no torch; reading them does.
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
from trainer.data.facts import SeriesFacts
from trainer.run.folder import RunFolder
from trainer.weights.export_folder import Export

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.checkpoint.storage import Shapes


@dataclass(frozen=True)
class WeightsSource(ABC):
    """Weights, and what they are weights of."""

    path: Path
    step: int
    settings: Settings
    facts: SeriesFacts

    @abstractmethod
    def shapes(self) -> Shapes:
        """Of `weights/name` and `buffers/name`, among others."""

    @abstractmethod
    def read(self, state: Mapping[str, Tensor]) -> None:
        """Fill tensors or fragments, by this process alone."""

    @abstractmethod
    def verify(self, reader: int = 0, readers: int = 1) -> str | None:
        """What is wrong with every `readers`-th file, from `reader` on, in words."""


class CheckpointSource(WeightsSource):
    def shapes(self) -> Shapes:
        from trainer.checkpoint.storage import tensor_shapes

        return tensor_shapes(self.path)

    def read(self, state: Mapping[str, Tensor]) -> None:
        from trainer.checkpoint.storage import read

        read(self.path, state, alone=True)

    def verify(self, reader: int = 0, readers: int = 1) -> str | None:
        return Checkpoint(self.path).verify(reader=reader, readers=readers)


class ExportSource(WeightsSource):
    def shapes(self) -> Shapes:
        return Export(self.path).shapes()

    def read(self, state: Mapping[str, Tensor]) -> None:
        Export(self.path).read(state)

    def verify(self, reader: int = 0, readers: int = 1) -> str | None:
        return Export(self.path).verify(reader, readers)


def find(path: Path) -> WeightsSource:
    """Of a run folder, its newest checkpoint that is whole by its files' sizes.

    Raises UserError where there are no weights.
    """
    if RunFolder(path).exists():
        newest = RunFolder(path).store.newest()
        if newest is None:
            raise UserError(f"{path} has no checkpoint yet; train it first")
        return _checkpoint(newest)
    if (path / "checkpoint.json").is_file():
        return _checkpoint(Checkpoint(path))
    if Export(path).exists():
        return ExportSource(path, *_described(path, Export(path).description()))
    raise UserError(f"{path} is neither a run folder nor a checkpoint nor an export")


def _checkpoint(checkpoint: Checkpoint) -> WeightsSource:
    return CheckpointSource(checkpoint.path, *_described(checkpoint.path, checkpoint.description()))


def _described(path: Path, content: dict[str, Any]) -> tuple[int, Settings, SeriesFacts]:
    try:
        settings = Settings.model_validate_json(json.dumps(content["settings"]))
        return content["step"], settings, SeriesFacts.of(content["series"])
    except ValidationError as error:
        keys, sentence = mistake(error)
        raise UserError(
            f"{path}: what it says of {'.'.join(keys)} cannot be read here: "
            f"{sentence or 'unknown key'}; use the version that wrote it"
        ) from None
