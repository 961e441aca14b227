"""The section `deepspeed`: the keys that a user may pass on to DeepSpeed, and the values of each.

DeepSpeed itself checks some of them, in every rank and with a traceback, and ignores wrong names in
others. Only the keys that are given are passed on: the defaults here are DeepSpeed's and not used.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, cast

from pydantic import BaseModel, Field, model_validator

from model.config import PositiveInt, Section
from trainer.files import nearest_existing

MAX_BUCKET = 2**36
"""Most elements of a bucket, which DeepSpeed allocates whole: no device holds more than 256 GiB."""

Bucket = Annotated[int, Field(ge=1, le=MAX_BUCKET)]
EvenBucket = Annotated[int, Field(ge=2, le=MAX_BUCKET, multiple_of=2)]
Elements = Annotated[int, Field(ge=0, lt=2**63)]


class CommsLogger(Section):
    """DeepSpeed's log of collectives."""

    enabled: bool = False
    prof_all: bool = True
    prof_ops: list[str] = Field(default_factory=list)
    verbose: bool = False
    debug: bool = False


class FlopsProfiler(Section):
    """DeepSpeed's count of one step's operations."""

    enabled: bool = False
    recompute_fwd_factor: Annotated[float, Field(ge=0)] = 0.0
    profile_step: PositiveInt = 1
    module_depth: Annotated[int, Field(ge=-1)] = -1
    top_modules: PositiveInt = 1
    detailed: bool = True
    output_file: str | None = None

    @model_validator(mode="after")
    def _output_can_be_written(self) -> FlopsProfiler:
        if self.output_file is not None and not _can_be_written(Path(self.output_file)):
            raise ValueError(
                f"output_file: {self.output_file!r} cannot be written; name a file in a folder "
                "that can"
            )
        return self


class ThroughputTimer(Section):
    """DeepSpeed's throughput timer."""

    enabled: bool = True
    synchronized: bool = True


class Timers(Section):
    """DeepSpeed's timers."""

    throughput: ThroughputTimer = ThroughputTimer()


class ZeroOptimization(Section):
    """What a user may set of DeepSpeed's ZeRO; its stage is `parallel.zero_stage`."""

    allgather_bucket_size: EvenBucket = 500_000_000
    allgather_partitions: bool = True
    contiguous_gradients: bool = True
    overlap_comm: bool = False
    reduce_bucket_size: Bucket = 500_000_000
    reduce_scatter: bool = True
    round_robin_gradients: bool = False
    stage3_max_live_parameters: Elements = 1_000_000_000
    stage3_max_reuse_distance: Elements = 1_000_000_000
    stage3_param_persistence_threshold: Elements = 100_000
    stage3_prefetch_bucket_size: Elements = 50_000_000
    use_multi_rank_bucket_allreduce: bool = True

    @model_validator(mode="after")
    def _partitions_stay_in_order(self) -> ZeroOptimization:
        if self.round_robin_gradients:
            raise ValueError(
                "round_robin_gradients: true moves parameters to other partitions than those that "
                "checkpoints are written by; leave it out"
            )
        return self


class DeepSpeedSection(Section):
    """The whole section. None of its keys changes a result."""

    comms_logger: CommsLogger = CommsLogger()
    dump_state: bool = False
    flops_profiler: FlopsProfiler = FlopsProfiler()
    memory_breakdown: bool = False
    timers: Timers = Timers()
    wall_clock_breakdown: bool = False
    zero_optimization: ZeroOptimization = ZeroOptimization()


PASSED_TO_DEEPSPEED = (
    *(name for name in DeepSpeedSection.model_fields if name != "zero_optimization"),
    *(f"zero_optimization.{name}" for name in ZeroOptimization.model_fields),
)
"""Keys that a configuration may pass on."""


def siblings(path: Sequence[str]) -> Iterable[str]:
    """Return the keys that there are where the last one of `path` is unknown."""
    section: type[BaseModel] = DeepSpeedSection
    for part in path[:-1]:
        section = cast(type[BaseModel], section.model_fields[part].annotation)
    return section.model_fields


def _can_be_written(file: Path) -> bool:
    """Return whether `file` is or could become a file, with folders above it."""
    try:
        existing = nearest_existing(file)
    except (OSError, ValueError):  # no path at all
        return False
    is_right_kind = existing.is_file() if existing == file else existing.is_dir()
    return is_right_kind and os.access(existing, os.W_OK)
