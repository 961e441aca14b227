"""A forecaster as people train on a benchmark, beside Hugging Face's PatchTST."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.gpu.measure import DEVICE, Part, Rows, Work, milliseconds, random
from model.init import initialise
from model.network import TimeSeriesTransformer
from model.network_config import ModelConfig, SeriesShape

CHANNELS, CONTEXT, HORIZON, PATCH = 7, 512, 96, 16


def run(part: Part) -> None:
    """Measure a training step without an optimizer: 7 channels, 512 points, 96 ahead."""
    batch, d, layers = (2, 32, 1) if part.quick else (128, 128, 3)
    rows: Rows = []
    for dtype in (torch.float32, torch.bfloat16):
        context = random(batch, CONTEXT, CHANNELS, dtype=dtype)
        target = random(batch, HORIZON, CHANNELS, dtype=dtype)
        works = {"ours": _ours(d, layers, context, target)}
        peer = _patchtst(d, layers, context, target)
        if peer is not None:
            works["HF PatchTST"] = peer
        taken = milliseconds(works, part.rounds)
        for name, ms in taken.items():
            rate = 1e3 * batch / ms
            rows.append({"model": name, "type": str(dtype), "ms": ms, "windows/s": rate})
    part.add(f"{batch} windows of {CHANNELS} channels, forward and backward", rows)


def _step(module: nn.Module, loss: object) -> Work:
    parameters = [p for p in module.parameters() if p.requires_grad]

    def step() -> None:
        torch.autograd.grad(loss(), parameters, allow_unused=True)  # type: ignore[operator]

    return step


def _ours(d: int, layers: int, context: Tensor, target: Tensor) -> Work:
    config = ModelConfig(
        architecture="encoder",
        d_model=d,
        nhead=d // 8,
        num_layers=layers,
        dim_feedforward=2 * d,
        use_swiglu=False,
        dropout=0.0,
        att_type="flash",
        patch_length=PATCH,
        channels="independent",
        loss="mse",
    )
    shape = SeriesShape(CONTEXT, HORIZON, CHANNELS, covariates=0, missing=False)
    with DEVICE:
        network = TimeSeriesTransformer(config, shape)
    initialise(network, 0)
    network.to(DEVICE, context.dtype)
    covariates = context.new_zeros(len(context), CONTEXT + HORIZON, 0)

    def loss() -> Tensor:
        inputs = network.inputs(context, covariates, target)
        return network.loss(network(inputs), (target, context))

    return _step(network, loss)


def _patchtst(d: int, layers: int, context: Tensor, target: Tensor) -> Work | None:
    try:
        from transformers import PatchTSTConfig, PatchTSTForPrediction
    except ImportError:
        return None
    config = PatchTSTConfig(
        num_input_channels=CHANNELS,
        context_length=CONTEXT,
        prediction_length=HORIZON,
        patch_length=PATCH,
        patch_stride=PATCH,
        d_model=d,
        num_attention_heads=d // 8,
        num_hidden_layers=layers,
        ffn_dim=2 * d,
        norm_type="layernorm",
        attention_dropout=0.0,
        ff_dropout=0.0,
        path_dropout=0.0,
        head_dropout=0.0,
        loss="mse",
    )
    with DEVICE:
        peer = PatchTSTForPrediction(config).to(context.dtype)
    return _step(peer, lambda: peer(past_values=context, future_values=target).loss)
