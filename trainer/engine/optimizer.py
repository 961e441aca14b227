"""AdamW and its parameter groups."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.profiler import record_function

from model.init import Shard
from parallel.deepspeed_adapter import expert_group_name
from parallel.layout import Layout
from parallel.sharding import is_expert
from trainer.checkpoint.keys import AVERAGE
from trainer.config.settings import TrainConfig
from trainer.logs.step_profile import OPTIMIZER


def parameter_groups(
    network: nn.Module, train: TrainConfig, layout: Layout, shards: Mapping[str, Shard]
) -> list[dict[str, Any]]:
    """Return AdamW's groups: matrices with weight decay, norms and biases without, and experts.

    Experts have a group of their own where the expert axis shards them.

    Every pipeline stage has all of them, in this order: DeepSpeed reduces group by group, and
    stages with different lists of groups would wait for each other for ever.
    """
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    matrices = {name for name, _ in named if len(shards[name].shape) > 1}  # ZeRO 3 flattens them
    apart = {name for name, _ in named if layout.expert > 1 and is_expert(name)}
    groups: list[dict[str, Any]] = [
        {
            "name": "decay",
            "weight_decay": train.weight_decay,
            "params": [p for name, p in named if name in matrices - apart],
        },
        {
            "name": "no_decay",
            "weight_decay": 0.0,
            "params": [p for name, p in named if name not in matrices],
        },
    ]
    if layout.expert > 1:
        groups.append(
            {
                "name": expert_group_name(layout),
                "moe": True,
                "weight_decay": train.weight_decay,
                "params": [p for name, p in named if name in apart],
            }
        )
    assert all(group["params"] for group in groups), "a stage without some kind of parameters"
    return groups


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that leaves weights and moments as they are where the gradient norm is above a limit.

    The caller sets `norm` once, after DeepSpeed has wrapped this optimizer, and `limit` before each
    step.
    """

    limit = math.inf
    """The largest norm that is applied."""
    norm: Callable[[], float] | None = None
    """Returns the norm of the step's global gradient before clipping, equal on all ranks."""
    ema_decay = 0.0
    """Decay of the moving average of the weights; with 0 there is none."""

    @property
    def averages(self) -> bool:
        """Whether a moving average of the weights is kept."""
        return self.ema_decay > 0

    # torch wraps these to keep its compiler out, and so loads it: most of a second in each rank.
    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    _update = inspect.unwrap(torch.optim.AdamW.step)

    def step(self, closure: Any = None) -> Any:
        if self.norm is not None and not self.norm() <= self.limit:
            return None
        with torch.no_grad(), record_function(OPTIMIZER):  # as the wrapper does
            weights = [one for group in self.param_groups for one in group["params"]]
            first = {one: one.clone() for one in weights if self.averages and not self.state[one]}
            result = self._update(closure)
            for one in weights if self.averages else ():
                if one in first:
                    self.state[one][AVERAGE] = first[one]
                self._average(one)
            return result

    def _average(self, weights: torch.Tensor) -> None:
        """Move the average of a tensor towards its weights.

        Its decay grows in the first steps, so that it is not long that of the first weights.
        """
        state = self.state[weights]
        step = state["step"]
        decay = ((1 + step) / (10 + step)).clamp(max=self.ema_decay)
        state[AVERAGE].lerp_(weights, (1 - decay).to(weights.dtype))


def make_optimizer(
    network: nn.Module, train: TrainConfig, layout: Layout, shards: Mapping[str, Shard]
) -> GuardedAdamW:
    """Return the optimizer of the parameters that this rank holds; `shards` has their shapes."""
    optimizer = GuardedAdamW(
        parameter_groups(network, train, layout, shards),
        lr=train.learning_rate,
        betas=(train.beta1, train.beta2),
        eps=train.epsilon,
        fused=True,
    )
    optimizer.ema_decay = train.ema_decay
    return optimizer
