"""What an optimizer step is in tokens, points and operations."""

from __future__ import annotations

from dataclasses import replace

import torch

from model.flops import forward_flops
from model.network import TimeSeriesTransformer
from model.network_config import SeriesShape
from trainer.config.settings import Settings
from trainer.logs.utilisation import StepWork


class Works:
    """Computes the work of a step, which depends on the length of its contexts, once for each."""

    def __init__(self, settings: Settings, shape: SeriesShape) -> None:
        self._settings, self._shape = settings, shape
        self._known: dict[int, StepWork] = {}

    def __call__(self, context_length: int) -> StepWork:
        """Return the work of a step whose contexts have so many points."""
        if context_length not in self._known:
            self._known[context_length] = self._computed(context_length)
        return self._known[context_length]

    def _computed(self, context_length: int) -> StepWork:
        windows, shape = self._settings.train.global_batch_size, self._shape
        with torch.device("meta"):
            network = TimeSeriesTransformer(
                self._settings.model, replace(shape, context_length=context_length)
            )
        # A product costs two in the backward pass.
        flops = 3 * windows * sum(forward_flops(network, layer) for layer in network.layers())
        points = (context_length + shape.prediction_length) * shape.channels
        return StepWork(windows * network.tokens_per_sample, windows * points, flops)
