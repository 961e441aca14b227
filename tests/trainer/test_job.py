"""What a run says of its data and its settings before it begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tests import ranks
from tests.settings import QUICK, words_of
from trainer.logs.metrics import read_metrics


def test_missing_values_are_told_and_trained_around(tmp_path: Path) -> None:
    hours = pd.date_range("2024-01-01", periods=600, freq="h")
    table = pd.DataFrame({"date": hours, "load": np.sin(np.arange(600) / 4)})
    table.loc[40:90, "load"] = np.nan
    table.loc[300:305, "load"] = np.nan
    table.to_csv(tmp_path / "s.csv", index=False)
    settings = {
        **QUICK,
        "data.source": str(tmp_path / "s.csv"),
        "data.targets": ["load"],
        "data.covariates": [],
        "parallel.pipeline": 2,
    }
    said = ranks.run(words_of, 2, tmp_path / "run", settings)
    assert said[0].count("data: load: 57 of 600 values are missing; they are masked") == 1
    assert "missing" not in said[1]
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 8 and np.isfinite(losses).all()
