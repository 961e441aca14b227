"""A trained network in plain torch, on one device, without DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model import rollout
from model.errors import UserError
from model.network import Inputs, TimeSeriesTransformer
from trainer.checkpoint.keys import state_of
from trainer.checkpoint.storage import compare
from trainer.config import Settings
from trainer.data import Dataset
from trainer.data.dataset import WindowBatch
from trainer.data.facts import SeriesFacts
from trainer.logs.log import log
from trainer.run.folder import RunFolder
from trainer.weights.source import WeightsSource, find

TRIES = 5
"""A run that is training may remove the checkpoint that is being read."""


class Forecaster:
    """A network with its weights, and what it must know of the series it was trained on."""

    def __init__(
        self, network: TimeSeriesTransformer, settings: Settings, facts: SeriesFacts, step: int
    ) -> None:
        self.network = network.eval()
        self.settings, self.facts, self.step = settings, facts, step

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Forecaster:
        """From a run folder's newest whole checkpoint, from a checkpoint, or from an export,
        whatever layout wrote it.

        Raises UserError where there are no weights or they are damaged.
        """
        for _ in range(TRIES):
            source = _intact(Path(path))
            try:
                network = _network(source)
                break
            except UserError:
                if source.path.exists():
                    raise
        else:
            raise UserError(f"{path}: its checkpoints are replaced faster than they can be read")
        return cls(network.to(device), source.settings, source.facts, source.step)

    @cached_property
    def dataset(self) -> Dataset:
        """The series that the configuration names; raises UserError where they are not here."""
        return Dataset(self.settings.data)

    @torch.no_grad()
    def predict(self, batches: Iterable[WindowBatch]) -> Iterator[tuple[WindowBatch, Tensor]]:
        """Batches with their forecasts [B, H, C], in standardised units and on the CPU."""
        device = next(self.network.parameters()).device
        for batch in batches:
            context = torch.from_numpy(batch.context).to(device)
            covariates = torch.from_numpy(batch.covariates).to(device)
            (predicted,) = rollout.forecast(self.network, [(context, covariates)], self._outputs)
            yield batch, predicted.cpu()

    def _outputs(self, inputs: Sequence[Inputs]) -> list[Tensor]:
        return [self.network(one) for one in inputs]

    def forecast(
        self, context: npt.ArrayLike, covariates: npt.ArrayLike | None = None
    ) -> npt.NDArray[np.float64]:
        """Forecasts [B, H, C] from contexts [B, L, C], both in the series' own units, NaN where a
        point is missing.

        `covariates` [B, L + H, F] are what is known in advance, as `trainer.data.tables.known`
        makes them. Raises UserError for other shapes.
        """
        shape = self.facts.shape
        values = np.asarray(context, np.float64)
        length = shape.context_length + shape.prediction_length
        columns = shape.covariates + len(shape.calendar)
        _expect("context", values, (shape.context_length, shape.channels))
        rows = len(values)
        told = np.zeros((rows, length, 0)) if covariates is None else np.asarray(covariates)
        _expect("covariates", told, (length, columns))
        mean, deviation = np.asarray(self.facts.mean), np.asarray(self.facts.deviation)
        batch = WindowBatch(
            ((values - mean) / deviation).astype(np.float32),
            np.full((rows, shape.prediction_length, shape.channels), np.nan, np.float32),
            told.astype(np.float32),
            np.ones(rows, np.float32),
        )
        [(_, forecast)] = self.predict([batch])
        return np.asarray(forecast.double().numpy() * deviation + mean)


def _expect(name: str, values: npt.NDArray[np.float64], wanted: tuple[int, int]) -> None:
    if values.ndim != 3 or values.shape[1:] != wanted:
        raise UserError(f"{name}: expected [B, {wanted[0]}, {wanted[1]}], got {list(values.shape)}")


def _network(source: WeightsSource) -> TimeSeriesTransformer:
    """With its weights; nothing large is made before it is known to fit."""
    settings, shape = source.settings, source.facts.shape
    with torch.device("meta"):
        wanted = TimeSeriesTransformer(settings.model, shape)
    compare(source.path, source.shapes(), {k: tuple(t.shape) for k, t in state_of(wanted).items()})
    network = TimeSeriesTransformer(settings.model, shape)
    source.read(state_of(network))
    return network.bfloat16() if settings.train.precision == "bf16" else network


def _intact(path: Path) -> WeightsSource:
    """Of a run, the newest checkpoint that is whole to the last byte; it is told where that is
    not the newest."""
    source = find(path)
    wrong = source.verify()
    if wrong is None or not source.path.exists():
        return source
    sentence = f"{source.path} is damaged: {wrong}"
    older = RunFolder(path).store.newest(contents=True) if RunFolder(path).exists() else None
    if older is None:
        raise UserError(sentence)
    log.warning("%s; %s is used", sentence, older.path.name)
    return find(older.path)
