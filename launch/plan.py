"""`forescale plan`: a layout explained, without starting a rank or holding a weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from parallel.layout import Layout

if TYPE_CHECKING:
    from model.sequential import Layer
    from parallel.costs import StageCosts
    from trainer.prepare import Plan

SHOWN = 4
"""Replicas that the grid shows of the first stage."""


def explain(
    config: Path, overrides: Sequence[str], world: int, node: int, run_dir: Path | None, resume: str
) -> None:
    """Print grid, stages, and what each rank holds and sends."""
    from trainer.config import load
    from trainer.config.load import parse_overrides
    from trainer.prepare import prepare
    from trainer.run.lease import Attempt, refuse_if_leased

    configuration = load(config, parse_overrides(overrides))
    plan = prepare(configuration, run_dir=run_dir, resume=resume, world=world)
    refuse_if_leased(plan.run.path, Attempt.here())
    settings, layout = plan.configuration.settings, plan.layout

    import torch

    from model.network import TimeSeriesTransformer
    from model.size import active_parameters, network_parameters
    from parallel.costs import Work, stage_costs, traffic

    with torch.device("meta"):
        network = TimeSeriesTransformer(settings.model, plan.dataset.shape)
    train = settings.train
    work = Work(
        layout,
        settings.parallel.zero_stage,
        train.micro_batch_size,
        train.accumulation(layout.data),
        weight_bytes=2 if train.precision == "bf16" else 4,
        offloaded=settings.parallel.offload_optimizer == "cpu",
        recomputed=settings.parallel.activation_checkpointing != "none",
    )
    console = Console(width=110)
    total = network_parameters(settings.model, plan.dataset.shape)
    active = active_parameters(settings.model, plan.dataset.shape)
    console.print(
        f"{plan.configuration.name}: {count(total)} parameters"
        + (f", of which a token uses {count(active)}" if active < total else "")
        + f", {train.precision}, on {world} ranks: {layout}"
    )
    console.print(
        f"{train.global_batch_size} windows a step = micro-batch {work.micro_batch} x data "
        f"{layout.data} x accumulation {work.accumulation}; ZeRO {work.zero_stage}, "
        f"activation checkpointing {settings.parallel.activation_checkpointing}"
    )
    print(f"run folder: {plan.run.path}\n{where_it_begins(plan)}", flush=True)
    for line in across_nodes(layout, node):
        console.print(line)
    console.print(grid(layout))
    costs = stage_costs(network, work)
    console.print(_stages(costs))
    if world > 1:
        console.print(_sent(traffic(network, work)))
    console.print(
        f"Activations come on top: of {work.micro_batch} windows at a time, in a pipeline of up to "
        f"{min(work.accumulation, layout.pipeline)} micro-batches; and DeepSpeed's buffers."
    )


def where_it_begins(plan: Plan) -> str:
    if plan.start.is_done:
        return "it is done: nothing is left to do"
    if plan.start.checkpoint is not None:
        steps = plan.configuration.settings.train.steps
        return f"it goes on from step {plan.start.steps_done} of {steps}"
    if plan.start.weights is not None:
        return f"it starts from the weights of {plan.start.weights.path}"
    return "it starts anew"


def grid(layout: Layout) -> Table:
    """Which ranks share what; the later of many stages and replicas go on alike."""
    table = Table(title="Ranks", title_justify="left")
    for name in ("stage", "replica", "tensor ranks", "part of the experts")[
        : 4 if layout.expert > 1 else 3
    ]:
        table.add_column(name)
    for stage in range(layout.pipeline):
        first = stage * layout.stage
        shown = min(layout.data, SHOWN if stage == 0 else 1)
        for replica in range(shown):
            ranks = range(first + replica * layout.tensor, first + (replica + 1) * layout.tensor)
            cells = [str(stage), str(replica), " ".join(str(rank) for rank in ranks)]
            if layout.expert > 1:
                cells.append(" ".join(str(layout.coordinates(rank).expert) for rank in ranks))
            table.add_row(*cells)
        if layout.data > shown:
            table.add_row("", f"to {layout.data - 1}", f"to {first + layout.stage - 1}")
    return table


def across_nodes(layout: Layout, node: int) -> Iterator[str]:
    """How the axes lie on nodes of `node` ranks."""
    if layout.world <= node:
        return
    for axis, groups in (("tensor", layout.tensor_groups()), ("expert", layout.expert_groups())):
        if len(groups[0]) == 1:
            continue
        split = sum(len({rank // node for rank in group}) > 1 for group in groups)
        if split:
            yield (
                f"{split} of {len(groups)} {axis} groups reach over nodes of {node} ranks, their "
                f"traffic over the network; a parallel.{axis} that divides {node} avoids it"
            )
        else:
            yield f"{axis} groups stay inside nodes of {node} ranks"


def _stages(costs: Sequence[StageCosts]) -> Table:
    table = Table(title="Parameters, and memory of a rank", title_justify="left")
    for name in ("stage", "layers"):
        table.add_column(name)
    memory = ["weights", "gradients", "optimizer", "all", *["host"][: costs[0].host > 0]]
    for name in ("FLOPs", "of the stage", "of a rank", *memory):
        table.add_column(name, justify="right")
    all_flops = sum(cost.flops for cost in costs)
    for number, cost in enumerate(costs):
        sizes = (cost.weights, cost.gradients, cost.optimizer, cost.total, cost.host)
        table.add_row(
            str(number),
            ", ".join(_summary(cost.layers)),
            f"{cost.flops / all_flops:.0%}",
            count(cost.parameters),
            count(cost.dense + cost.experts),
            *(size_of(size) for size in sizes[: len(memory)]),
        )
    return table


def _summary(layers: Sequence[Layer]) -> Iterator[str]:
    """Transformer layers by their number, other layers by their names."""
    for is_block, some in groupby(layers, key=lambda layer: layer.is_block):
        names = [layer.name for layer in some]
        if is_block:
            yield f"{len(names)} layer{'s' if len(names) > 1 else ''}"
        else:
            yield from names


def _sent(sent: Sequence[dict[str, float]]) -> Table:
    table = Table(title="What a rank hands to collectives in a step", title_justify="left")
    table.add_column("stage")
    axes = [axis for axis in sent[0] if any(stage[axis] for stage in sent)]
    for axis in axes:
        table.add_column(axis, justify="right")
    for number, stage in enumerate(sent):
        table.add_row(str(number), *(size_of(stage[axis]) for axis in axes))
    return table


def size_of(number: float) -> str:
    """1.03 GiB, 12.4 MiB, 810 B."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"


def count(number: float) -> str:
    """1.03 B, 12.4 M, 810."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"
