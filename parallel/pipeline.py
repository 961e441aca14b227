"""Pipeline stages: which layers of a network a rank holds, and DeepSpeed's module around them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from itertools import accumulate

from torch import Tensor, nn

from model.errors import UserError
from model.flops import forward_flops
from model.init import initialise
from model.network import Layer, TimeSeriesTransformer
from parallel.layout import Layout


def partition(costs: Sequence[float], parts: int) -> list[range]:
    """Cut `costs` into `parts` consecutive, non-empty ranges whose largest sum is smallest."""
    sums = [0.0, *accumulate(costs)]
    best: dict[tuple[int, int], tuple[float, int]] = {(0, 0): (0.0, 0)}
    for part in range(1, parts + 1):
        for end in range(part, len(costs) + 1):
            best[part, end] = min(
                (max(best[part - 1, start][0], sums[end] - sums[start]), start)
                for start in range(part - 1, end)
                if (part - 1, start) in best
            )
    cuts = [len(costs)]
    for part in range(parts, 0, -1):
        cuts.append(best[part, cuts[-1]][1])
    return [range(start, end) for start, end in zip(cuts[:0:-1], cuts[-2::-1], strict=True)]


def split_layers(network: TimeSeriesTransformer, stages: int) -> list[list[Layer]]:
    """The layers of each stage, balanced by FLOPs.

    What is no transformer layer (embedding, final norm, head) stays with its neighbour, so that
    every stage holds both matrices and norms: the optimizer's groups are then equal on all.
    """
    bundles: list[list[Layer]] = []
    waiting: list[Layer] = []
    for layer in network.layers():
        if layer.is_block:
            bundles.append([*waiting, layer])
            waiting = []
        elif bundles:
            bundles[-1].append(layer)
        else:
            waiting.append(layer)
    if stages > len(bundles):
        raise UserError(
            f"{stages} pipeline stages are more than the {len(bundles)} transformer layers; "
            f"use at most {len(bundles)}"
        )
    costs = [sum(forward_flops(network, layer) for layer in bundle) for bundle in bundles]
    return [[layer for i in part for layer in bundles[i]] for part in partition(costs, stages)]


class Stage(nn.Module):
    """A slice of a network; its parameters keep the names they have in the whole."""

    def __init__(self, network: TimeSeriesTransformer, layers: list[Layer]) -> None:
        super().__init__()
        self.network = network
        self.slice = layers

    def forward(self, state: tuple[Tensor, ...]) -> tuple[Tensor, ...] | Tensor:
        result: tuple[Tensor, ...] | Tensor = state
        for layer in self.slice:
            result = layer.run(result)
        return result


def keep_only(network: TimeSeriesTransformer, layers: list[Layer]) -> None:
    """Remove every module of `network` that no layer of `layers` uses."""
    kept = {name for layer in layers for name in layer.modules}
    for layer in network.layers():
        for name in set(layer.modules) - kept:
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, None)


def build_stage(
    network: TimeSeriesTransformer, layout: Layout, stage: int, seed: int, device: str
) -> Stage:
    """Cut `network`, made on the meta device, down to one stage and give it its first weights."""
    layers = split_layers(network, layout.pipeline)[stage]
    keep_only(network, layers)
    network.to_empty(device="cpu")
    initialise(network, seed)
    network.to(device)
    return Stage(network, layers)


def pipeline_module(
    stage: Stage, index: int, layout: Layout, loss: Callable[..., Tensor]
) -> nn.Module:
    """DeepSpeed's view: as many layers as stages, of which this rank has number `index`."""
    from deepspeed.pipe import PipelineModule
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    topology = PipeModelDataParallelTopology(
        num_pp=layout.pipeline, num_mp=layout.tensor, num_dp=layout.data
    )
    others: list[nn.Module] = [nn.Identity() for _ in range(layout.pipeline)]
    others[index] = stage
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return PipelineModule(others, topology=topology, loss_fn=loss, partition_method="uniform")
