"""`forescale plan`: what `train` would do on a number of ranks, without starting one.

`explain` computes what is known, which is then printed for programs, for people, or for both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from launch.capacity import network_and_work, shortage
from launch.output import print_json, showing_log
from parallel.layout import Layout

if TYPE_CHECKING:
    from model.sequential import Layer
    from parallel.cost_formulas import StageCosts, Work
    from trainer.prepare import Plan

SHOWN = 4
"""Replicas that the table of ranks shows of the first stage."""


@dataclass(frozen=True)
class NodeSpan:
    """How the groups of one axis lie on the nodes."""

    size: int
    """Ranks of a group."""
    groups: int
    across_nodes: int
    """Groups that reach over more than one node."""


@dataclass(frozen=True)
class Explanation:
    """A run as it would be made, and what it costs."""

    plan: Plan
    work: Work
    parameters: int
    active_parameters: int
    """Parameters that one token uses."""
    node: int
    """Ranks of a node."""
    spans: dict[str, NodeSpan]
    """Axis -> its groups, of the axes that are best kept inside a node."""
    costs: list[StageCosts]
    """Costs of each pipeline stage."""
    sent: list[dict[str, float]]
    """Bytes by axis that a rank of each stage hands to collectives in a step."""


def print_plan(
    config: Path,
    overrides: Sequence[str],
    *,
    world: int,
    node: int,
    run_dir: Path | None,
    resume: str,
    as_json: bool,
    with_text: bool,
) -> None:
    """Print what `train` would do on `world` ranks; `with_text` prints the text beside JSON, too.

    Raises UserError where `train` would.
    """
    with showing_log(as_json=as_json):
        known = explain(config, overrides, world, node, run_dir, resume)
    if as_json:
        print_json(to_json(known))
    if with_text or not as_json:
        print_text(known, Console(file=sys.stderr if as_json else None, width=110))


def explain(
    config: Path, overrides: Sequence[str], world: int, node: int, run_dir: Path | None, resume: str
) -> Explanation:
    """Compute what `train` would do on `world` ranks. Holds no weights.

    Raises UserError where `train` would.
    """
    from trainer.config import load
    from trainer.config.load import parse_overrides
    from trainer.prepare import prepare
    from trainer.run.lease import Attempt, refuse_if_leased

    configuration = load(config, parse_overrides(overrides))
    plan = prepare(configuration, run_dir=run_dir, resume=resume, world=world)
    refuse_if_leased(plan.run.path, Attempt.here())
    return explain_plan(plan, node)


def explain_plan(plan: Plan, node: int) -> Explanation:
    """Compute what a plan costs, on nodes of `node` ranks.

    Raises UserError where nothing of model.init_from fits.
    """
    from model.size import active_parameters, network_parameters
    from parallel.cost_formulas import stage_costs, traffic
    from trainer.engine.pretrained import check_fits

    settings, layout, shape = plan.configuration.settings, plan.layout, plan.dataset.shape
    network, work = network_and_work(plan)
    if plan.start.weights is not None:
        check_fits(plan.start.weights, network)
    costs = stage_costs(network, work)
    return Explanation(
        plan,
        work,
        network_parameters(settings.model, shape),
        active_parameters(settings.model, shape),
        node,
        node_spans(layout, node),
        costs,
        traffic(network, work, costs),
    )


def node_spans(layout: Layout, node: int) -> dict[str, NodeSpan]:
    """Count the tensor and expert groups that reach over nodes of `node` ranks."""
    spans = {}
    for axis, groups in (("tensor", layout.tensor_groups()), ("expert", layout.expert_groups())):
        across = sum(len({rank // node for rank in group}) > 1 for group in groups)
        spans[axis] = NodeSpan(len(groups[0]), len(groups), across)
    return spans


# For programs


def to_json(known: Explanation) -> dict[str, Any]:
    """Return the object that `--json` prints; docs/cluster.md lists its keys."""
    plan, work = known.plan, known.work
    settings = plan.configuration.settings
    return {
        "configuration": plan.configuration.name,
        "run_folder": str(plan.run.path),
        "is_done": plan.start.is_done,
        "start": _start(plan),
        "layout": plan.layout.sizes(),
        "batch": {
            "global": settings.train.global_batch_size,
            "micro": work.micro_batch,
            "data": plan.layout.data,
            "accumulation": work.accumulation,
        },
        "precision": settings.train.precision,
        "zero_stage": work.zero_stage,
        "activation_checkpointing": settings.parallel.activation_checkpointing,
        "parameters": {"total": known.parameters, "active": known.active_parameters},
        "ranks_per_node": known.node,
        "groups": {axis: vars(span) for axis, span in known.spans.items()},
        "stages": [_stage(*pair) for pair in zip(known.costs, known.sent, strict=True)],
    }


def _start(plan: Plan) -> dict[str, Any]:
    start = plan.start
    how = "resume" if start.checkpoint else "weights" if start.weights else "new"
    return {
        "how": how,
        "step": start.steps_done,
        "steps": plan.configuration.settings.train.steps,
        "weights": str(start.weights.path) if start.weights else None,
    }


def _stage(cost: StageCosts, sent: dict[str, float]) -> dict[str, Any]:
    """Return a pipeline stage, and what each of its ranks holds and sends."""
    return {
        "layers": [layer.name for layer in cost.layers],
        "parameters": cost.parameters,
        "flops": cost.flops,
        "rank_parameters": {
            "dense": cost.dense,
            "experts": cost.experts,
            "trained": sum(cost.trained),
        },
        "rank_bytes": {
            "weights": cost.weights,
            "gradients": cost.gradients,
            "optimizer": cost.optimizer,
            "total": cost.total,
            "host": cost.host,
        },
        "rank_bytes_sent": sent,
    }


# For people


def print_text(known: Explanation, console: Console) -> None:
    """Print the layout, the stages, and what each rank holds and sends."""
    plan, work, layout = known.plan, known.work, known.plan.layout
    settings, total = plan.configuration.settings, known.parameters
    train, active = settings.train, known.active_parameters
    console.print(
        f"{plan.configuration.name}: {count(total)} parameters"
        + (f", of which a token uses {count(active)}" if active < total else "")
        + f", {train.precision}, on {'one rank' if layout.world == 1 else f'{layout.world} ranks'}"
        + f": {layout}"
    )
    console.print(
        f"{train.global_batch_size} windows a step = micro-batch {work.micro_batch} x data "
        f"{layout.data} x accumulation {work.accumulation}; ZeRO {work.zero_stage}, "
        f"activation checkpointing {settings.parallel.activation_checkpointing}"
    )
    # Not the console's: it would wrap a long path.
    print(f"run folder: {plan.run.path}\n{where_it_begins(plan)}", file=console.file, flush=True)
    if layout.world > known.node:
        for line in _across_nodes(known):
            console.print(line)
    # Titles by themselves: a table breaks one that is wider than its columns.
    console.print("Ranks:", _ranks(layout))
    console.print("Parameters, and memory of a rank:", _stages(known.costs))
    if layout.world > 1:
        console.print("What a rank hands to collectives in a step:", _sent(known.sent))
    console.print(
        f"Activations come on top: of {work.micro_batch} windows at a time, in a pipeline of up to "
        f"{min(work.accumulation, layout.pipeline)} micro-batches; and DeepSpeed's buffers."
    )
    short = shortage(plan, known.costs, known.node)
    if short is not None:
        console.print(f"It cannot be trained here: {short}.")


def where_it_begins(plan: Plan) -> str:
    """Return in words where the run begins, or that it is done."""
    if plan.start.is_done:
        return "it is done: nothing is left to do"
    if plan.start.checkpoint is not None:
        steps = plan.configuration.settings.train.steps
        return f"it goes on from step {plan.start.steps_done} of {steps}"
    if plan.start.weights is not None:
        return f"it starts from the weights of {plan.start.weights.path}"
    return "it starts anew"


def _across_nodes(known: Explanation) -> Iterator[str]:
    for axis, span in known.spans.items():
        if span.across_nodes:
            yield (
                f"{span.across_nodes} of {span.groups} {axis} groups reach over nodes of "
                f"{known.node} ranks, their traffic over the network; a parallel.{axis} that "
                f"divides {known.node} avoids it"
            )
        elif span.size > 1:
            yield f"{axis} groups stay inside nodes of {known.node} ranks"


def _ranks(layout: Layout) -> Table:
    """Return which ranks share what; of many stages and replicas the first ones are shown."""
    table = Table()
    columns = ["stage", "replica", "tensor ranks"]
    columns += ["part of the experts"] if layout.expert > 1 else []
    for name in columns:
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


def _stages(costs: Sequence[StageCosts]) -> Table:
    table = Table()
    for name in ("stage", "layers"):
        table.add_column(name)
    memory = ["weights", "gradients", "optimizer", "all"]
    memory += ["host"] if costs[0].host > 0 else []
    held = ["of a rank"]
    held += ["trained"] if any(sum(c.trained) < c.dense + c.experts for c in costs) else []
    for name in ("FLOPs", "of the stage", *held, *memory):
        table.add_column(name, justify="right")
    all_flops = sum(cost.flops for cost in costs)
    for number, cost in enumerate(costs):
        sizes = (cost.weights, cost.gradients, cost.optimizer, cost.total, cost.host)
        table.add_row(
            str(number),
            ", ".join(_summary(cost.layers)),
            f"{cost.flops / all_flops:.0%}",
            count(cost.parameters),
            *(count(n) for n in (cost.dense + cost.experts, sum(cost.trained))[: len(held)]),
            *(size_of(size) for size in sizes[: len(memory)]),
        )
    return table


def _summary(layers: Sequence[Layer]) -> Iterator[str]:
    """Yield the number of transformer layers in a row, and the names of other layers."""
    for is_block, some in groupby(layers, key=lambda layer: layer.is_block):
        names = [layer.name for layer in some]
        if is_block:
            yield f"{len(names)} layer{'s' if len(names) > 1 else ''}"
        else:
            yield from names


def _sent(sent: Sequence[dict[str, float]]) -> Table:
    table = Table()
    table.add_column("stage")
    axes = [axis for axis in sent[0] if any(stage[axis] for stage in sent)]
    for axis in axes:
        table.add_column(axis, justify="right")
    for number, stage in enumerate(sent):
        table.add_row(str(number), *(size_of(stage[axis]) for axis in axes))
    return table


def size_of(number: float) -> str:
    """Shorten a number of bytes: 1.03 GiB, 12.4 MiB, 810 B."""
    return _shortened(number, {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}, " B")


def count(number: float) -> str:
    """Shorten a number of things: 1.03 B, 12.4 M, 810."""
    return _shortened(number, {"B": 1e9, "M": 1e6, "k": 1e3}, "")


def _shortened(number: float, units: dict[str, float], unit: str) -> str:
    for name, size in units.items():
        if number >= size:
            return f"{number / size:.3g} {name}"
    return f"{number:.0f}{unit}"
