"""A run on shops, to be evaluated by other libraries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tests.trainer.forecast.test_future import MANY, shops, trained

KINDS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "alone": (["sales"], [], []),
    "together": (["sales", "visits"], [], []),
    "seen": (["sales"], ["price"], ["visits"]),
}
"""Kind of run -> targets, columns known in advance, and columns known up to the present."""


def shops_run(folder: Path, kind: str) -> pd.DataFrame:
    """Train a run of a kind in `folder`/run, and return its table."""
    targets, known, past = KINDS[kind]
    frame = shops(a=200, bb=150, c=60).astype({"day": "datetime64[us]"})
    frame["price"] = np.random.default_rng(1).normal(20, 1, len(frame))
    frame["visits"] = frame["sales"] * 3 + np.random.default_rng(2).normal(size=len(frame))
    frame = frame[["shop", "day", *targets, *known, *past]]
    frame.to_csv(folder / "shops.csv", index=False)
    changes = {
        "data.source": str(folder / "shops.csv"),
        "data.targets": targets,
        "data.covariates": known,
        "data.past_covariates": past,
        "model.channels": "grouped" if past else "independent",
        "data.calendar": ["day_of_week"],
    }
    trained(folder, {**MANY, **changes})
    return frame
