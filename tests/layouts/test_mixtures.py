"""A mixture of many series is the same run on any layout, and after it was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from launch.cli import main
from tests import ranks
from tests.settings import told, train_rank
from tests.trainer.data.sets import prepared
from trainer.logs.metrics import Row

STEPS = 6


def corpus(folder: Path) -> list[dict[str, Any]]:
    """Return two sources: many short series of unequal scale, and a few long ones with gaps."""
    rng = np.random.default_rng(0)
    sources = []
    for name, count, points, weight in (
        ("short", 60, (20, 200), 1.0),
        ("long", 3, (900, 1500), 2.0),
    ):
        frames = []
        for number in range(count):
            size = int(rng.integers(*points))
            values = 10.0 ** rng.integers(-2, 5) * (
                np.sin(np.arange(size) / 4) + rng.normal(size=size)
            )
            times = pd.date_range("2024-01-01", periods=size, freq="h")
            frame = pd.DataFrame({"unique_id": f"{name}{number}", "time": times, "y": values})
            frames.append(frame.drop(index=rng.integers(1, size - 1, size // 20)))
        file = folder / f"{name}.parquet"
        pd.concat(frames, ignore_index=True).to_parquet(file)
        sources.append({"path": str(prepared(folder, file).folder), "weight": weight})
    return sources


def settings(sources: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Return tiny's settings for a mixture."""
    return {
        "data.source": sources,
        "data.targets": None,
        "data.covariates": [],
        "data.calendar": [],
        "data.timezone": None,
        "data.rows": None,
        "data.length_exponent": 0.5,
        "data.held_out": 0.1,
        "train.steps": STEPS,
        "logging.tensorboard": False,
        "checkpoint.every": 2,
        **changes,
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[Row]]:
    """Return a mixture, and the rows of its run on one process."""
    folder = tmp_path_factory.mktemp("mixture")
    sources = corpus(folder)
    return sources, ranks.run(train_rank, 1, folder / "run", settings(sources))[0]


@pytest.mark.parametrize(
    ("world", "changes"),
    [
        (4, {"parallel.pipeline": 2}),
        pytest.param(
            2, {"parallel.zero_stage": 3, "train.micro_batch_size": 2}, marks=pytest.mark.slow
        ),
        pytest.param(2, {"parallel.tensor": 2, "parallel.expert": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_layout_changes_nothing(
    alone: tuple[list[dict[str, Any]], list[Row]],
    tmp_path: Path,
    world: int,
    changes: dict[str, Any],
) -> None:
    sources, expected = alone
    rows = ranks.run(train_rank, world, tmp_path / "run", settings(sources, **changes))[0]
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in rows] == pytest.approx(
            [row[name] for row in expected], rel=1e-5
        ), name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_corpus_m4_and_made_series_are_one_run(real_data: Path, tmp_path: Path) -> None:
    """On one process, on 2 x 2 stages and replicas, and after a kill."""
    main(["prepare", str(real_data / "corpus.parquet"), str(tmp_path / "corpus")])
    train, test = (str(real_data / f"Hourly-{part}.csv.gz") for part in ("train", "test"))
    main(["prepare", train, str(tmp_path / "m4"), "--then", test, "data.freq=h"])
    made = {"kind": "structured", "items": 1000, "length": 512}
    mixture = [
        {"path": str(tmp_path / "corpus"), "weight": 2.0},
        {"path": str(tmp_path / "m4"), "weight": 1.0},
        {"synthetic": made, "weight": 1.0},
    ]
    changes = settings(mixture, **{"data.held_out": 0.0, "data.split_last": [32, 0]})
    expected = ranks.run(train_rank, 1, tmp_path / "alone", changes, timeout=200)[0]
    spread = changes | {"parallel.pipeline": 2}
    rows = ranks.run(train_rank, 4, tmp_path / "spread", spread, timeout=200)[0]
    with pytest.raises(ranks.RanksFailedError):
        ranks.run(killed_rank, 1, tmp_path / "killed", changes, timeout=200)
    resumed = ranks.run(train_rank, 1, tmp_path / "killed", changes, timeout=200)[0]
    assert told(resumed) == told(expected)
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in rows] == pytest.approx(
            [row[name] for row in expected], rel=1e-5
        ), name


def kill_at(step: int) -> None:
    """End this rank as a kill would."""
    import os
    import signal

    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)


def killed_rank(rank: int, world: int, run: Path, overrides: dict[str, Any]) -> None:
    """Train until a step at which all ranks are killed."""
    train_rank(rank, world, run, overrides, on_step=kill_at)


def test_a_killed_run_goes_on_bit_for_bit(
    alone: tuple[list[dict[str, Any]], list[Row]], tmp_path: Path
) -> None:
    """And on another number of ranks with the same losses."""
    sources, expected = alone
    for world in (1, 2):
        run = tmp_path / f"run{world}"
        with pytest.raises(ranks.RanksFailedError):
            ranks.run(killed_rank, 1, run, settings(sources))
        rows = ranks.run(train_rank, world, run, settings(sources))[0]
        if world == 1:
            assert told(rows) == told(expected)
        losses = [row["loss"] for row in rows]
        assert losses == pytest.approx([row["loss"] for row in expected], rel=1e-5)
