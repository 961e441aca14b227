"""A run that was stopped goes on as if it had not been."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from model.errors import UserError
from tests import ranks
from tests.settings import tiny, train_rank
from trainer.metrics import MetricsLog, Row, read_metrics
from trainer.prepare import prepare
from trainer.run import RunFolder

QUICK: dict[str, Any] = {"data.rows": 800, "logging.tensorboard": False, "train.steps": 8,
                         "model.dropout": 0.1}  # fmt: skip


def told(rows: list[Row]) -> list[tuple[float, ...]]:
    """What must not depend on interruptions."""
    keys = ("step", "loss", "aux_loss", "grad_norm", "learning_rate", "samples")
    return [tuple(row[key] for key in keys) for row in rows]


def _train_and_signal(
    rank: int, world: int, run: Path, overrides: dict[str, Any], at: int, number: int
) -> str:
    """Train; rank 1 of 2, or 0 of 1, gets a signal in step `at`."""
    from trainer.engine import Engine
    from trainer.loop import train
    from trainer.prepare import prepare

    original = Engine.train_step

    def step(self: Engine, number_of_step: int, batches: Any) -> Any:
        if number_of_step == at and rank == world - 1:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # twice is once
        return original(self, number_of_step, batches)

    Engine.train_step = step  # type: ignore[method-assign]
    configuration = tiny(**{k.replace(".", "__"): v for k, v in overrides.items()})
    return str(train(prepare(configuration, run_dir=run, world=world), rank, rank))


@pytest.mark.parametrize(("number", "world", "layout"), [
    (signal.SIGTERM, 1, {}),
    (signal.SIGINT, 2, {"parallel.pipeline": 2}),
    (signal.SIGUSR1, 2, {"train.precision": "bf16"}),
])  # fmt: skip
def test_a_signal_on_any_rank_saves_and_the_run_goes_on_bit_for_bit(
    tmp_path: Path, number: int, world: int, layout: dict[str, Any]
) -> None:
    settings = {**QUICK, **layout}
    outcomes = ranks.run(_train_and_signal, world, tmp_path / "cut", settings, 3, number)
    assert outcomes == ["saved"] * world
    assert (tmp_path / "cut" / "saved").read_text() == "step 3\n"
    assert len(read_metrics(tmp_path / "cut" / "metrics.jsonl")) == 3
    resumed = ranks.run(train_rank, world, tmp_path / "cut", settings)[0]
    straight = ranks.run(train_rank, world, tmp_path / "straight", settings)[0]
    assert told(resumed) == told(straight)
    assert not (tmp_path / "cut" / "saved").exists() and (tmp_path / "cut" / "done").exists()
    scores = [json.loads((tmp_path / name / "evaluation.json").read_text())["scores"]
              for name in ("cut", "straight")]  # fmt: skip
    assert scores[0] == scores[1]


def _train_and_die(rank: int, world: int, run: Path, overrides: dict[str, Any], at: int) -> None:
    """Train; in step `at` every rank is killed."""
    from trainer.engine import Engine

    original = Engine.train_step

    def step(self: Engine, number: int, batches: Any) -> Any:
        if number == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, number, batches)

    Engine.train_step = step  # type: ignore[method-assign]
    train_rank(rank, world, run, overrides)


def test_after_a_kill_the_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    settings = {**QUICK, "checkpoint.every": 3, "parallel.pipeline": 2}
    with pytest.raises(ranks.RanksFailedError):
        ranks.run(_train_and_die, 2, tmp_path / "cut", settings, 6)
    assert len(read_metrics(tmp_path / "cut" / "metrics.jsonl")) == 5
    assert not (tmp_path / "cut" / "done").exists() and not (tmp_path / "cut" / "saved").exists()
    resumed = ranks.run(train_rank, 2, tmp_path / "cut", settings)[0]
    straight = ranks.run(train_rank, 2, tmp_path / "straight", settings)[0]
    assert told(resumed) == told(straight)


def test_another_layout_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    settings = {**QUICK, "model.dropout": 0.0, "checkpoint.every": 4}
    straight = ranks.run(train_rank, 1, tmp_path / "straight", settings)[0]
    run = tmp_path / "moved"
    ranks.run(train_rank, 2, run, {**settings, "train.steps": 4, "parallel.pipeline": 2})
    # The cosine ends at train.steps: take up the straight run's schedule from its own checkpoint.
    point = str(tmp_path / "straight" / "checkpoints" / "step-00000004")
    moved = ranks.run(
        train_rank, 4, tmp_path / "other",
        {**settings, "parallel.pipeline": 2, "train.micro_batch_size": 2, "resume": point},
    )[0]  # fmt: skip
    assert [row["step"] for row in moved] == [5, 6, 7, 8]
    assert [row["loss"] for row in moved] == pytest.approx(
        [row["loss"] for row in straight[4:]], rel=1e-5
    )


def test_a_finished_run_says_so_and_more_steps_go_on(tmp_path: Path, capfd: Any) -> None:
    ranks.run(train_rank, 1, tmp_path / "run", QUICK)
    plan = prepare(
        tiny(**{k.replace(".", "__"): v for k, v in QUICK.items()}), run_dir=tmp_path / "run"
    )
    assert plan.is_done
    rows = ranks.run(train_rank, 1, tmp_path / "run", {**QUICK, "train.steps": 10})[0]
    assert [row["step"] for row in rows] == list(range(1, 11))


@pytest.mark.parametrize(("change", "message"), [
    ({"model__d_model": 64}, r"model\.d_model is 32 there and 64 here"),
    ({"train__seed": 1}, r"train\.seed is 0 there and 1 here"),
    ({"train__global_batch_size": 32, "data__rows": 900}, r"rows is 800 .*batch_size is 16"),
])  # fmt: skip
def test_a_run_folder_of_another_configuration_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    settings = tiny(data__rows=800)
    import yaml

    run.config_file.write_text(yaml.safe_dump(settings.settings.model_dump()))
    prepare(tiny(data__rows=800, parallel__pipeline=2, train__steps=3), run_dir=run.path, world=2)
    with pytest.raises(UserError, match=message):
        prepare(tiny(**{"data__rows": 800, **change}), run_dir=run.path)
    with pytest.raises(UserError, match="holds a run already"):
        prepare(settings, run_dir=run.path, resume="never")
    with pytest.raises(UserError, match=r"--resume: .* is no checkpoint"):
        prepare(settings, run_dir=run.path, resume=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("where", ["/proc/forescale", "/dev/null/run"])
def test_an_unwritable_run_folder_is_refused(where: str) -> None:
    with pytest.raises(UserError, match="--run-dir: cannot write in /"):
        prepare(tiny(), run_dir=Path(where))
    assert not Path(where).exists()


def test_missing_values_are_told_and_trained_around(tmp_path: Path) -> None:
    hours = pd.date_range("2024-01-01", periods=600, freq="h")
    table = pd.DataFrame({"date": hours, "load": np.sin(np.arange(600) / 4)})
    table.loc[40:90, "load"] = np.nan
    table.loc[300:305, "load"] = np.nan
    table.to_csv(tmp_path / "s.csv", index=False)
    settings = {**QUICK, "data.source": str(tmp_path / "s.csv"), "data.targets": ["load"],
                "data.covariates": [], "parallel.pipeline": 2}  # fmt: skip
    rows = ranks.run(_train_loudly, 2, tmp_path / "run", settings)
    assert rows[0].count("data: load: 57 of 600 values are missing; they are masked") == 1
    assert "missing" not in rows[1]
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 8 and np.isfinite(losses).all()


def _train_loudly(rank: int, world: int, run: Path, overrides: dict[str, Any]) -> str:
    """What this rank prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        train_rank(rank, world, run, overrides)
    return said.getvalue()


def test_metrics_go_on_after_a_line_that_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n{"step": 3, "lo')
    log = MetricsLog(tmp_path, 1, tensorboard=False)
    log.write({"step": 2, "loss": 0.25})
    log.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(file)] == [(1, 1.0), (2, 0.25)]
