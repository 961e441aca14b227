"""The learning rate of each optimizer step."""

from __future__ import annotations

import math

from trainer.config.settings import TrainConfig


def learning_rate(train: TrainConfig, step: int) -> float:
    """Return the rate of optimizer step `step`, from 1: a linear warm-up, then the schedule."""
    if step <= train.warmup_steps:
        return train.learning_rate * step / train.warmup_steps
    # A schedule would end one step after the last, so that the last one still moves the weights.
    left = train.steps - train.warmup_steps + 1
    share = _SCHEDULES[train.schedule](train, step - train.warmup_steps, left)
    floor = train.final_learning_rate
    return train.learning_rate * (floor + (1 - floor) * share)


def _cosine(train: TrainConfig, step: int, steps: int) -> float:
    """Return half a cosine (Loshchilov & Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def _linear(train: TrainConfig, step: int, steps: int) -> float:
    return 1 - step / steps


def _stable_decay(train: TrainConfig, step: int, steps: int) -> float:
    """Return 1, and at the end one less a root of time (Hu et al. 2024; Haegele et al. 2024)."""
    decay = max(1, round(train.decay_share * train.steps)) + 1
    return 1 - math.sqrt(max(0, step - (steps - decay)) / decay)


_SCHEDULES = {"cosine": _cosine, "linear": _linear, "wsd": _stable_decay}
"""Name -> the share of the peak, of steps after the warm-up and of how many there would be."""
