"""A trained network in plain torch, on one device, without DeepSpeed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from model.errors import UserError
from model.network import TimeSeriesTransformer
from trainer.checkpoint import storage
from trainer.config import Settings
from trainer.data import Dataset
from trainer.data.dataset import WindowBatch
from trainer.run import RunFolder


class Forecaster:
    """A network with its weights and the data that it was trained on."""

    def __init__(
        self, network: TimeSeriesTransformer, settings: Settings, dataset: Dataset, step: int
    ) -> None:
        self.network = network.eval()
        self.settings, self.dataset, self.step = settings, dataset, step

    @classmethod
    def load(cls, run: str | Path) -> Forecaster:
        """From a run folder's newest checkpoint, whatever layout wrote it."""
        folder = RunFolder(Path(run))
        settings = folder.configuration().settings
        checkpoint = folder.store.newest(contents=True)
        if checkpoint is None:
            raise UserError(f"{run} has no checkpoint yet; train it first")
        dataset = Dataset(settings.data)
        network = TimeSeriesTransformer(settings.model, dataset.shape)
        weights = {f"weights/{name}": p.detach() for name, p in network.named_parameters()}
        buffers = {f"buffers/{name}": buffer for name, buffer in network.named_buffers()}
        storage.read(checkpoint.path, {**weights, **buffers}, alone=True)
        if settings.train.precision == "bf16":
            network.bfloat16()
        return cls(network, settings, dataset, checkpoint.step)

    @torch.no_grad()
    def predict(self, batches: Iterable[WindowBatch]) -> Iterator[tuple[WindowBatch, Tensor]]:
        """Batches with their forecasts [B, H, C], in standardised units."""
        for batch in batches:
            context = torch.from_numpy(batch.context)
            covariates = torch.from_numpy(batch.covariates)
            forecast = future = torch.full(batch.target.shape, math.nan)
            for number in range(self.network.passes):
                output = self.network(self.network.inputs(context, covariates, future))
                forecast = self.network.forecast(output, context)
                future = self.network.with_patch(future, forecast, number)
            yield batch, forecast
