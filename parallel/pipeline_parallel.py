"""Pipeline parallelism: which layers a stage holds, and DeepSpeed's module around them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from model.errors import UserError
from model.flops import forward_flops
from model.network import TimeSeriesTransformer
from model.sequential import Layer
from parallel.mesh import Mesh


def balance(costs: Sequence[float], stages: int) -> list[range]:
    """Return `stages` consecutive, non-empty ranges of `costs` whose largest sum is smallest.

    Of equally good ranges the later ones are the longer ones. Costs are positive; it takes
    O(stages * len(costs)).
    """
    sums = [0.0, *accumulate(costs)]
    largest = sums
    """Number of first costs -> the smallest largest sum of so many ranges of them."""
    starts: list[list[int]] = []
    """Number of first costs -> where the last of the ranges begins, one list for each cut."""
    for stage in range(1, stages):
        before, start = largest, stage
        largest, begins = list(sums), [0] * len(sums)
        for end in range(stage + 1, len(sums)):
            # A later start makes this range's sum smaller and those before it larger, and the best
            # start is never before the best one of a smaller `end`.
            best = max(before[start], sums[end] - sums[start])
            while start + 1 < end:
                later = max(before[start + 1], sums[end] - sums[start + 1])
                if later >= best:
                    break
                best, start = later, start + 1
            largest[end], begins[end] = best, start
        starts.append(begins)
    cuts = [len(costs)]
    for begins in reversed(starts):
        cuts.append(begins[cuts[-1]])
    cuts.append(0)
    return [range(start, end) for start, end in zip(cuts[:0:-1], cuts[-2::-1], strict=True)]


def split_layers(network: TimeSeriesTransformer, stages: int) -> list[list[Layer]]:
    """Return the layers of each stage, balanced by FLOPs.

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
    return [[layer for i in stage for layer in bundles[i]] for stage in balance(costs, stages)]


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


def tied_modules(stages: list[list[Layer]]) -> dict[str, list[int]]:
    """Return the modules that several stages hold, by global name, and which stages do.

    They are shared between layers that lie on different stages.
    """
    holders: dict[str, list[int]] = {}
    for number, layers in enumerate(stages):
        for name in sorted({name for layer in layers for name in layer.modules}):
            holders.setdefault(name, []).append(number)
    return {name: numbers for name, numbers in holders.items() if len(numbers) > 1}


def keep_only(network: TimeSeriesTransformer, layers: list[Layer]) -> None:
    """Remove every module of `network` that no layer of `layers` uses."""
    kept = {network.get_submodule(name) for layer in layers for name in layer.modules}
    used = {network.get_submodule(name) for layer in network.layers() for name in layer.modules}
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if module in used - kept:
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, None)


def pipeline_module(
    stages: list[list[Layer]], stage: Stage, mesh: Mesh, loss: Callable[..., Tensor]
) -> nn.Module:
    """Return DeepSpeed's module: as many layers as stages, of which this rank has its own."""
    from deepspeed.pipe import PipelineModule
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    layout, here = mesh.layout, mesh.coordinates
    topology = PipeModelDataParallelTopology(
        num_pp=layout.pipeline, num_mp=layout.tensor, num_dp=layout.data
    )
    others: list[nn.Module] = [nn.Identity() for _ in range(layout.pipeline)]
    others[here.pipeline] = stage
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        module = PipelineModule(others, topology=topology, loss_fn=loss, partition_method="uniform")
    for name, holders in sorted(tied_modules(stages).items()):
        _tie(module, stage.network, name, holders, mesh)
    return module


def _tie(
    module: Any, network: TimeSeriesTransformer, name: str, holders: list[int], mesh: Mesh
) -> None:
    """Have the gradients of `name` summed over the stages that hold it, and count it once.

    Collective: all ranks make all groups.
    """
    layout = mesh.layout
    for within in range(layout.stage):
        ranks = [stage * layout.stage + within for stage in holders]
        group = dist.new_group(ranks)
        if mesh.rank not in ranks:
            continue
        tied, key = network.get_submodule(name), name.replace(".", "-")
        module.tied_modules[key] = tied
        module.tied_comms[key] = {
            "ranks": ranks,
            "group": group,
            "module": tied,
            "weight_attr": [n for n, one in tied.named_parameters() if one.requires_grad],
        }
        if mesh.rank != ranks[0]:
            for parameter in tied.parameters():
                parameter.ds_pipe_replicated = True  # type: ignore[attr-defined]
