"""The recipes of pre-training can be planned, and have the sizes that they say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from launch.cli import main
from launch.plan import explain
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("name", "world", "millions"),
    [("pretrain_small", 1, 5), ("pretrain_20m", 1, 19), ("pretrain_200m_moe", 8, 185)],
)
def test_a_recipe_has_the_parameters_that_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, world: int, millions: int
) -> None:
    """On a corpus of the reader's own, which lies where the recipe names it."""
    lengths = (4000, 900, 3000)
    series = [np.sin(np.arange(points) / 4).astype(np.float32) for points in lengths]
    corpus = pd.DataFrame({"item_id": list("abc"), "freq": "h", "target": series})
    corpus.to_parquet(tmp_path / "corpus.parquet")
    monkeypatch.chdir(tmp_path)
    main(["prepare", "corpus.parquet", "corpus"])
    config = ROOT / "configs" / f"{name}.yaml"
    known = explain(config, [], world, 8, tmp_path / "run", "auto")
    assert round(known.parameters / 1e6) == millions
    assert re.search(rf"About {millions} million parameters", config.read_text())
