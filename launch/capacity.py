"""Whether this machine can hold what its ranks do, found before they meet.

Weights, gradients and the optimizer's states are known by formula. Without this check a run would
end in a traceback of the allocator, or be killed by the system without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launch.cluster_environment import ClusterEnvironment
from launch.machine import GIB, memory_limit, unusable_gpus
from model.errors import UserError
from trainer.config.deepspeed_config import BUCKET, keeps_flat_gradients
from trainer.config.sizes import micro_batch_bytes, weight_bytes

if TYPE_CHECKING:
    from model.network import TimeSeriesTransformer
    from parallel.cost_formulas import StageCosts, Work
    from trainer.prepare import Plan


@dataclass(frozen=True)
class Memory:
    """A memory of this machine, and what its ranks need of it at least, in bytes."""

    name: str
    size: float
    needed: float

    def shortage(self) -> str:
        """Return that it is too small, in words."""
        return (
            f"{self.name} has {self.size / GIB:.3g} GiB of memory, and its ranks need at least "
            f"{self.needed / GIB:.3g} GiB for weights, gradients, optimizer and a micro-batch"
        )


def network_and_work(plan: Plan) -> tuple[TimeSeriesTransformer, Work]:
    """Return a plan's network on the meta device, and how the run uses its layout."""
    import torch

    from model.network import TimeSeriesTransformer
    from parallel.cost_formulas import Work

    settings, layout = plan.configuration.settings, plan.layout
    with torch.device("meta"):
        network = TimeSeriesTransformer(settings.model, plan.dataset.shape)
    return network, Work(
        layout,
        settings.parallel.zero_stage,
        settings.train.micro_batch_size,
        settings.train.accumulation(layout.data),
        weight_bytes=weight_bytes(settings),
        flat_gradients=keeps_flat_gradients(settings),
        offloaded=settings.parallel.offload_optimizer == "cpu",
        averages=settings.train.ema_decay > 0,
        recomputed=settings.parallel.activation_checkpointing != "none",
    )


def check_machine(plan: Plan, here: ClusterEnvironment) -> None:
    """Raise UserError where this machine's ranks need what it does not have.

    That is more memory, or GPUs that torch can use.
    """
    from parallel.cost_formulas import stage_costs

    settings = plan.configuration.settings
    why = unusable_gpus() if settings.train.device == "auto" else None
    if why is not None:
        raise UserError(
            f"this machine has GPUs and {why}; install a CUDA build of torch that fits the driver "
            "(forescale doctor tells them), or set train.device=cpu to train on CPUs"
        )
    memories = _memories(plan, stage_costs(*network_and_work(plan)), here)
    for memory in memories:
        if memory.needed > memory.size:
            raise UserError(
                f"{memory.shortage()}; use a smaller network, train.precision=bf16, or more "
                "machines with parallel.pipeline, parallel.tensor or parallel.zero_stage=3"
            )
    bucket = settings.deepspeed.get("zero_optimization", {}).get("reduce_bucket_size", 0)
    if bucket * weight_bytes(settings) > memories[0].size:
        raise plan.configuration.error(
            "deepspeed.zero_optimization.reduce_bucket_size",
            f"{bucket} elements are more than {memories[0].name} can hold; the default is {BUCKET}",
        )


def shortage(plan: Plan, costs: Sequence[StageCosts], node: int) -> str | None:
    """Return why this machine could not be a node of `node` ranks, if it could not."""
    world = plan.layout.world
    here = ClusterEnvironment(rank=0, local_rank=0, world=world, local_world=min(node, world))
    short = [m for m in _memories(plan, costs, here) if m.needed > m.size]
    return short[0].shortage() if short else None


def _memories(plan: Plan, costs: Sequence[StageCosts], here: ClusterEnvironment) -> list[Memory]:
    """Return the memory of this rank's device, and the host's.

    Of a GPU only this rank's part is counted: others may have hidden theirs from it.
    """
    import torch

    layout, first = plan.layout, here.rank - here.local_rank
    ranks = range(max(0, first), min(first + here.local_world, layout.world))
    local = [costs[layout.coordinates(rank).pipeline] for rank in ranks]
    own = costs[layout.coordinates(here.rank).pipeline]
    batch = micro_batch_bytes(plan.configuration.settings, plan.dataset.shape)
    hosted = sum(stage.host for stage in local)
    host = memory_limit()
    if plan.configuration.settings.train.device == "cpu" or not torch.cuda.is_available():
        needed = sum(stage.total + batch for stage in local) + hosted
        return [Memory("this machine", host, needed)]
    index = here.local_rank % torch.cuda.device_count()
    size = float(torch.cuda.get_device_properties(index).total_memory)
    return [Memory(f"GPU {index}", size, own.total + batch), Memory("this machine", host, hosted)]
