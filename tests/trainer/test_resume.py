"""A run that was stopped goes on as if it had not been."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from model.errors import UserError
from tests import ranks
from tests.settings import tiny, train_rank
from trainer.checkpoint.manifest import entry, read_manifest, write_manifest
from trainer.checkpoint.saver import Phase
from trainer.config import Configuration
from trainer.logs.metrics import MetricsLog, Row, read_metrics
from trainer.prepare import prepare
from trainer.run.folder import RunFolder
from trainer.run.lease import Attempt, acquire

QUICK: dict[str, Any] = {
    "data.rows": 800,
    "logging.tensorboard": False,
    "train.steps": 8,
    "model.dropout": 0.1,
}


def told(rows: list[Row]) -> list[tuple[float, ...]]:
    """What must not depend on interruptions."""
    keys = ("step", "loss", "aux_loss", "grad_norm", "learning_rate", "samples")
    return [tuple(row[key] for key in keys) for row in rows]


def _train_and_signal(
    rank: int, world: int, run: Path, overrides: dict[str, Any], at: int, number: int
) -> str:
    """Train; rank 1 of 2, or 0 of 1, gets a signal in step `at`."""
    from trainer.engine.engine import Engine
    from trainer.job import train
    from trainer.prepare import prepare

    original = Engine.train_step

    def step(self: Engine, number_of_step: int, *batches: Any) -> Any:
        if number_of_step == at and rank == world - 1:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # twice is once
        return original(self, number_of_step, *batches)

    Engine.train_step = step  # type: ignore[method-assign]
    configuration = tiny(**{k.replace(".", "__"): v for k, v in overrides.items()})
    return str(train(prepare(configuration, run_dir=run, world=world), rank, rank, world))


@pytest.mark.parametrize(
    ("number", "world", "layout"),
    [
        (signal.SIGTERM, 1, {}),
        (signal.SIGINT, 2, {"parallel.pipeline": 2}),
        (signal.SIGUSR1, 2, {"train.precision": "bf16"}),
    ],
)
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
    scores = [
        json.loads((tmp_path / name / "evaluation.json").read_text())["scores"]
        for name in ("cut", "straight")
    ]
    assert scores[0] == scores[1]


def _signal_while_evaluating(
    rank: int, world: int, run: Path, overrides: dict[str, Any], split: str
) -> str:
    """The last rank gets SIGUSR1 at the fifth batch of `split` that it evaluates."""
    import trainer.job
    import trainer.loop
    from trainer.data import Dataset

    trainer.loop.CHUNK = 2
    original, seen = Dataset.batch, 0

    def batch(self: Dataset, of: Any, *arguments: Any) -> Any:
        nonlocal seen
        seen += str(of) == split
        if seen == 5 and rank == world - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(self, of, *arguments)

    Dataset.batch = batch  # type: ignore[method-assign]
    plan = prepare(configured(**overrides), run_dir=run, world=world)
    return str(trainer.job.train(plan, rank, rank, world))


@pytest.mark.parametrize(("split", "steps"), [("validation", 2), ("test", 8)])
@pytest.mark.parametrize(
    "layout", [pytest.param({}, marks=pytest.mark.slow), {"parallel.pipeline": 2}]
)
def test_a_signal_while_evaluating_is_heard(
    tmp_path: Path, split: str, steps: int, layout: dict[str, Any]
) -> None:
    """What was not scored is scored after the resume: no number is lost."""
    settings = {**QUICK, "logging.validate_every": 2, "train.micro_batch_size": 2, **layout}
    run = tmp_path / "cut"
    outcomes = ranks.run(_signal_while_evaluating, 2, run, settings, split)
    assert outcomes == ["saved", "saved"]
    assert (run / "saved").read_text() == f"step {steps}\n"
    rows = read_metrics(run / "metrics.jsonl")
    assert len(rows) == steps and ("validation_mse" in rows[-1]) == (split == "test")
    assert not (run / "evaluation.json").exists()
    resumed = ranks.run(train_rank, 2, run, settings)[0]
    straight = ranks.run(train_rank, 2, tmp_path / "straight", settings)[0]
    assert told(resumed) == told(straight)
    scores = [[row.get("validation_mse") for row in rows] for rows in (resumed, straight)]
    assert scores[0] == scores[1] and sum(s is not None for s in scores[0]) == 4
    evaluations = [(r / "evaluation.json").read_text() for r in (run, tmp_path / "straight")]
    assert evaluations[0] == evaluations[1]
    assert (run / "done").exists() and not (run / "saved").exists()


def _train_and_die(
    rank: int, world: int, run: Path, overrides: dict[str, Any], where: str, at: int
) -> None:
    """Train; every rank is killed when it comes to `where` for the time number `at`."""
    calls: Counter[str] = Counter()

    def reach(point: object) -> None:
        calls[str(point)] += 1
        if point == where and calls[where] == at:
            os.kill(os.getpid(), signal.SIGKILL)

    train_rank(
        rank,
        world,
        run,
        overrides,
        on_step=lambda step: reach("step"),
        on_phase=lambda phase, step: reach(phase),
    )


@pytest.mark.parametrize(
    ("where", "at", "steps_seen", "resumes_at"),
    [
        ("step", 6, 5, 3),  # between checkpoints
        (Phase.WRITING, 2, 6, 3),  # in the second save, before a byte is written
        (Phase.RENAMING, 2, 6, 3),  # all is written, the rename is next
        (Phase.TIDYING, 2, 6, 6),  # the rename is done, `latest` is not
    ],
)
def test_after_a_kill_the_run_goes_on_from_its_last_commit(
    tmp_path: Path, where: str, at: int, steps_seen: int, resumes_at: int
) -> None:
    settings = {
        **QUICK,
        "checkpoint.every": 3,
        "parallel.pipeline": 2,
        "checkpoint.asynchronous": False,
    }
    with pytest.raises(ranks.RanksFailedError):
        ranks.run(_train_and_die, 2, tmp_path / "cut", settings, where, at)
    run = RunFolder(tmp_path / "cut")
    assert len(read_metrics(run.path / "metrics.jsonl")) == steps_seen
    assert not (run.path / "done").exists() and not (run.path / "saved").exists()
    newest = run.store.newest()
    assert newest is not None and newest.step == resumes_at
    resumed = ranks.run(train_rank, 2, run.path, settings)[0]
    straight = ranks.run(train_rank, 2, tmp_path / "straight", settings)[0]
    assert told(resumed) == told(straight)
    assert not list(run.store.folder.glob(".*"))


def test_another_layout_goes_on_from_a_given_checkpoint(tmp_path: Path) -> None:
    settings = {**QUICK, "model.dropout": 0.0, "checkpoint.every": 4}
    straight = ranks.run(train_rank, 1, tmp_path / "straight", settings)[0]
    point = str(tmp_path / "straight" / "checkpoints" / "step-00000004")
    layout = {"parallel.pipeline": 2, "train.micro_batch_size": 2, "resume": point}
    moved = ranks.run(train_rank, 4, tmp_path / "other", {**settings, **layout})[0]
    assert [row["step"] for row in moved] == [5, 6, 7, 8]
    assert [row["loss"] for row in moved] == pytest.approx(
        [row["loss"] for row in straight[4:]], rel=1e-5
    )


def configured(**changes: Any) -> Configuration:
    return tiny(**{key.replace(".", "__"): value for key, value in {**QUICK, **changes}.items()})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps with checkpoints at 4 and 8."""
    run = tmp_path_factory.mktemp("finished") / "run"
    ranks.run(train_rank, 1, run, {**QUICK, "checkpoint.every": 4})
    return run


def test_a_finished_run_is_done_and_more_steps_go_on(finished: Path, tmp_path: Path) -> None:
    assert prepare(configured(), run_dir=finished).start.is_done
    longer = tmp_path / "longer"
    shutil.copytree(finished, longer)
    rows = ranks.run(train_rank, 1, longer, {**QUICK, "train.steps": 10})[0]
    assert [row["step"] for row in rows] == list(range(1, 11))
    (longer / "done").unlink()
    with pytest.raises(UserError, match=r"has made 10 steps already, not 9"):
        prepare(configured(**{"train.steps": 9}), run_dir=longer)


def test_going_another_way_takes_another_folder(finished: Path, tmp_path: Path) -> None:
    point = str(finished / "checkpoints" / "step-00000004")
    with pytest.raises(UserError, match=r"has gone on to step-00000008; choose another --run-dir"):
        prepare(configured(), run_dir=finished, resume=point)
    assert prepare(configured(), run_dir=tmp_path / "new", resume=point).start.steps_done == 4
    with pytest.raises(UserError, match=r"is of other settings: train\.seed is 0 there and 1 here"):
        prepare(configured(**{"train.seed": 1}), run_dir=tmp_path / "new", resume=point)


def test_changed_data_is_noticed(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    file = run / "checkpoints" / "step-00000008" / "checkpoint.json"
    file.write_text(file.read_text().replace(json.loads(file.read_text())["data"], "other"))
    entries = read_manifest(file.parent) | {file.name: entry(file)}
    (file.parent / "manifest").unlink()
    write_manifest(file.parent, entries)
    with pytest.raises(UserError, match=r"data\.source: vic_elec has changed since"):
        prepare(configured(), run_dir=run)


def test_a_copy_beside_the_checkpoints_is_no_checkpoint(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    folder = run / "checkpoints"
    shutil.copytree(folder / "step-00000008", folder / "step-00000008.bak")
    assert [c.step for c in RunFolder(run).store.committed()] == [4, 8]


def test_a_plan_that_is_out_of_date_is_refused(finished: Path, tmp_path: Path) -> None:
    """Another command has gone on in the folder between the look and the start."""
    from trainer.job import train

    run = shutil.copytree(finished, tmp_path / "run")
    plan = prepare(configured(**{"train.steps": 9}), run_dir=run)
    ranks.run(train_rank, 1, run, {**QUICK, "train.steps": 10})
    with pytest.raises(UserError, match="has gone on to step-00000010 since this command looked"):
        train(plan)
    assert (run / "done").exists()


def test_rows_that_are_missing_are_told(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[2] = b"\xff\xfe garbled\n"
    (run / "metrics.jsonl").write_bytes(b"".join(lines))
    log = MetricsLog(run, 8, tensorboard=False)
    log.close()
    assert "1 of 8 steps have no row" in caplog.text
    assert [r["step"] for r in read_metrics(run / "metrics.jsonl")] == [1, 2, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("switch", ["stop", "save"])
def test_files_in_the_run_folder_ask_for_a_stop_or_a_save(tmp_path: Path, switch: str) -> None:
    run = tmp_path / "run"
    outcome = ranks.run(_train_and_touch, 2, run, {**QUICK, "parallel.pipeline": 2}, 3, switch)
    steps = [c.step for c in RunFolder(run).store.committed()]
    if switch == "save":
        assert outcome == ["done", "done"] and steps == [3, 8] and not (run / "save").exists()
        return
    assert outcome == ["saved", "saved"] and steps == [3]
    with pytest.raises(UserError, match="asks this run to stand still; remove it to go on"):
        prepare(configured(**{"parallel.pipeline": 2}), run_dir=run, world=2)
    (run / "stop").unlink()
    rows = ranks.run(train_rank, 2, run, {**QUICK, "parallel.pipeline": 2})[0]
    assert [row["step"] for row in rows] == list(range(1, 9))


def _train_and_touch(
    rank: int, world: int, run: Path, overrides: dict[str, Any], at: int, switch: str
) -> str:
    """Train; the file appears in step `at`."""
    import trainer.run.control_files
    from trainer.engine.engine import Engine
    from trainer.job import train

    trainer.run.control_files.SECONDS = 0.0
    original = Engine.train_step

    def step(self: Engine, number: int, *batches: Any) -> Any:
        if number == at and rank == 0:
            (run / switch).touch()
        return original(self, number, *batches)

    Engine.train_step = step  # type: ignore[method-assign]
    return str(train(prepare(configured(**overrides), run_dir=run, world=world), rank, rank, world))


def test_two_runs_cannot_share_a_folder(finished: Path) -> None:
    from trainer.job import train

    plan = prepare(configured(**{"train.steps": 9}), run_dir=finished)
    with (
        acquire(plan.run.path, Attempt("", ())),
        pytest.raises(UserError, match="another process is training"),
    ):
        train(plan)


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files; choose an empty folder"):
        prepare(configured(), run_dir=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__d_model": 64}, r"model\.d_model is 32 there and 64 here"),
        ({"train__seed": 1}, r"train\.seed is 0 there and 1 here"),
        ({"train__global_batch_size": 32, "data__rows": 900}, r"rows is 800 .*batch_size is 16"),
    ],
)
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
    settings = {
        **QUICK,
        "data.source": str(tmp_path / "s.csv"),
        "data.targets": ["load"],
        "data.covariates": [],
        "parallel.pipeline": 2,
    }
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
