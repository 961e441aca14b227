"""What a layout costs each rank, by formula: parameters, memory, and bytes sent in a step.

Bytes are those of the tensors handed to collectives, not of the protocol under them.
docs/parallel.md has the formulas in words, and tests count them in real runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch

from model.flops import forward_flops
from model.init import Part
from model.moe import MixtureOfExperts
from model.network import Layer, TimeSeriesTransformer
from model.transformer import DecoderLayer
from parallel.layout import Layout
from parallel.pipeline import split_layers, tied_modules
from parallel.sharding import is_expert, part_of

FP32 = 4


@dataclass(frozen=True)
class Work:
    """How a run uses its layout."""

    layout: Layout
    zero_stage: int
    micro_batch: int
    accumulation: int
    weight_bytes: int
    """Of one weight or activation as it is computed with: 4 for fp32, 2 for bf16."""
    offloaded: bool = False
    """The optimizer's states are in the host's memory."""


@dataclass(frozen=True)
class StageCosts:
    """Of each rank of one pipeline stage."""

    layers: list[Layer]
    flops: float
    """Of one sample's forward pass, by all the stage's ranks."""
    parameters: int
    """Of the whole stage."""
    dense: int
    """Parameters that a rank holds, experts that are spread over ranks aside."""
    experts: int
    """Parameters of such experts that a rank holds."""
    weights: float
    """Bytes of a rank."""
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer


def stage_costs(network: TimeSeriesTransformer, work: Work) -> list[StageCosts]:
    """`network` may be on the meta device."""
    stages = split_layers(network, work.layout.pipeline)
    return [_stage(network, layers, number, work) for number, layers in enumerate(stages)]


def _stage(
    network: TimeSeriesTransformer, layers: list[Layer], number: int, work: Work
) -> StageCosts:
    layout = work.layout
    here = layout.coordinates(number * layout.stage)
    whole = dense = experts = 0
    for name, shape in _parameters(network, layers):
        held = _size(part_of(name, shape, layout, here))
        whole += prod(shape)
        if is_expert(name) and layout.expert > 1:
            experts += held
        else:
            dense += held
    # ZeRO spreads over the ranks that hold the same parameters.
    alike = ((dense, layout.data), (experts, layout.stage // layout.expert))
    spread = sum(count / ranks for count, ranks in alike)
    held = dense + experts
    return StageCosts(
        layers, sum(forward_flops(network, layer) for layer in layers), whole, dense, experts,
        weights=work.weight_bytes * (spread if work.zero_stage == 3 else held),
        gradients=FP32 * (spread if work.zero_stage >= 2 else held),
        optimizer=0.0 if work.offloaded else 3 * FP32 * spread,  # master weights, two moments
    )  # fmt: skip


def _parameters(
    network: TimeSeriesTransformer, layers: list[Layer]
) -> Iterator[tuple[str, torch.Size]]:
    for module in dict.fromkeys(name for layer in layers for name in layer.modules):
        for leaf, parameter in network.get_submodule(module).named_parameters():
            yield f"{module}.{leaf}", parameter.shape


def _size(part: Part) -> int:
    return part.shape.numel()


def traffic(network: TimeSeriesTransformer, work: Work) -> list[dict[str, float]]:
    """Of each stage, bytes that a rank hands to collectives in an optimizer step, by axis.

    Recomputed activations send once more than counted here; evaluation and checkpoints are left
    out.
    """
    stages = split_layers(network, work.layout.pipeline)
    costs = stage_costs(network, work)
    sent = []
    for number, (layers, cost) in enumerate(zip(stages, costs, strict=True)):
        per_micro_batch = {"tensor": 0.0, "expert": 0.0}
        rows = work.micro_batch * network.rows_per_sample
        for layer in (layer for layer in layers if layer.is_block):
            block = network.get_submodule(layer.modules[0])
            tokens, memory = rows * layer.tokens[0], rows * layer.memory
            for axis, elements in _block(network, block, tokens, memory, work.layout).items():
                per_micro_batch[axis] += elements
        size = work.weight_bytes * work.accumulation
        sent.append({axis: size * elements for axis, elements in per_micro_batch.items()} | {
            "pipeline": size * _boundaries(network, rows, number, work.layout.pipeline),
            "data": _data(cost, work),
            "tied": _tied(network, stages, number, work.layout),
        })  # fmt: skip
    return sent


def _block(
    network: TimeSeriesTransformer, block: torch.nn.Module, tokens: int, memory: int, layout: Layout
) -> dict[str, float]:
    """Elements of a transformer layer's collectives for `tokens` tokens."""
    d, choices = network.config.d_model, network.config.top_k
    sent = {"tensor": 0.0, "expert": 0.0}
    experts = next((m for m in block.modules() if isinstance(m, MixtureOfExperts)), None)
    if layout.tensor > 1:
        sent["tensor"] += 2 * tokens * d  # self-attention: its answer, its input's gradient
        if isinstance(block, DecoderLayer):
            sent["tensor"] += 2 * tokens * d + memory * d
        if experts is None or experts.shared is not None:
            sent["tensor"] += 2 * tokens * d
        if experts is not None:  # and the gates' gradient
            sent["tensor"] += 2 * tokens * d + tokens * choices
            if layout.expert > 1:  # gathered from shares, where the other sums whole tensors
                sent["tensor"] -= (2 * tokens * d + tokens * choices) * (1 - 1 / layout.tensor)
    if layout.expert > 1 and experts is not None:
        sent["expert"] += 4 * choices * tokens * d / layout.tensor
    return sent


def _boundaries(network: TimeSeriesTransformer, rows: int, number: int, stages: int) -> float:
    """Elements that a stage sends for a micro-batch: states on, their gradients back."""
    config = network.config
    tokens = {
        "encoder": network.memory_patches,
        "decoder": network.memory_patches + network.future_patches - 1,
        "encoder_decoder": network.memory_patches + network.future_patches,
    }[config.architecture]
    neighbours = (number > 0) + (number + 1 < stages)
    return float(neighbours * rows * tokens * config.d_model)


def _data(cost: StageCosts, work: Work) -> float:
    """ZeRO: gradients are reduced, weights gathered."""
    layout = work.layout
    alike = ((cost.dense, layout.data), (cost.experts, layout.stage // layout.expert))
    total = 0.0
    for count, ranks in alike:
        if ranks == 1:
            continue
        # Sums of gradients once a step, and weights once after it; ZeRO 2 sums in every
        # micro-batch, and ZeRO 3 gathers weights for every forward and every backward pass.
        reductions = 1 if work.zero_stage == 1 else work.accumulation
        gatherings = 2 * work.accumulation if work.zero_stage == 3 else 1
        total += FP32 * count * reductions + work.weight_bytes * count / ranks * gatherings
    return total


def _tied(
    network: TimeSeriesTransformer, stages: list[list[Layer]], number: int, layout: Layout
) -> float:
    """Gradients of weights that several stages hold, summed over them once a step."""
    total = 0
    here = layout.coordinates(number * layout.stage)
    for name, holders in tied_modules(stages).items():
        if number in holders:
            for leaf, parameter in network.get_submodule(name).named_parameters():
                total += _size(part_of(f"{name}.{leaf}", parameter.shape, layout, here))
    return float(FP32 * total)
