"""What the section `deepspeed` holds is refused before a rank starts, or taken by DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.errors import UserError
from tests.settings import TINY
from tests.trainer.config.fuzz import EXTREME, known_keys
from trainer.config import load
from trainer.config.deepspeed_config import check_deepspeed
from trainer.config.deepspeed_section import (
    PASSED_TO_DEEPSPEED,
    CommsLogger,
    FlopsProfiler,
    ThroughputTimer,
    ZeroOptimization,
)
from trainer.config.load import parse_overrides


def refusal(override: str) -> str:
    """Return the sentence that an override is refused with."""
    with pytest.raises(UserError) as caught:
        check_deepspeed(load(TINY, parse_overrides([override])))
    return str(caught.value).removeprefix("deepspeed.")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "comms_logger={names: 1}",
            "comms_logger.names: DeepSpeed has no such key; there are "
            "enabled, prof_all, prof_ops, verbose, debug",
        ),
        (
            "comms_logger={1: 2}",
            "comms_logger.1: DeepSpeed has no such key; there are enabled, "
            "prof_all, prof_ops, verbose, debug",
        ),
        ("comms_logger.prof_ops=[1]", "comms_logger.prof_ops: expected text, got 1"),
        (
            "comms_logger=true",
            "comms_logger: expected keys below it, got True; YAML reads a bare "
            "on, off, yes and no as true and false: quote it to mean text",
        ),
        ("dump_state=maybe", "dump_state: expected true or false, got 'maybe'"),
        (
            "flops_profiler={enabled: maybe}",
            "flops_profiler.enabled: expected true or false, got 'maybe'",
        ),
        (
            "flops_profiler.profile_step=0",
            "flops_profiler.profile_step: expected greater than or equal to 1, got 0",
        ),
        (
            "flops_profiler.module_depth=-2",
            "flops_profiler.module_depth: expected greater than or equal to -1, got -2",
        ),
        (
            "flops_profiler.top_modules=1.5",
            "flops_profiler.top_modules: expected a whole number, got 1.5",
        ),
        (
            "flops_profiler.output_file=configs",
            "flops_profiler.output_file: 'configs' cannot be "
            "written; name a file in a folder that can",
        ),
        (
            "flops_profiler.output_file=README.md/x",
            "flops_profiler.output_file: 'README.md/x' "
            "cannot be written; name a file in a folder that can",
        ),
        (
            "timers={throughput: {every: 3}}",
            "timers.throughput.every: DeepSpeed has no such key; there are enabled, synchronized",
        ),
        ("timers=null", "timers: expected keys below it, got nothing"),
        ("memory_breakdown=1", "memory_breakdown: expected true or false, got 1"),
        ("wall_clock_breakdown=[]", "wall_clock_breakdown: expected true or false, got []"),
    ],
)
def test_a_wrong_value_is_named(override: str, message: str) -> None:
    assert refusal(f"deepspeed.{override}") == message


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("reduce_bucket_size", "-5", "expected greater than or equal to 1, got -5"),
        ("reduce_bucket_size", "0", "expected greater than or equal to 1, got 0"),
        (
            "reduce_bucket_size",
            "1e30",
            "expected less than or equal to 68719476736, got 1000000000000000019884624838656",
        ),
        ("allgather_bucket_size", "0", "expected greater than or equal to 2, got 0"),
        ("allgather_bucket_size", "3", "expected a multiple of 2, got 3"),
        ("stage3_prefetch_bucket_size", "-1", "expected greater than or equal to 0, got -1"),
        ("overlap_comm", "auto", "expected true or false, got 'auto'"),
        ("reduce_scatter", "null", "expected true or false, got nothing"),
        (
            "round_robin_gradients",
            "true",
            "true moves parameters to other partitions than those that checkpoints are written "
            "by; leave it out",
        ),
    ],
)
def test_a_wrong_value_of_zero_is_named(key: str, value: str, message: str) -> None:
    key = f"zero_optimization.{key}"
    assert refusal(f"deepspeed.{key}={value}") == f"{key}: {message}"


def test_a_wrong_value_of_the_file_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("deepspeed:\n  zero_optimization:\n    reduce_bucket_size: -5\n")
    with pytest.raises(UserError, match=r"my\.yaml:3: deepspeed\.zero_optimization\.reduce_b"):
        check_deepspeed(load(file))


@pytest.mark.parametrize("key", PASSED_TO_DEEPSPEED)
def test_no_value_of_another_kind_is_taken(key: str, tmp_path: Path) -> None:
    """Only those of the key's own type, and at its edges those that are in its range."""
    file = tmp_path / "my.yaml"
    file.write_text("train: {steps: 3}")
    annotation = known_keys()[f"deepspeed.{key}"]
    for kind, values in EXTREME.items():
        for value in values:
            is_of_type = kind is annotation or (kind is str and key.endswith("output_file"))
            try:
                check_deepspeed(load(file, {f"deepspeed.{key}": value}))
            except UserError as error:
                assert f"deepspeed.{key}: expected " in str(error) or "written" in str(error)
                assert kind is not bool or not is_of_type or key.endswith("round_robin_gradients")
            else:
                assert is_of_type


def test_deepspeed_takes_what_is_taken_here() -> None:
    """Its own models have the same keys, defaults and ranges."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    comms, zero = CommsLogger().model_dump(), ZeroOptimization().model_dump()
    assert CommsLoggerConfig(**comms) == CommsLoggerConfig()
    assert DeepSpeedZeroConfig(**zero, stage=1) == DeepSpeedZeroConfig(stage=1)
    timer = DeepSpeedThroughputTimerConfig(**ThroughputTimer().model_dump())
    assert timer == DeepSpeedThroughputTimerConfig()
    profiler = DeepSpeedFlopsProfilerConfig({})
    for name, default in FlopsProfiler().model_dump().items():
        assert getattr(profiler, name) == default, name
    edges = {"reduce_bucket_size": 1, "allgather_bucket_size": 2, "stage3_max_live_parameters": 0}
    DeepSpeedZeroConfig(**{**zero, **edges})


@pytest.mark.parametrize(
    ("key", "value"), [("wall_clock_breakdown", True), ("flops_profiler", {"enabled": True})]
)
def test_timers_do_not_go_with_stages(key: str, value: Any) -> None:
    """DeepSpeed's pipeline engine starts a timer twice, and an assertion fails."""
    changes = {f"deepspeed.{key}": value}
    check_deepspeed(load(TINY, changes))
    with pytest.raises(UserError, match=rf"deepspeed\.{key}.*: DeepSpeed cannot time pipeline"):
        check_deepspeed(load(TINY, {**changes, "parallel.pipeline": 2}))
