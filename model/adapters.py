"""Low-rank adapters: what a fine-tuning adds to a trained matrix that itself stays as it is.

Beside W there is scale * U D, where D has `lora_rank` rows and U as many columns (Hu et al. 2021,
LoRA). D starts at random and U at zero, so that the network starts as it was. The product is added
to the outputs in training; afterwards it is added to the weights, and nothing is left of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import TransformerConfig
from model.init import Init, start_parameters

Adapters = nn.ModuleDict | None
"""A module's adapters by the names of their matrices; None where it has none."""

Grouped = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`model.experts.grouped_linear`."""


class Adapter(nn.Module):
    """The adapter of one matrix that is stored as [*outputs, *inputs]."""

    def __init__(
        self,
        config: TransformerConfig,
        outputs: torch.Size,
        inputs: torch.Size,
        experts: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.fan_in, self.scale = inputs.numel(), config.lora_scale
        self.down = nn.Parameter(torch.empty(*experts, config.lora_rank, *inputs))
        self.up = nn.Parameter(torch.empty(*experts, *outputs, config.lora_rank))
        self.copied: Mapping[str, Callable[[Tensor], Tensor]] = {}
        """By name, what is done to a factor of which this rank computes one term alone."""
        start_parameters(self)

    def initial(self) -> Mapping[str, Init]:
        """Return how the module's own parameters start, by name."""
        return {"down": Init(std=self.fan_in**-0.5), "up": Init()}

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return down and up, as they are computed with."""
        down, up = (self.copied.get(n, lambda x: x)(getattr(self, n)) for n in ("down", "up"))
        return down, up

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to the matrix's outputs: [..., outputs] of x [..., inputs]."""
        down, up = self.factors()
        return F.linear(F.linear(x, down.flatten(1)), up.flatten(0, -2)) * self.scale


class ExpertAdapter(Adapter):
    """The adapters of one matrix of each expert, stored as [E, *outputs, *inputs]."""

    def __init__(
        self, config: TransformerConfig, outputs: torch.Size, inputs: torch.Size, grouped: Grouped
    ) -> None:
        super().__init__(config, outputs, inputs, (config.num_experts,))
        self._grouped = grouped

    def forward(self, x: Tensor, counts_E: Tensor | None = None) -> Tensor:
        """Return what is added to the outputs of rows [rows, inputs], counts_E of each expert."""
        assert counts_E is not None
        down, up = self.factors()
        hidden = self._grouped(x, down.flatten(2), counts_E)
        return self._grouped(hidden, up.flatten(1, -2), counts_E) * self.scale


def make_adapters(
    config: TransformerConfig,
    module: nn.Module,
    inputs: Mapping[str, int],
    grouped: Grouped | None = None,
) -> Adapters:
    """Return adapters of a module's matrices, and keep these from training; None without a rank.

    `inputs` gives, by the matrix's name, how many of its last dims are inputs. With `grouped` the
    first dim counts experts.
    """
    if not config.lora_rank:
        return None
    made = {}
    for name, dims in inputs.items():
        shape = module.get_parameter(name).requires_grad_(False).shape
        outputs, taken = shape[:-dims], shape[-dims:]
        made[name] = (
            Adapter(config, outputs, taken)
            if grouped is None
            else ExpertAdapter(config, outputs[1:], taken, grouped)
        )
    return nn.ModuleDict(made)


def adapted(adapters: Adapters, name: str, y: Tensor, *inputs: Tensor) -> Tensor:
    """Return the outputs y of the matrix `name` for its inputs, with its adapter's added."""
    return y if adapters is None else y + adapters[name](*inputs)


def product(down: Tensor, up: Tensor, shape: torch.Size) -> Tensor:
    """Return what an adapter's factors add to a matrix of this shape, or to those of all experts.

    It is still to be scaled.
    """
    if down.ndim + up.ndim == len(shape) + 2:
        return (up.flatten(0, -2) @ down.flatten(1)).view(shape)
    return (up.flatten(1, -2) @ down.flatten(2)).view(shape)
