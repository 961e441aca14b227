"""A wrong setting is named with its key, its line and the way out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from model.config import ModelConfig
from model.errors import UserError
from tests.settings import TINY
from trainer.config import load
from trainer.config.load import parse_overrides
from trainer.config.rules import check
from trainer.config.settings import Settings


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "my.yaml"
    file.write_text(text)
    return file


def mistake(tmp_path: Path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        load(written(tmp_path, text))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{tmp_path}/")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train:\n  learning_rat: 1e-3\n",
            "my.yaml:2: train.learning_rat: unknown key; did you mean train.learning_rate?",
        ),
        ("trian: {steps: 3}\n", "my.yaml:1: trian: unknown key; did you mean train?"),
        (
            "train: {d_model: 3}\n",
            "my.yaml:1: train.d_model: unknown key; did you mean model.d_model?",
        ),
        ("steps: 3\n", "my.yaml:1: steps: unknown key; did you mean train.steps?"),
        (
            "checkpoint: {zzz: 3}\n",
            "my.yaml:1: checkpoint.zzz: unknown key; "
            "checkpoint has every, keep, keep_every, asynchronous",
        ),
        (
            "train:\n\n  steps: many\n",
            "my.yaml:3: train.steps: expected a whole number, got 'many'",
        ),
        ("train: {steps: 1.5}\n", "my.yaml:1: train.steps: expected a whole number, got 1.5"),
        (
            "train: {steps: 0}\n",
            "my.yaml:1: train.steps: expected greater than or equal to 1, got 0",
        ),
        (
            "train: {steps: true}\n",
            "my.yaml:1: train.steps: expected a whole number, got True; YAML reads a bare on, "
            "off, yes "
            "and no as true and false: quote it to mean text",
        ),
        (
            "train: {learning_rate: fast}\n",
            "my.yaml:1: train.learning_rate: expected a number, got 'fast'",
        ),
        (
            "model: {use_moe: maybe}\n",
            "my.yaml:1: model.use_moe: expected true or false, got 'maybe'",
        ),
        (
            "data: {targets: Demand}\n",
            "my.yaml:1: data.targets: expected a list such as [a, b], got 'Demand'",
        ),
        (
            "model: {activation: tanh}\n",
            "my.yaml:1: model.activation: expected one of gelu, relu or swish, got 'tanh'",
        ),
        (
            "model: {activation: off}\n",
            "my.yaml:1: model.activation: expected one of gelu, relu or swish, got False; YAML "
            "reads a "
            "bare on, off, yes and no as true and false: quote it to mean text",
        ),
        (
            "model:\n  d_model: 30\n  nhead: 7\n",
            "my.yaml:3: model.nhead: 7 heads do not divide d_model=30",
        ),
        (
            "model: {nhead: 8, num_kv_heads: 3}\n",
            "my.yaml:1: model.num_kv_heads: 3 does not divide nhead=8",
        ),
        (
            "model: {use_moe: true, num_experts: 2, top_k: 3}\n",
            "my.yaml:1: model.top_k: 3 exceeds num_experts=2",
        ),
        (
            "model: {activation: relu}\n",
            "my.yaml:1: model.activation: relu needs use_swiglu: false (SwiGLU's gate is swish)",
        ),
        ("model: 3\n", "my.yaml:1: model: expected keys below it, got 3"),
        ("train:\n", "my.yaml:1: train: expected keys below it, got nothing"),
        (
            "data: {split: [0.7, 0.1, 0.1]}\n",
            "my.yaml:1: data.split: the fractions [0.7, 0.1, 0.1] add to 0.9, not 1",
        ),
        ("train: {steps: 010}\n", "my.yaml:1: train.steps: expected a whole number, got '010'"),
        ("train: {steps: 1:30}\n", "my.yaml:1: train.steps: expected a whole number, got '1:30'"),
        (
            "train: {learning_rate: .inf}\n",
            "my.yaml:1: train.learning_rate: expected a number, got '.inf'",
        ),
        (
            "data: {split: [.nan, 0.1, 0.2]}\n",
            "my.yaml:1: data.split: expected a number, got '.nan'",
        ),
        ("data: {1: 2}\n", "my.yaml:1: 1 is no key; keys are words"),
        (
            "train: \x07\n",
            "my.yaml: not valid YAML: unacceptable character #x0007: special characters are not "
            "allowed",
        ),
        ("train: &t {x: *t}\n", "my.yaml: not valid YAML: maximum recursion depth exceeded"),
        (
            "train: {steps: 1}\ntrain: {steps: 2}\n",
            "my.yaml:2: train stands on line 1 too; keep one",
        ),
        (
            "train: {steps: [1\n",
            "my.yaml:2: not valid YAML: expected ',' or ']', but got '<stream end>'",
        ),
        ("- 1\n", "my.yaml:1: expected sections such as `model:` with keys below them"),
        ("", "my.yaml: the configuration is empty; configs/tiny.yaml is an example"),
        (
            "train: !!python/object/apply:os.system [ls]\n",
            "my.yaml:1: not valid YAML: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object/apply:os.system'",
        ),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, message: str) -> None:
    assert mistake(tmp_path, text) == message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.yaml: cannot read the configuration: No such file"):
        load(tmp_path / "no.yaml")


def test_yaml_traps_are_met_kindly(tmp_path: Path) -> None:
    text = "parallel: {activation_checkpointing: off}\ntrain: {learning_rate: 1e-3, steps: 1e3}\n"
    settings = load(written(tmp_path, text)).settings
    assert settings.parallel.activation_checkpointing == "none"
    assert settings.train.learning_rate == 1e-3
    assert settings.train.steps == 1000


def test_overrides_are_laid_over_the_file() -> None:
    given = [
        "train.steps=5",
        "train.learning_rate=2e-4",
        "data.targets=[Demand]",
        "model.use_moe=no",
    ]
    settings = load(TINY, parse_overrides(given)).settings
    assert (settings.train.steps, settings.train.learning_rate) == (5, 2e-4)
    assert settings.data.targets == ["Demand"] and settings.model.use_moe is False
    assert settings.model.d_model == 32
    merged = load(TINY, parse_overrides(["data={rows: 800}"])).settings
    assert merged.data.rows == 800 and merged.data.context_length == 96


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "train.steps: expected key=value, such as train.steps=100"),
        ("=3", "=3: expected key=value, such as train.steps=100"),
        ("train.steps=[", "train.steps=[: [ is not a valid YAML value"),
        ("train.steps=x", "train.steps: expected a whole number, got 'x'"),
        ("train.stepz=1", "train.stepz: unknown key; did you mean train.steps?"),
        ("train.steps.more=1", "train.steps.more: steps is a value and has no keys below it"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(TINY, parse_overrides([override]))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("world", "overrides", "message"),
    [
        (
            1,
            ["parallel.pipeline=2"],
            "parallel.pipeline: 1 rank cannot form 2 pipeline stages x 1 tensor ranks; start a "
            "multiple "
            "of 2 (--ranks 2), or set parallel.pipeline=1 parallel.tensor=1",
        ),
        (
            3,
            ["parallel.pipeline=2"],
            "parallel.pipeline: 3 ranks cannot form 2 pipeline stages x 1 tensor ranks; start a "
            "multiple "
            "of 2 (--ranks 4), or set parallel.pipeline=1 parallel.tensor=1",
        ),
        (
            6,
            ["parallel.tensor=4"],
            "parallel.tensor: 6 ranks cannot form 1 pipeline stages x 4 tensor ranks; start a "
            "multiple "
            "of 4 (--ranks 8), or set parallel.pipeline=1 parallel.tensor=2",
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
            "cannot "
            "wait for; use parallel.zero_stage=1, or parallel.pipeline=1",
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
            "model.nhead) "
            "and 64 hidden units (model.dim_feedforward) evenly; use parallel.tensor=1 or 2 or 4",
        ),
        (
            2,
            ["parallel.tensor=2", "model.use_swiglu=false", "model.dim_feedforward=63"],
            "parallel.tensor: 2 ranks cannot share 4 key/value heads (model.num_kv_heads or "
            "model.nhead) "
            "and 63 hidden units (model.dim_feedforward) evenly; use parallel.tensor=1",
        ),
        (
            3,
            ["parallel.expert=3", "train.global_batch_size=12"],
            "parallel.expert: 3 ranks cannot share model.num_experts=4 evenly in groups of a "
            "stage's 3 "
            "ranks (data 3 x tensor 1); use parallel.expert=1",
        ),
        (
            6,
            ["parallel.expert=4"],
            "parallel.expert: 4 ranks cannot share model.num_experts=4 evenly in groups of a "
            "stage's 6 "
            "ranks (data 6 x tensor 1); use parallel.expert=1 or 2",
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
            "shared "
            "between stages where the optimizer is offloaded; use parallel.offload_optimizer=none, "
            "parallel.pipeline=1 or train.precision=fp32",
        ),
        (
            1,
            ["deepspeed.zero_optimization.offload_optimizer={device: cpu}"],
            "deepspeed.zero_optimization.offload_optimizer: this is set by "
            "parallel.offload_optimizer; "
            "remove it from deepspeed",
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
            "model.use_moe=true, or "
            "parallel.expert=1",
        ),
        (
            1,
            ["model.max_seq_len=7"],
            "model.max_seq_len: 7 is shorter than the 8 patches of context and future; use at "
            "least 8, "
            "or a longer model.patch_length",
        ),
        (
            1,
            ["train.global_batch_size=10"],
            "train.global_batch_size: 10 = micro_batch_size 4 x data-parallel ranks 1 x "
            "accumulation "
            "2.5, and accumulation must be whole; use train.global_batch_size=8 or 12 or "
            "train.micro_batch_size=2",
        ),
        (
            1,
            ["deepspeed={zero_optimization: {stage: 2}}"],
            "deepspeed.zero_optimization.stage: this is set by parallel.zero_stage; remove it from "
            "deepspeed",
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


def test_a_key_of_the_file_is_named_with_its_line() -> None:
    with pytest.raises(UserError, match=r"tiny\.yaml:\d+: train\.global_batch_size: 16 = "):
        check(load(TINY), 3)


def test_every_key_is_documented() -> None:
    for section in Settings.model_fields.values():
        fields = getattr(section.annotation, "model_fields", {})
        for name, field in fields.items():
            assert field.description, name
    assert ModelConfig.model_fields["d_model"].description == "Width of the residual stream."


@pytest.mark.parametrize("file", sorted(TINY.parent.glob("*.yaml")), ids=lambda f: f.name)
def test_shipped_configurations_are_valid(file: Path) -> None:
    settings = load(file).settings
    parallel = settings.parallel
    stage = math.lcm(parallel.tensor, parallel.expert)
    check(load(file), parallel.pipeline * stage)
