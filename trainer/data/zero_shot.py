"""Series that are scored while a network trains, and that it is not trained on."""

from __future__ import annotations

from pathlib import Path

from model.errors import UserError
from trainer.config.data_settings import AugmentConfig, DataConfig
from trainer.data.dataset import Dataset
from trainer.data.windows import Split


def zero_shot_sets(
    config: DataConfig, trained: Dataset, cache: Path, *, may_have_fewer: bool = False
) -> dict[str, Dataset]:
    """Return the datasets of `config.validate_on` by name; the test part is the end of each series.

    Raises UserError where one cannot be read, is trained on, or has other channels: more, or fewer
    unless it may.
    """
    channels = trained.shape.channels if may_have_fewer else 0
    seen = {part.series.digest for part in trained.parts}
    found: dict[str, Dataset] = {}
    for path in config.validate_on:
        own = _config(config, path)
        dataset = Dataset(own, cache, is_trained_on=False, past=trained.past, channels=channels)
        name = Path(path).name.partition(".")[0]
        problem = None
        if dataset.parts[0].series.digest in seen:
            problem = "is trained on"
        elif name in found:
            problem = f"has the name {name}, which another has"
        elif not dataset.windows(Split.TEST):
            problem = "has no series of data.prediction_length points and one before"
        elif (dataset.shape.channels, dataset.shape.covariates) != (
            trained.shape.channels,
            trained.shape.covariates,
        ):
            problem = (
                "has another number of channels or covariates than data.source, which `forescale "
                "prepare` chooses by data.targets and data.covariates"
            )
        if problem is not None:
            raise UserError(f"data.validate_on: {path} {problem}; name others, or leave it out")
        found[name] = dataset
    return found


def _config(config: DataConfig, path: str) -> DataConfig:
    """Return the settings by which a source of `validate_on` is read and cut."""
    return config.model_copy(
        update={
            "source": path,
            "split_last": [0, config.prediction_length],
            "split_at": None,
            "held_out": 0.0,
            "rows": None,
            "context_lengths": None,
            "min_prediction_length": None,
            "order": "draw",
            "augment": AugmentConfig(),
            "season_lengths": None,
        }
    )
