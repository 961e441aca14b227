"""What a layout costs each rank, by formula: parameters, memory, and bytes sent in a step.

Bytes are those of the tensors handed to collectives, not of the protocol under them.
docs/parallel.md has the formulas in words, and tests count them in real runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from torch import nn

from model.flops import forward_flops
from model.layers import DecoderLayer
from model.moe import MixtureOfExperts
from model.network import TimeSeriesTransformer
from model.sequential import Layer
from parallel.layout import Layout
from parallel.pipeline_parallel import split_layers, tied_modules
from parallel.sharding import is_expert, shard_of

FP32 = 4


@dataclass(frozen=True)
class Work:
    """How a run uses its layout."""

    layout: Layout
    zero_stage: int
    micro_batch: int
    accumulation: int
    weight_bytes: int
    """Bytes of one weight or activation as it is computed with: 4 for fp32, 2 for bf16."""
    flat_gradients: bool = False
    """Whether gradients are kept by `parallel.flat_gradients`."""
    offloaded: bool = False
    """Whether the optimizer's states are in the host's memory."""
    averages: bool = False
    """Whether a moving average of the weights is kept."""
    recomputed: bool = False
    """Whether the backward pass repeats layers' forward passes, with what they send."""


@dataclass(frozen=True)
class StageCosts:
    """What each rank of one pipeline stage holds, and the stage computes."""

    layers: list[Layer]
    flops: float
    """FLOPs of one sample's forward pass, by all the stage's ranks."""
    parameters: int
    """Parameters of the whole stage."""
    dense: int
    """Parameters that a rank holds, experts that the expert axis shards aside."""
    experts: int
    """Parameters of such experts that a rank holds."""
    trained: tuple[int, int]
    """How many of either are trained."""
    weights: float
    """Bytes of a rank's weights."""
    gradients: float
    optimizer: float
    """Bytes of the optimizer's states on the device."""
    host: float
    """Bytes of the optimizer's states in the host's memory."""

    @property
    def total(self) -> float:
        """Bytes on the device."""
        return self.weights + self.gradients + self.optimizer


def stage_costs(network: TimeSeriesTransformer, work: Work) -> list[StageCosts]:
    """Return the costs of each stage; `network` may be on the meta device."""
    stages = split_layers(network, work.layout.pipeline)
    return [_stage(network, layers, number, work) for number, layers in enumerate(stages)]


def _stage(
    network: TimeSeriesTransformer, layers: list[Layer], number: int, work: Work
) -> StageCosts:
    layout = work.layout
    here = layout.coordinates(number * layout.stage)
    whole, counts, trained = 0, [0, 0], [0, 0]  # dense ones, and spread experts
    for name, parameter in _parameters(network, layers):
        kind = is_expert(name) and layout.expert > 1
        count = shard_of(name, parameter.shape, layout, here).shape.numel()
        whole += prod(parameter.shape)
        counts[kind] += count
        trained[kind] += count if parameter.requires_grad else 0
    dense, experts = counts
    partitioned, held = _partitioned(trained[0], trained[1], layout), sum(trained)
    # Two moments, an average, and master weights, unless those are the network's own.
    states = ((2 if work.flat_gradients else 3) + work.averages) * FP32 * partitioned
    # DeepSpeed keeps bf16 gradients beside their fp32 sums where it does not partition them.
    both = work.weight_bytes if work.weight_bytes < FP32 and work.zero_stage == 1 else 0
    if work.flat_gradients:  # beside the flat ones those of the backward pass, or what arrives
        both += FP32 * (2 if layout.data > 1 else 1)
    return StageCosts(
        layers,
        sum(forward_flops(network, layer) for layer in layers),
        whole,
        dense,
        experts,
        (trained[0], trained[1]),
        weights=work.weight_bytes
        * (_partitioned(dense, experts, layout) if work.zero_stage == 3 else dense + experts),
        gradients=FP32 * (partitioned if work.zero_stage >= 2 else held) + both * held,
        optimizer=0.0 if work.offloaded else states,
        host=states if work.offloaded else 0.0,
    )


def _parameters(
    network: TimeSeriesTransformer, layers: list[Layer]
) -> Iterator[tuple[str, nn.Parameter]]:
    for module in dict.fromkeys(name for layer in layers for name in layer.modules):
        for leaf, parameter in network.get_submodule(module).named_parameters():
            yield f"{module}.{leaf}", parameter


def _partitioned(dense: int, experts: int, layout: Layout) -> float:
    """Return how many of a rank's parameters ZeRO leaves it."""
    return sum(count / ranks for count, ranks in _alike(dense, experts, layout))


def _alike(dense: int, experts: int, layout: Layout) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return a rank's parameters of each kind, and how many ranks ZeRO partitions them over.

    These ranks hold the same.
    """
    return (dense, layout.data), (experts, layout.stage // layout.expert)


def traffic(
    network: TimeSeriesTransformer, work: Work, costs: Sequence[StageCosts]
) -> list[dict[str, float]]:
    """Return for each stage the bytes that a rank hands to collectives in a step, by axis.

    `costs` are those of the stages. Evaluation and checkpoints are left out.
    """
    tied = tied_modules([cost.layers for cost in costs])
    sent = []
    for number, cost in enumerate(costs):
        per_micro_batch = {"tensor": 0.0, "expert": 0.0}
        rows = work.micro_batch * network.rows_per_sample
        for layer in (layer for layer in cost.layers if layer.is_block):
            block = network.get_submodule(layer.modules[0])
            tokens, memory = rows * layer.tokens[0], rows * layer.memory
            for axis, elements in _block(network, block, tokens, memory, work).items():
                per_micro_batch[axis] += elements
        size = work.weight_bytes * work.accumulation
        sent.append(
            {axis: size * elements for axis, elements in per_micro_batch.items()}
            | {
                "pipeline": size * _boundaries(network, rows, number, work.layout.pipeline),
                "data": _data(cost, work),
                "tied": _tied(network, tied, number, work.layout),
            }
        )
    return sent


def _block(
    network: TimeSeriesTransformer, block: nn.Module, tokens: int, memory: int, work: Work
) -> dict[str, float]:
    """Return the elements of a transformer layer's collectives for `tokens` tokens, by axis."""
    layout, states = work.layout, tokens * network.config.d_model
    choices = network.config.top_k
    mixture = next((m for m in block.modules() if isinstance(m, MixtureOfExperts)), None)
    forwards, backwards = {"tensor": 0.0, "expert": 0.0}, {"tensor": 0.0, "expert": 0.0}
    last = 0.0
    if layout.tensor > 1:
        attentions = 2 if isinstance(block, DecoderLayer) else 1
        forwards["tensor"] += attentions * states
        backwards["tensor"] += attentions * states
        if attentions == 2:
            backwards["tensor"] += memory * network.config.d_model
        if mixture is None or mixture.shared is not None:
            forwards["tensor"] += states
            backwards["tensor"] += states
        if mixture is None:
            last = states
        else:  # whole tensors are summed, or shares of the tokens gathered; and the gates' gradient
            share = layout.tensor if layout.expert > 1 else 1
            forwards["tensor"] += states / share
            gates = tokens * choices * FP32 / work.weight_bytes  # in fp32 always
            backwards["tensor"] += (states + gates) / share
    if layout.expert > 1 and mixture is not None:
        forwards["expert"] += 2 * choices * states / layout.tensor
        backwards["expert"] += 2 * choices * states / layout.tensor
    if work.recomputed:
        # What comes last is not needed again; after a mixture its auxiliary loss comes last.
        backwards = {axis: n + forwards[axis] for axis, n in backwards.items()}
        backwards["tensor"] -= last
    return {axis: forwards[axis] + backwards[axis] for axis in forwards}


def _boundaries(network: TimeSeriesTransformer, rows: int, number: int, stages: int) -> float:
    """Return the elements that a stage sends for a micro-batch: states on, gradients back."""
    neighbours = (number > 0) + (number + 1 < stages)
    return float(neighbours * rows * network.sequence_length * network.config.d_model)


def _data(cost: StageCosts, work: Work) -> float:
    """Return the bytes of ZeRO: gradients are reduced, weights gathered."""
    total = 0.0
    of_all = _alike(cost.dense, cost.experts, work.layout)
    for (held, ranks), count in zip(of_all, cost.trained, strict=True):
        if ranks == 1:
            continue
        # Sums of gradients once a step, and weights once after it; ZeRO 2 sums in every
        # micro-batch, and ZeRO 3 gathers weights for every forward and every backward pass.
        reductions = 1 if work.zero_stage == 1 else work.accumulation
        gathered = 2 * work.accumulation * held if work.zero_stage == 3 else count
        share = (ranks - 1) / ranks if work.flat_gradients else 1.0
        total += FP32 * count * share * reductions + work.weight_bytes * gathered / ranks
    return total


def _tied(
    network: TimeSeriesTransformer, tied: dict[str, list[int]], number: int, layout: Layout
) -> float:
    """Return the bytes of gradients of weights that several stages hold, summed once a step.

    `tied` has the stages that hold such a module.
    """
    total = 0
    here = layout.coordinates(number * layout.stage)
    for name, holders in tied.items():
        if number in holders:
            for leaf, parameter in network.get_submodule(name).named_parameters():
                shard = shard_of(f"{name}.{leaf}", parameter.shape, layout, here)
                total += shard.shape.numel() if parameter.requires_grad else 0
    return float(FP32 * total)
