"""Bytes handed to collectives in a real step are those of parallel.cost_formulas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from model.network import TimeSeriesTransformer
from parallel.cost_formulas import Work, stage_costs, traffic
from parallel.layout import Layout
from tests import ranks
from tests.layouts.layouts import BIAS, CAPACITY, DECODER, DENSE, TIED, case, parameters
from tests.report import note_bytes
from tests.settings import made_trainer, planned, tiny
from trainer.config.deepspeed_config import keeps_flat_gradients
from trainer.data import Dataset

KINDS = {
    "all_reduce": (0, "tensor"),
    "reduce": (0, "tensor"),
    "send": (0, "tensor"),
    "isend": (0, "tensor"),
    "all_gather_into_tensor": (1, "input_tensor"),
    "reduce_scatter_tensor": (1, "input"),
    "all_to_all_single": (1, "input"),
    "broadcast": (0, "tensor"),
}
"""Collective -> the argument that a rank hands in."""

SETTINGS: dict[str, Any] = {
    "train.steps": 2,
    "train.warmup_steps": 1,
    "logging.tensorboard": False,
    "data.rows": 600,
    "data.split": [0.9, 0.1, 0.0],
    # As if the network were large: ZeRO 3 keeps no weight from one pass to the next.
    "deepspeed.zero_optimization.stage3_param_persistence_threshold": 0,
    "deepspeed.zero_optimization.stage3_max_live_parameters": 0,
    "deepspeed.zero_optimization.stage3_max_reuse_distance": 0,
}


def _counted(
    rank: int, world: int, run: Path, changes: dict[str, Any]
) -> tuple[dict[str, int], int]:
    """Return the bytes of step 2 by collective, and the number of the rank's parameters.

    Scalars (norms, flags), fp64 (statistics), masks and counts are left out, and groups of one
    rank, where nothing travels. "partitions" are what others get of a rank's gradients.
    """
    sent: Counter[str] = Counter()

    def counting(kind: str, place: int, word: str) -> Callable[..., Any]:
        function = getattr(dist, kind)

        def call(*arguments: Any, **options: Any) -> Any:
            tensor = options[word] if word in options else arguments[place]
            is_data = tensor.is_floating_point() and tensor.dtype != torch.float64
            group = options.get("group")
            ranks = dist.get_world_size(group)
            size = tensor.numel() * tensor.element_size()
            source = (*arguments[1:], options.get("src"))[0]  # of a broadcast
            is_received = kind == "broadcast" and source != rank
            if is_data and tensor.numel() > 8 and ranks > 1 and not is_received:
                if kind == "all_to_all_single" and tensor.ndim == 1:
                    sent["partitions"] += size * (ranks - 1) // ranks
                else:
                    sent[kind] += size
            return function(*arguments, **options)

        return call

    def on_step(step: int) -> None:
        sent.clear()

    with ExitStack() as stack:
        for kind, (place, word) in KINDS.items():
            stack.enter_context(patch.object(dist, kind, counting(kind, place, word)))
        plan = planned(run, SETTINGS | changes, world)
        trainer = stack.enter_context(made_trainer(plan, rank, on_step=on_step))
        trainer.run()  # the last step is the second one, and no window is scored after it
        held = sum(shard.shape.numel() for shard in trainer.engine._parallel.shards.values())
    return dict(sent), held


@pytest.mark.parametrize(
    ("name", "world", "changes"),
    parameters(
        [
            case(2),
            case(2, zero=2),
            case(2, zero=3, model=DENSE),
            case(2, precision="bf16"),
            case(2, zero=2, precision="bf16"),
            case(2, tp=2, ep=2, precision="bf16"),
            case(2, tp=2, micro=16),
            case(2, tp=2, model=CAPACITY),
            case(2, tp=2, model=DECODER),
            case(2, ep=2),
            case(2, tp=2, ep=2),
            case(2, tp=2, recompute="block"),
            case(2, tp=2, recompute="block", model=DENSE),
            case(2, tp=2, recompute="selective", model=CAPACITY),
            case(2, tp=2, ep=2, recompute="selective"),
            case(2, pp=2),
            case(2, pp=2, model=DECODER),
            case(4, pp=4, model=TIED),
            case(8, pp=2, tp=2, ep=2, model=BIAS),
        ]
    ),
)
def test_bytes_and_parameters_of_a_rank_are_the_formulas(
    tmp_path: Path, name: str, world: int, changes: dict[str, Any]
) -> None:
    counted = ranks.run(_counted, world, tmp_path / "run", changes)
    settings = tiny(**{k.replace(".", "__"): v for k, v in (SETTINGS | changes).items()}).settings
    with torch.device("meta"):
        network = TimeSeriesTransformer(settings.model, Dataset(settings.data).shape)
    parallel, train = settings.parallel, settings.train
    layout = Layout.of(
        world, pipeline=parallel.pipeline, tensor=parallel.tensor, expert=parallel.expert
    )
    work = Work(
        layout,
        parallel.zero_stage,
        train.micro_batch_size,
        train.global_batch_size // train.micro_batch_size // layout.data,
        weight_bytes=2 if train.precision == "bf16" else 4,
        flat_gradients=keeps_flat_gradients(settings),
        recomputed=parallel.activation_checkpointing != "none",
    )
    costs = stage_costs(network, work)
    expected = traffic(network, work, costs)
    for stage, members in enumerate(layout.stage_groups()):
        assert {counted[rank][1] for rank in members} == {costs[stage].dense + costs[stage].experts}
    sums = {
        kind: (
            sum(sent.get(name, 0) for sent, _ in counted for name in names),
            sum(len(layout.stage_groups()[0]) * stage[axis] for stage in expected for axis in axes),
        )
        for kind, names, axes in (
            ("to experts", ["all_to_all_single"], ["expert"]),
            ("between stages", ["send", "isend"], ["pipeline"]),
            (
                "sums and gathers",
                [
                    "all_gather_into_tensor",
                    "all_reduce",
                    "broadcast",
                    "partitions",
                    "reduce",
                    "reduce_scatter_tensor",
                ],
                ["tensor", "data", "tied"],
            ),
        )
    }
    cells = [f"{seen:,} / {right:,.0f}" if right else "" for seen, right in sums.values()]
    note_bytes(f"| {name} | {' | '.join(cells)} |")
    for kind, (seen, right) in sums.items():
        # ZeRO pads what it spreads; the others are exact.
        assert seen == (pytest.approx(right, rel=0.002) if kind == "sums and gathers" else right)
