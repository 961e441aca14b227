"""AdamW's parameter groups and its learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from trainer.config.settings import TrainConfig


def parameter_groups(network: nn.Module, train: TrainConfig) -> list[dict[str, Any]]:
    """Matrices with weight decay, norms and biases without.

    Every pipeline stage has both, in this order: DeepSpeed reduces group by group, and stages
    with different lists of groups would wait for each other for ever.
    """
    parameters = list(network.parameters())
    groups = [
        {"name": "decay", "weight_decay": train.weight_decay,
         "params": [p for p in parameters if p.ndim > 1]},
        {"name": "no_decay", "weight_decay": 0.0,
         "params": [p for p in parameters if p.ndim <= 1]},
    ]  # fmt: skip
    assert all(group["params"] for group in groups), "a stage without matrices or without norms"
    return groups


def make_optimizer(network: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameter_groups(network, train), lr=train.learning_rate,
        betas=(train.beta1, train.beta2), eps=train.epsilon, fused=True,
    )  # fmt: skip


def learning_rate(train: TrainConfig, step: int) -> float:
    """Of optimizer step `step`, counted from 1: linear warm-up, then half a cosine."""
    if step <= train.warmup_steps:
        return train.learning_rate * step / train.warmup_steps
    # The cosine would end one step after the last, so that the last one still moves the weights.
    progress = (step - train.warmup_steps) / (train.steps - train.warmup_steps + 1)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    floor = train.final_learning_rate
    return train.learning_rate * (floor + (1 - floor) * cosine)
