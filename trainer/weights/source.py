"""Sources of trained weights: a run folder, a checkpoint or an export.

Of a run folder it is the best intact checkpoint by checkpoint.best, by default the newest one, with
a warning where another would have been preferred.
Finding and describing a source imports no torch; reading it does.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from model.errors import UserError
from model.sentences import shortened
from model.validation import mistake
from trainer.checkpoint.keys import averaged, factors_of, is_of_adapter
from trainer.checkpoint.store import Checkpoint
from trainer.config.settings import Settings
from trainer.data.series_facts import SeriesFacts
from trainer.data.set_format import is_set
from trainer.files import check_reachable
from trainer.logs.log import log
from trainer.run.folder import RunFolder
from trainer.weights.export_format import Export

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
    run: RunFolder | None = None
    """The run folder that they were chosen from; None where they were named themselves."""

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


@dataclass(frozen=True)
class CheckpointSource(WeightsSource):
    """A checkpoint's weights, which are their moving average where one was kept.

    Adapters are merged into their matrices: `shapes` and `settings` have none.
    """

    adapter_scale: float = 1.0
    """Scale of the adapters' products, where there are any."""

    def shapes(self) -> Shapes:
        return {key: shape for key, shape in self._stored().items() if not is_of_adapter(key)}

    def _stored(self) -> Shapes:
        from trainer.checkpoint.tensor_files import tensor_shapes

        return tensor_shapes(self.path)

    def read(self, state: Mapping[str, Tensor]) -> None:
        from trainer.checkpoint.tensor_files import read

        stored = self._stored()

        def kept(key: str) -> str:
            return averaged(key) if averaged(key) in stored else key

        read(self.path, {kept(key): tensor for key, tensor in state.items()}, alone=True)
        for key, tensor in state.items():
            factors = [kept(factor) for factor in factors_of(key)]
            if factors[0] in stored:
                self._merge(tensor, {factor: stored[factor] for factor in factors})

    def _merge(self, tensor: Tensor, factors: Shapes) -> None:
        """Add the product of an adapter's factors, down and up, to what is held of its matrix."""
        import torch

        from model.adapters import product
        from trainer.checkpoint.partitions import add
        from trainer.checkpoint.tensor_files import read

        whole = {key: torch.empty(shape) for key, shape in factors.items()}
        read(self.path, whole, alone=True)
        down, up = whole.values()
        add(tensor, product(down, up, tensor.shape) * self.adapter_scale)

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
    """Return the weights in `path`; of a run folder, those of its best or newest checkpoint.

    That is the first one that is intact by its files' sizes; `intact` reads its bytes, too. Raises
    UserError where there are no weights.
    """
    check_reachable(path)
    if RunFolder(path).exists():
        run = RunFolder(path)
        found = next((c for c in _by_preference(run) if c.verify(contents=False) is None), None)
        if found is None:
            raise _without_checkpoint(run)
        return _of_checkpoint(found, run)
    if Checkpoint(path).exists():
        return _of_checkpoint(Checkpoint(path))
    if Export(path).exists():
        return ExportSource(path, *_parse(path, Export(path).description()))
    raise UserError(
        f"{path} is neither a run folder nor a checkpoint nor an export; {_way_out(path)}"
    )


def _way_out(path: Path) -> str:
    """Return what a user may have meant by a path without weights."""
    if is_set(path):
        return "it is a set of series: train on it, or forecast them by a run"
    if path.is_dir():
        runs = sorted(one.name for one in path.iterdir() if RunFolder(one).exists())
        if runs:
            return f"it holds runs: name one of {shortened(runs)}"
    above = next(
        (one for one in list(path.absolute().parents)[:2] if RunFolder(one).exists()), None
    )
    if above is not None and path.exists():
        return f"it is a part of a run: name {_shown(above)}, or one of its checkpoints"
    if path.suffix in (".yaml", ".yml"):
        return f"name the run that was trained with it, such as {Path('runs') / path.stem}"
    return "runs are in the folder runs unless --run-dir has said where"


def _shown(path: Path) -> Path:
    """Return a path as it is named from here, where it lies here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def intact(source: WeightsSource) -> WeightsSource:
    """Return `source`, every byte of it verified.

    Where it was chosen of a run's checkpoints and is damaged, the next intact one is returned, and
    a warning says so. Raises UserError where there is none, or the source itself was named.
    """
    for sentence in passed_over(source):
        log.warning(sentence)
    while (wrong := source.verify()) is not None:
        if not source.path.exists():
            return source  # a run that trains has removed it: whoever reads it finds out
        other = following(source)
        if other is None:
            raise all_damaged(source, wrong)
        log.warning(f"{source.path} is damaged: {wrong}; {other.path.name} is used")
        source = other
    return source


def passed_over(source: WeightsSource) -> Iterator[str]:
    """Yield a sentence about each checkpoint that its run would prefer: their sizes are wrong."""
    for checkpoint in _by_preference(source.run) if source.run is not None else ():
        if checkpoint.path == source.path:
            return
        wrong = checkpoint.verify(contents=False)
        if wrong is not None:
            yield f"{checkpoint.path} is damaged: {wrong}; {source.path.name} is used"


def following(source: WeightsSource) -> WeightsSource | None:
    """Return the checkpoint that its run prefers next and that is intact by its files' sizes."""
    if source.run is None:
        return None
    order = _by_preference(source.run)
    place = next((n for n, one in enumerate(order) if one.path == source.path), -1)
    rest = (one for one in order[place + 1 :] if one.verify(contents=False) is None)
    found = next(rest, None)
    return None if found is None else _of_checkpoint(found, source.run)


def _by_preference(run: RunFolder) -> list[Checkpoint]:
    """Return a run's checkpoints: by their scores where the run keeps its best, then the newest."""
    scores = run.scores()

    def preference(checkpoint: Checkpoint) -> tuple[float, int]:
        step = checkpoint.step
        return (scores[step], step) if step in scores else (math.inf, -step)

    return sorted(run.store.committed(), key=preference)


def all_damaged(source: WeightsSource, wrong: str) -> UserError:
    """Return the error for a damaged source without an intact one before it."""
    if source.run is None:
        return UserError(f"{source.path} is damaged: {wrong}")
    return UserError(
        f"{source.run.path} has no whole checkpoint left: {source.path.name}: {wrong}; restore one"
    )


def _without_checkpoint(run: RunFolder) -> UserError:
    """Return the error for a run without a checkpoint that is intact by its files' sizes."""
    damaged = run.store.verify()
    if damaged:
        path, wrong = list(damaged.items())[-1]
        sentence = f"{run.path} has no whole checkpoint left: {path.name}: {wrong}; restore one"
        return UserError(sentence)
    shown = run.had_checkpoints()
    if shown is not None:
        return UserError(f"{run.path} has no checkpoint any more ({shown}); restore one")
    return UserError(f"{run.path} has no checkpoint yet; train it first")


def _of_checkpoint(checkpoint: Checkpoint, run: RunFolder | None = None) -> WeightsSource:
    step, settings, facts = _parse(checkpoint.path, checkpoint.description())
    scale = settings.model.lora_scale
    merged = settings.model.model_copy(update={"lora_rank": 0, "lora_alpha": None})
    settings = settings.model_copy(update={"model": merged})
    return CheckpointSource(checkpoint.path, step, settings, facts, run, scale)


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
