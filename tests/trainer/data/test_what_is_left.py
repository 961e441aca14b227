"""Nothing left to train on, or settings that do nothing: the key to blame is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.errors import UserError
from tests.settings import planned
from tests.trainer.data.sets import csv, prepared
from tests.trainer.data.test_repeated_rows import stores
from trainer.config.data_settings import DataConfig
from trainer.data import Dataset
from trainer.forecast.protocols import LONG_TERM


def test_all_series_held_out(tmp_path: Path) -> None:
    config = {"source": str(csv(tmp_path, stores())), "context_length": 56, "prediction_length": 14}
    with pytest.raises(UserError, match=r"data\.held_out: 0\.999 of the series leaves none to tra"):
        Dataset(DataConfig(**config, held_out=0.999))


def test_a_set_is_not_prepared_again(tmp_path: Path) -> None:
    prepared(tmp_path, csv(tmp_path, stores()))
    [folder] = tmp_path.glob("set-*")
    with pytest.raises(UserError, match=r"is a set already; name it as data\.source"):
        prepared(tmp_path, folder)


def test_a_protocols_season_needs_a_context_as_long() -> None:
    weather = LONG_TERM["weather"]
    assert weather.settings("weather", 52_696, 336)["data.season_lengths"] == [144]
    assert weather.settings("weather", 52_696, 96)["data.season_lengths"] == []


def test_features_that_do_not_vary(tmp_path: Path) -> None:
    days = {"data.source": str(csv(tmp_path, stores())), "data.targets": ["sales"]}
    days |= {"data.covariates": [], "data.context_length": 56, "data.prediction_length": 14}

    def told(**changes: object) -> list[str]:
        changes = {f"data.{key}": value for key, value in changes.items()}
        return [w for w in planned(tmp_path / "run", days | changes).warnings() if "same" in w]

    assert told(calendar=["hour", "day_of_week"]) == [
        "data.calendar: hour is the same at every point of days"
    ]
    assert told(calendar=["day_of_week"]) == []


def test_a_share_of_another_schedule_is_told(tmp_path: Path) -> None:
    def told(**changes: object) -> list[str]:
        changes = {f"train.{key}": value for key, value in changes.items()}
        return [w for w in planned(tmp_path / "run", changes).warnings() if "decay_share" in w]

    assert told(decay_share=0.5) == ["train.decay_share has no effect with schedule: cosine"]
    assert told(decay_share=0.5, schedule="wsd") == [] and told() == []
