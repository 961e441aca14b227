"""Feed-forward sub-layers: a plain MLP and SwiGLU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.adapters import adapted, make_adapters
from model.config import TransformerConfig
from model.fused import fused_for
from model.init import Init, start_parameters
from model.tracing import is_traced

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "swish": F.silu,
}


class _GatedSwish(torch.autograd.Function):
    """Computes swish(gate) * value of [..., gate | value] and keeps only its input for backward."""

    @staticmethod
    def forward(ctx: Any, gate_value: Tensor) -> Tensor:
        ctx.save_for_backward(gate_value)
        fused = fused_for(gate_value)
        if fused is not None:
            result: Tensor = fused.swiglu(gate_value)
            return result
        gate, value = gate_value.chunk(2, dim=-1)
        return F.silu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gate_value,) = ctx.saved_tensors
        fused = fused_for(gate_value)
        if fused is not None:
            fused_result: Tensor = fused.swiglu_backward(gradients[0].contiguous(), gate_value)
            return fused_result
        result = torch.empty_like(gate_value)
        # On a GPU blocks would only be more launches.
        size = BLOCK if gate_value.device.type == "cpu" else max(1, gate_value[..., 0].numel())
        flat = (t.flatten(0, -2).split(size) for t in (gate_value, gradients[0], result))
        for rows, gradient, into in zip(*flat, strict=True):
            gate, value = rows.chunk(2, dim=-1)
            grad_gate, grad_value = into.chunk(2, dim=-1)
            torch.mul(gradient, F.silu(gate), out=grad_value)
            torch.ops.aten.silu_backward.grad_input(gradient * value, gate, grad_input=grad_gate)
        return result


BLOCK = 512
"""Number of rows that the backward pass computes at once, so that temporaries stay small."""


def gated_swish(gate_value: Tensor) -> Tensor:
    """Return swish(gate) * value [..., F] of [..., 2 F], in which the gates come first."""
    if is_traced():
        gate, value = gate_value.chunk(2, dim=-1)
        return F.silu(gate) * value
    result: Tensor = _GatedSwish.apply(gate_value)
    return result


class MLP(nn.Module):
    """Plain feed-forward: activation(x W1^T) W2^T."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.d_model, self.width = d, width = config.d_model, config.feedforward_width
        self.activation = ACTIVATIONS[config.activation or "gelu"]
        self.input = nn.Parameter(torch.empty(width, d))
        self.output = nn.Parameter(torch.empty(d, width))
        self.adapters = make_adapters(config, self, {"input": 1, "output": 1})
        start_parameters(self)

    def initial(self) -> Mapping[str, Init]:
        """Return how the module's own parameters start, by name."""
        return {"input": Init(std=self.d_model**-0.5), "output": Init(std=self.width**-0.5)}

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(adapted(self.adapters, "input", F.linear(x, self.input), x))
        return adapted(self.adapters, "output", F.linear(hidden, self.output), hidden)


class SwiGLU(nn.Module):
    """Gated feed-forward: (swish(x G^T) * x V^T) W^T (Shazeer 2020).

    Gate and value are one product. They are stored as [2, width, d], so that splitting the hidden
    width over ranks cuts one dimension, and a rank's shard is one slice of the whole.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.d_model, self.width = d, width = config.d_model, config.feedforward_width
        self.gate_value = nn.Parameter(torch.empty(2, width, d))
        self.output = nn.Parameter(torch.empty(d, width))
        self.adapters = make_adapters(config, self, {"gate_value": 1, "output": 1})
        start_parameters(self)

    def initial(self) -> Mapping[str, Init]:
        """Return how the module's own parameters start, by name."""
        return {"gate_value": Init(std=self.d_model**-0.5), "output": Init(std=self.width**-0.5)}

    def forward(self, x: Tensor) -> Tensor:
        both = F.linear(x, self.gate_value.flatten(0, 1))
        hidden = gated_swish(adapted(self.adapters, "gate_value", both, x))
        return adapted(self.adapters, "output", F.linear(hidden, self.output), hidden)


def make_feed_forward(config: TransformerConfig) -> nn.Module:
    """Return the feed-forward that `config` names."""
    return SwiGLU(config) if config.use_swiglu else MLP(config)
