"""A wrong setting is named with its key, its line and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.errors import UserError
from tests.settings import TINY
from tests.trainer.config.files import mistake
from trainer.config import load
from trainer.config.load import parse_overrides


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
            "my.yaml:1: checkpoint.zzz: unknown key; checkpoint has every, keep, keep_every, "
            "best, asynchronous",
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
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, message: str) -> None:
    assert mistake(tmp_path, text) == message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.yaml: cannot read the configuration: No such file"):
        load(tmp_path / "no.yaml")


def test_a_run_folder_in_place_of_a_file_gets_its_command(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train:\n  steps: 1\n")
    way_out = f"forescale train {tmp_path / 'config.yaml'}$"
    with pytest.raises(UserError, match=f"Is a directory; a run goes on by: {way_out}"):
        load(tmp_path)


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


@pytest.mark.parametrize("mark", [",", "|", ";", "%"])
def test_a_mark_alone_is_a_text(mark: str) -> None:
    assert parse_overrides([f"data.separator={mark}"]) == {"data.separator": mark}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "train.steps: expected key=value, such as train.steps=100"),
        ("=3", "=3: expected key=value, such as train.steps=100"),
        ("train.steps=", "train.steps=: a value is missing; null is the word for none"),
        ("data.targets= ", "data.targets= : a value is missing; null is the word for none"),
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
