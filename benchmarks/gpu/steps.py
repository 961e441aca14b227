"""Training steps of the dense reference model: the engine's, and a plain loop's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.gpu.dense import Sizes, options_of, release, sizes_of, stack_flops
from benchmarks.gpu.measure import (
    DEVICE,
    IS_CUDA,
    Part,
    Rows,
    Work,
    milliseconds,
    peak_gib,
    product_ceiling,
    profiled,
)
from model.network_config import SeriesShape
from parallel.layout import Layout
from parallel.mesh import init_mesh, local_device
from trainer.config.settings import Settings
from trainer.data.windows import WindowBatch
from trainer.engine.engine import Engine

PATCH = 32


def run(part: Part) -> None:
    """Measure optimizer steps of the engine, and of a plain loop with the same arithmetic."""
    ceiling = product_ceiling(part.quick)
    sizes = sizes_of(part)
    length = 64 if part.quick else 2048
    batch = sizes["tokens"] // length
    rows: Rows = []
    for name, parallel, accumulation in (
        ("engine", {}, 1),
        ("engine, 4 micro-batches", {}, 4),
        ("engine, selective", {"activation_checkpointing": "selective"}, 1),
        ("engine, block", {"activation_checkpointing": "block"}, 1),
        ("engine, ZeRO 3", {"zero_stage": 3}, 1),
    ):
        settings = settings_of(sizes, length, batch, accumulation, parallel)
        release()
        before = torch.cuda.memory_allocated() / 2**30 if IS_CUDA else 0.0
        with training(settings) as engine:
            windows = windows_of(settings, batch, accumulation)
            number = iter(range(1, 10**6))

            def step(
                engine: Engine = engine, windows: list[WindowBatch] = windows, number: Any = number
            ) -> None:
                engine.train_step(next(number), windows)

            works: dict[str, Work] = {name: step}
            if name == "engine":
                works["plain loop"] = plain_loop(engine, windows)
            for title, work in works.items():
                count = sum(getattr(p, "ds_numel", p.numel()) for p in engine.network.parameters())
                flops = batch * accumulation * length * stack_flops(sizes, length, count)
                measured = _measured_step(part, title, work, flops, ceiling)
                if "peak GiB" in measured:  # DeepSpeed keeps some of the engines before
                    measured["peak GiB"] -= before
                rate = 1e3 * batch * accumulation * length / measured["ms"]
                rows.append({"step": title, "tokens/s": rate} | measured)
    dist.destroy_process_group()
    part.add(f"Training steps of {batch} windows of {length} tokens a micro-batch", rows)


def settings_of(
    sizes: Sizes, length: int, batch: int, accumulation: int, parallel: dict[str, Any], **model: Any
) -> Settings:
    """Return settings for a decoder of `length` tokens."""
    options = options_of(sizes, **model) | {
        "architecture": "decoder",
        "patch_length": PATCH,
        "channels": "independent",
    }
    return Settings.model_validate(
        {
            "model": options,
            "data": {"context_length": PATCH * length, "prediction_length": PATCH},
            "parallel": parallel,
            "train": {
                "global_batch_size": batch * accumulation,
                "micro_batch_size": batch,
                "precision": "bf16",
                "warmup_steps": 0,
            },
        }
    )


def windows_of(settings: Settings, batch: int, count: int) -> list[WindowBatch]:
    """Return random windows of one channel."""
    generator, data = np.random.default_rng(0), settings.data
    return [
        WindowBatch(
            generator.standard_normal((batch, data.context_length, 1), dtype=np.float32),
            generator.standard_normal((batch, data.prediction_length, 1), dtype=np.float32),
            np.zeros((batch, data.context_length + data.prediction_length, 0), np.float32),
            np.ones(batch, np.float32),
        )
        for _ in range(count)
    ]


@contextmanager
def training(settings: Settings) -> Iterator[Engine]:
    """Yield an engine on one rank."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
    layout = Layout(1, 1)
    store = None if dist.is_initialized() else dist.HashStore()
    mesh = init_mesh(layout, 0, local_device(0), store, "nccl" if IS_CUDA else "gloo")
    data = settings.data
    shape = SeriesShape(
        data.context_length, data.prediction_length, channels=1, covariates=0, missing=False
    )
    with redirect_stdout(sys.stderr):  # DeepSpeed prints
        engine = Engine(settings, shape, mesh)
    yield engine


def plain_loop(engine: Engine, windows: list[WindowBatch]) -> Work:
    """Return a step of a plain loop over the engine's own network and the same arithmetic.

    bf16 weights, fp32 masters and gradients, clipping, and torch's fused AdamW.
    """
    network = engine.network
    parameters = list(network.parameters())
    masters = [p.detach().float().requires_grad_() for p in parameters]
    optimizer = torch.optim.AdamW(masters, lr=1e-4, fused=True)
    data = windows[0]
    context, covariates, target = (
        torch.from_numpy(a).to(DEVICE) for a in (data.context, data.covariates, data.target)
    )

    def step() -> None:
        inputs = network.inputs(context, covariates, target)
        loss = network.loss(network(inputs), (target, context))
        gradients = torch.autograd.grad(loss, parameters)
        for master, gradient in zip(masters, gradients, strict=True):
            master.grad = gradient.float()
        torch.nn.utils.clip_grad_norm_(masters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_copy_(parameters, masters)
        float(loss)

    return step


def _measured_step(
    part: Part, name: str, step: Work, flops: float, ceiling: float
) -> dict[str, Any]:
    taken = milliseconds({"it": step}, part.rounds)["it"]
    peak = peak_gib(step)
    if part.profile and IS_CUDA:
        part.texts[name] = profiled(step)
    achieved = flops / taken / 1e9
    result = {"ms": taken, "TFLOP/s": achieved, "MFU": achieved / ceiling}
    return result | ({} if peak is None else {"peak GiB": peak})
