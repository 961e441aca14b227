"""Training as the textbook has it: one process, the whole batch at once, plain torch.

It imports neither `parallel` nor DeepSpeed; layouts are held to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.init import initialise
from model.network import TimeSeriesTransformer
from trainer.config import Settings
from trainer.data import Dataset
from trainer.engine.schedule import learning_rate


@dataclass
class Trajectory:
    losses: list[float]
    aux_losses: list[float]
    grad_norms: list[float]
    weights: dict[str, Tensor]
    first_weights: dict[str, Tensor]
    frozen: list[str]
    """Names of the weights that are not trained."""


ROUNDING = 1e-7
"""Relative change of a weight that fp32 hardly sees."""


def train_plainly(settings: Settings, steps: int, noise: int | None = None) -> Trajectory:
    """Train; with `noise`, a seed, from weights moved by about a rounding, samples in any order."""
    train = settings.train
    dataset = Dataset(settings.data)
    network = TimeSeriesTransformer(settings.model, dataset.shape)
    initialise(network, train.seed)
    if noise is not None:
        _move(network, noise)
    first = {name: p.detach().clone() for name, p in network.named_parameters()}
    trained = [p for p in network.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": train.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=train.learning_rate,
        betas=(train.beta1, train.beta2),
        eps=train.epsilon,
    )
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    result = Trajectory([], [], [], {}, first, frozen)
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(train, step)
        last = step * train.global_batch_size
        batch = dataset.samples(train.seed, last - train.global_batch_size, last, step)
        order = torch.arange(len(batch.target))
        if noise is not None:
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(noise))
        context, target, covariates = (
            torch.from_numpy(values)[order]
            for values in (batch.variates, batch.target, batch.covariates)
        )
        asked = None if batch.asked is None else torch.from_numpy(batch.asked)[order]
        output = network(network.inputs(context, covariates, target, asked))
        loss = network.loss(output, (target, context))
        optimizer.zero_grad()
        loss.backward()
        result.losses.append(loss.item())
        seen = [mixture.take_statistics() for mixture in network.mixtures().values()]
        rows = train.global_batch_size * network.rows_per_sample
        result.aux_losses.append(sum(float(s.loss) / rows for s in seen if s is not None))
        clip = train.gradient_clipping or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(trained, clip)
        result.grad_norms.append(float(norm))
        optimizer.step()
        for mixture, statistics in zip(network.mixtures().values(), seen, strict=True):
            if statistics is not None:
                mixture.router.rebalance(statistics.counts_E)
    result.weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    return result


@torch.no_grad()
def _move(network: TimeSeriesTransformer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.mul_(1.0 + ROUNDING * torch.randn(parameter.shape, generator=generator))
