"""Series that are not trained on are scored in training, on any layout, and after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from model.errors import UserError
from tests import ranks
from tests.settings import TINY, planned, train_plan, train_rank
from tests.trainer.data.sets import csv
from trainer.config import load
from trainer.data import Split
from trainer.forecast.evaluate import evaluate
from trainer.forecast.forecaster import Forecaster
from trainer.forecast.scores import MODEL
from trainer.logs.metrics import Row, read_metrics
from trainer.prepare import prepare

RECIPE = TINY.parent / "pretrain_small.yaml"


def table(folder: Path, name: str, seed: int, items: int = 3) -> Path:
    """Write hourly series with a daily wave, of several scales and lengths."""
    rng = np.random.default_rng(seed)
    frames = []
    for item in range(items):
        hours = np.arange(260 - 40 * item)
        values = 10.0 ** (item + 1) * (
            3 + np.sin(hours * np.pi / 12) + 0.2 * rng.normal(size=len(hours))
        )
        times = pd.date_range("2024-01-01", periods=len(hours), freq="h")
        frames.append(pd.DataFrame({"item": f"{name} {item}", "time": times, "load": values}))
    return csv(folder, pd.concat(frames), f"{name}.csv")


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return changes to tiny: trained on some series, scored on others."""
    return {
        "data.source": str(table(folder, "trained", 0)),
        "data.validate_on": [str(table(folder, "others", 1))],
        "data.id_column": "item",
        "data.rows": None,
        "data.targets": None,
        "data.covariates": [],
        "data.calendar": [],
        "data.timezone": None,
        "model.loss": "quantile",
        "logging.validate_every": 2,
        "logging.tensorboard": False,
        "train.steps": 6,
        **changes,
    }


@pytest.mark.parametrize("layout", [{}, {"parallel.pipeline": 2}])
def test_a_row_has_the_scores_that_evaluate_gives(tmp_path: Path, layout: dict[str, Any]) -> None:
    world = 2 if layout else 1
    rows = ranks.run(train_rank, world, tmp_path / "run", settings(tmp_path, **layout))[0]
    assert [row["step"] for row in rows if "zero_shot/others/mase" in row] == [2, 4, 6]
    forecaster = Forecaster.load(tmp_path / "run")
    others = forecaster.dataset_of(
        {"data.source": str(tmp_path / "others.csv"), "data.split_last": [0, 32]}
    )
    result = evaluate(
        others,
        Split.TEST,
        forecaster.predict_windows,
        batch_size=4,
        levels=forecaster.network.output.levels,
    )
    scores = result.scores()
    assert result.windows == 3
    for key in ("mase", "wql"):
        assert rows[-1][f"zero_shot/others/{key}"] == pytest.approx(scores[MODEL][key], rel=1e-5)
    naive = scores["seasonal naive (24)"]["mase"]
    assert rows[-1]["zero_shot/others/naive_mase"] == pytest.approx(naive, rel=1e-5)
    assert forecaster.facts.trained_on(others.facts) == []
    (sentence,) = forecaster.facts.trained_on(forecaster.dataset.facts)
    assert sentence.startswith("trained.csv was trained on: ")


def test_what_is_trained_on_is_not_zero_shot(tmp_path: Path) -> None:
    trained = settings(tmp_path)["data.source"]
    short = csv(tmp_path, pd.read_csv(trained).groupby("item").head(20), "short.csv")
    wide = pd.read_csv(trained).assign(heat=lambda frame: frame["load"] * 2)
    others = settings(tmp_path)["data.validate_on"][0]
    for named, sentence in (
        ([trained], "trained.csv is trained on; name others"),
        ([str(short)], "has no series of data.prediction_length points and one before"),
        ([str(csv(tmp_path, wide, "wide.csv"))], "another number of channels"),
        ([others, others], "has the name others, which another has"),
        ([str(tmp_path / "gone.csv")], "gone.csv"),
    ):
        with pytest.raises(UserError, match=sentence):
            planned(tmp_path / "run", settings(tmp_path, **{"data.validate_on": named}))


def test_the_recipe_trains(tmp_path: Path) -> None:
    """On made series and one's own, with contexts and horizons that vary."""
    made = {"synthetic": {"kind": "structured", "items": 50, "length": 700}, "weight": 1.0}
    own = {"path": settings(tmp_path)["data.source"], "weight": 1.0}
    changes = {
        "data.source": [made, own],
        "data.validate_on": settings(tmp_path)["data.validate_on"],
        "data.id_column": "item",
        "train.steps": 4,
        "train.global_batch_size": 8,
        "train.micro_batch_size": 4,
        "logging.validate_every": 4,
    }
    rows = ranks.run(_train_recipe, 1, tmp_path / "run", changes)[0]
    assert len({row["context_length"] for row in rows}) > 1
    assert all(np.isfinite(row["loss"]) and 0 <= row["padding"] < 1 for row in rows)
    assert rows[-1]["zero_shot/others/wql"] > 0


def _train_recipe(rank: int, world: int, run: Path, changes: dict[str, Any]) -> list[Row]:
    train_plan(prepare(load(RECIPE, changes), run_dir=run, world=world), rank)
    return read_metrics(run / "metrics.jsonl")
