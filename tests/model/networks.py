"""A small network and inputs for it."""

from __future__ import annotations

import torch

from model.init import initialise
from model.network import TimeSeriesTransformer
from model.network_config import ModelConfig, SeriesShape

SHAPE = SeriesShape(context_length=40, prediction_length=12, channels=3, covariates=2)
CONFIG = {
    "d_model": 32,
    "nhead": 4,
    "num_layers": 1,
    "dim_feedforward": 96,
    "dropout": 0.0,
    "patch_length": 8,
    "use_moe": True,
    "num_experts": 4,
}


def network(shape: SeriesShape = SHAPE, **changes: object) -> TimeSeriesTransformer:
    """Return an initialised network in evaluation mode, with `changes` to CONFIG."""
    result = TimeSeriesTransformer(ModelConfig.model_validate({**CONFIG, **changes}), shape)
    initialise(result, 0)
    return result.eval()


def inputs(shape: SeriesShape = SHAPE, batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a context [B, L, C] and covariates [B, L + H, F]."""
    length = shape.context_length + shape.prediction_length
    context = torch.randn(batch, shape.context_length, shape.channels) * 3 + 5
    return context, torch.randn(batch, length, shape.covariates)
