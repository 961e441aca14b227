"""What does not fit together, or does not fit the ranks, is named with the way out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from model.errors import UserError
from tests.settings import TINY, planned
from trainer.config import load
from trainer.config.load import parse_overrides
from trainer.config.rules import check


@pytest.mark.parametrize(
    ("world", "overrides", "message"),
    [
        (
            1,
            ["parallel.pipeline=2"],
            "parallel.pipeline: 1 rank cannot form 2 pipeline stages x 1 tensor ranks; start a "
            "multiple of 2 (--ranks 2), or set parallel.pipeline=1 parallel.tensor=1",
        ),
        (
            3,
            ["parallel.pipeline=2"],
            "parallel.pipeline: 3 ranks cannot form 2 pipeline stages x 1 tensor ranks; start a "
            "multiple of 2 (--ranks 4), or set parallel.pipeline=1 parallel.tensor=1",
        ),
        (
            6,
            ["parallel.tensor=4"],
            "parallel.tensor: 6 ranks cannot form 1 pipeline stages x 4 tensor ranks; start a "
            "multiple of 4 (--ranks 8), or set parallel.pipeline=1 parallel.tensor=2",
        ),
        (
            8,
            ["parallel.pipeline=8"],
            "parallel.pipeline: 8 stages are more than the 4 transformer layers of this "
            "encoder_decoder; use at most 4",
        ),
        (
            2,
            ["parallel.pipeline=2", "parallel.zero_stage=2"],
            "parallel.zero_stage: 2 sums gradients in every micro-batch, which pipeline stages "
            "cannot wait for; use parallel.zero_stage=1, or parallel.pipeline=1",
        ),
        (
            2,
            ["parallel.expert=2", "parallel.zero_stage=3"],
            "parallel.zero_stage: 3 spreads whole layers over all data-parallel ranks, which hold "
            "different experts; use parallel.zero_stage=2, or parallel.expert=1",
        ),
        (
            8,
            ["parallel.tensor=8"],
            "parallel.tensor: 8 ranks cannot share 4 key/value heads (model.num_kv_heads or "
            "model.nhead) and 64 hidden units (model.dim_feedforward) evenly; use "
            "parallel.tensor=1 or 2 or 4",
        ),
        (
            2,
            ["parallel.tensor=2", "model.use_swiglu=false", "model.dim_feedforward=63"],
            "parallel.tensor: 2 ranks cannot share 4 key/value heads (model.num_kv_heads or "
            "model.nhead) and 63 hidden units (model.dim_feedforward) evenly; use "
            "parallel.tensor=1",
        ),
        (
            3,
            ["parallel.expert=3", "train.global_batch_size=12"],
            "parallel.expert: 3 ranks cannot share model.num_experts=4 evenly in groups of a "
            "stage's 3 ranks (data 3 x tensor 1); use parallel.expert=1",
        ),
        (
            6,
            ["parallel.expert=4"],
            "parallel.expert: 4 ranks cannot share model.num_experts=4 evenly in groups of a "
            "stage's 6 ranks (data 6 x tensor 1); use parallel.expert=1 or 2",
        ),
        (
            2,
            [
                "parallel.pipeline=2",
                "model.share_layers=true",
                "train.precision=bf16",
                "parallel.offload_optimizer=cpu",
            ],
            "parallel.offload_optimizer: in bf16 DeepSpeed does not sum the gradients of layers "
            "shared between stages where the optimizer is offloaded; use "
            "parallel.offload_optimizer=none, parallel.pipeline=1 or train.precision=fp32",
        ),
        (
            1,
            ["deepspeed.zero_optimization.offload_optimizer={device: cpu}"],
            "deepspeed.zero_optimization.offload_optimizer: this is set by "
            "parallel.offload_optimizer; remove it from deepspeed",
        ),
        (
            1,
            ["deepspeed.communication_data_type=bf16"],
            "deepspeed.communication_data_type: this is set by train.precision; remove it from "
            "deepspeed",
        ),
        (
            2,
            ["parallel.expert=2", "model.use_moe=false"],
            "parallel.expert: there are no experts to spread over 2 ranks; set "
            "model.use_moe=true, or parallel.expert=1",
        ),
        (
            1,
            ["train.global_batch_size=10"],
            "train.global_batch_size: 10 = micro_batch_size 4 x data-parallel ranks 1 x "
            "accumulation 2.5, and accumulation must be whole; use train.global_batch_size=8 or "
            "12 or train.micro_batch_size=2",
        ),
        (
            1,
            ["deepspeed={zero_optimization: {stage: 2}}"],
            "deepspeed.zero_optimization.stage: this is set by parallel.zero_stage; remove it "
            "from deepspeed",
        ),
        (
            1,
            ["deepspeed.bfloat16.enabled=true"],
            "deepspeed.bfloat16: this is set by train.precision; remove it from deepspeed",
        ),
        (
            1,
            ["deepspeed.flop_profiler.enabled=true"],
            "deepspeed.flop_profiler: this cannot be passed on to DeepSpeed; did you mean "
            "flops_profiler?",
        ),
        (
            1,
            ["deepspeed.zero_optimization=5"],
            "deepspeed.zero_optimization: this cannot be passed on to DeepSpeed; did you mean "
            "zero_optimization.overlap_comm?",
        ),
        (1, ["deepspeed.dump_state=5"], "deepspeed.dump_state: expected true or false, got 5"),
        (
            1,
            ["model.patch_length=1000"],
            "model.patch_length: 1000 is longer than data.context_length=96",
        ),
        (
            1,
            ["data.source=[{synthetic: {kind: structured, items: 1000000000}}]"],
            "data.source.synthetic.items: expected less than or equal to 2000000, got 1000000000",
        ),
        (
            1,
            ["logging.validate_every=5", "data.split=[0.8, 0, 0.2]"],
            "logging.validate_every: data.split leaves no validation part to score; set it to 0",
        ),
    ],
)
def test_what_does_not_fit_the_world_is_named(
    world: int, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        check(load(TINY, parse_overrides(overrides)), world)
    assert str(caught.value) == message


def test_windows_of_too_many_tokens_are_refused_where_the_series_have_them(tmp_path: Path) -> None:
    words = "8 patches of context and future; use at least 8, or a longer model.patch_length"
    with pytest.raises(UserError, match=f"model.max_seq_len: 7 is shorter than the {words}"):
        planned(tmp_path / "run", {"model.max_seq_len": 7})
    with pytest.raises(UserError, match=r"data.context_length: no series is long enough"):
        planned(tmp_path / "run", {"data.context_length": 100_000})


def test_a_key_of_the_file_is_named_with_its_line() -> None:
    with pytest.raises(UserError, match=r"tiny\.yaml:\d+: train\.global_batch_size: 16 = "):
        check(load(TINY), 3)


def test_more_ranks_than_there_are_is_a_slip() -> None:
    with pytest.raises(UserError, match=r"^--world: 1000000000000 ranks are more than there are"):
        check(load(TINY), 10**12)


@pytest.mark.parametrize("file", sorted(TINY.parent.glob("*.yaml")), ids=lambda f: f.name)
def test_shipped_configurations_are_valid(file: Path) -> None:
    settings = load(file).settings
    parallel = settings.parallel
    stage = math.lcm(parallel.tensor, parallel.expert)
    check(load(file), parallel.pipeline * stage)
