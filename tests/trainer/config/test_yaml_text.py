"""YAML is read as people mean it, and what is no YAML is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.config.files import mistake, written
from trainer.config import load


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train: {steps: true}\n",
            "my.yaml:1: train.steps: expected a whole number, got True; YAML reads a bare on, "
            "off, yes and no as true and false: quote it to mean text",
        ),
        (
            "model: {activation: off}\n",
            "my.yaml:1: model.activation: expected one of gelu, relu or swish, got False; YAML "
            "reads a bare on, off, yes and no as true and false: quote it to mean text",
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
        ("train:\n  steps: !!int abc\n", "my.yaml:2: not valid YAML: 'abc' is no int"),
        ("train: {steps: !!int ''}\n", "my.yaml:1: not valid YAML: '' is no int"),
        ("train: {learning_rate: !!float x}\n", "my.yaml:1: not valid YAML: 'x' is no float"),
        ("logging: {tensorboard: !!bool maybe}\n", "my.yaml:1: not valid YAML: 'maybe' is no bool"),
        ("data: {source: !!timestamp x}\n", "my.yaml:1: not valid YAML: 'x' is no timestamp"),
        (
            f"train: {{steps: {'9' * 5000}}}\n",
            f"my.yaml:1: not valid YAML: '{'9' * 40}...' is no int",
        ),
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
        (
            "- 1\n",
            "my.yaml:1: expected sections such as `model:` with keys below them; `forescale init` "
            "writes a configuration for a table",
        ),
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


def test_yaml_traps_are_met_kindly(tmp_path: Path) -> None:
    text = "parallel: {activation_checkpointing: off}\ntrain: {learning_rate: 1e-3, steps: 1e3}\n"
    settings = load(written(tmp_path, text)).settings
    assert settings.parallel.activation_checkpointing == "none"
    assert settings.train.learning_rate == 1e-3
    assert settings.train.steps == 1000
