"""Settings describe themselves, and contradictions between them are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.network_config import ModelConfig
from tests.trainer.data.tables import config
from trainer.config.settings import Settings


def test_every_key_is_documented() -> None:
    for section in Settings.model_fields.values():
        fields = getattr(section.annotation, "model_fields", {})
        for name, field in fields.items():
            assert field.description, name
    assert ModelConfig.model_fields["d_model"].description == "Width of the residual stream."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ["load", "load"]}, "targets: load stands twice"),
        ({"targets": ["load"], "covariates": ["load"]}, "covariates: load is a target"),
        ({"targets": ["load"], "past_covariates": ["load"]}, "load stands in targets, too; leave"),
        ({"covariates": ["p"], "past_covariates": ["p"]}, "p stands in covariates, too; leave it"),
        ({"past_covariates": ["p"], "static": ["p"]}, "static: p stands in past_covariates, too"),
        ({"timezone": "Nowhere/City"}, "timezone: there is no 'Nowhere/City'"),
        ({"timezone": ""}, "timezone: there is no ''"),
        ({"timezone": "Europe"}, "timezone: there is no 'Europe'"),
        ({"season_lengths": [24]}, "season_lengths: 24 is longer than context_length=6"),
        ({"season_lengths": [5, 3]}, r"season_lengths: \[5, 3\] must ascend"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path / "series.csv", **changes)
