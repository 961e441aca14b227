"""The best checkpoint stays and is used; training ends where nothing better comes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from model.errors import UserError
from tests import ranks
from tests.settings import TINY, train_rank
from trainer.config import load
from trainer.data import Split
from trainer.forecast.evaluate import evaluate
from trainer.forecast.forecaster import Forecaster
from trainer.logs.metrics import read_metrics
from trainer.prepare import prepare
from trainer.run.best import Best
from trainer.run.folder import RunFolder
from trainer.weights.source import find, intact

SETTINGS: dict[str, Any] = {
    "data.rows": 800,
    "train.steps": 31,
    "train.warmup_steps": 1,
    "train.learning_rate": 0.03,  # so high that scores go up and down
    "checkpoint.every": 20,
    "checkpoint.keep": 1,
    "checkpoint.best": "validation_mse",
    "logging.validate_every": 3,
    "logging.tensorboard": False,
}


def rows(*scores: float | None, skipped: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Return rows of steps with these scores; those of `skipped` were skipped."""
    answer: list[dict[str, Any]] = []
    for step, score in enumerate(scores, 1):
        row: dict[str, Any] = {"step": step, "skipped_steps": sum(s <= step for s in skipped)}
        answer.append(row if score is None else {**row, "validation_mse": score})
    return answer


def test_the_lowest_score_is_the_best() -> None:
    best = Best("validation_mse", 3, rows(None, 4.0, None, 2.0, 2.0, 3.0))
    assert best.step == 4 and best.scores == {2: 4.0, 4: 2.0, 5: 2.0, 6: 3.0}
    assert not best.is_final
    for no_number in (float("nan"), None):
        best = Best("validation_mse", 3, rows(None, 4.0, None, 2.0, 2.0, 3.0))
        best.see({"step": 7, "validation_mse": no_number})
        assert best.is_final and best.step == 4
    assert best.see({"step": 8, "validation_mse": 1.0}) and not best.is_final
    assert Best(None, 3, rows(1.0, 2.0, 3.0, 4.0)).step is None


def test_skipped_steps_have_no_score() -> None:
    """They left the weights as they were, and no checkpoint is of them."""
    best = Best("validation_mse", 0, rows(3.0, 2.0, 1.0, 2.5, skipped=(3,)))
    assert best.step == 2 and 3 not in best.scores
    row = rows(3.0, None)[-1]
    best = Best("validation_mse", 0, rows(3.0, None))
    assert best.see({**row, "validation_mse": 1.0}) and best.step == 2  # its row was completed


def best_of(run: Path) -> int:
    rows = read_metrics(run / "metrics.jsonl")
    known = {row["step"]: row["validation_mse"] for row in rows if "validation_mse" in row}
    return min(known, key=lambda step: known[step])


@pytest.mark.parametrize(
    ("world", "changes"),
    [
        (1, {}),
        pytest.param(2, {"parallel.pipeline": 2}, marks=pytest.mark.slow),
        pytest.param(2, {"parallel.zero_stage": 3}, marks=pytest.mark.slow),
        pytest.param(1, {"train.ema_decay": 0.9}, marks=pytest.mark.slow),
        pytest.param(2, {"parallel.zero_stage": 3, "train.ema_decay": 0.9}, marks=pytest.mark.slow),
    ],
)
def test_the_best_stays_and_is_scored_and_used(
    tmp_path: Path, world: int, changes: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    ranks.run(train_rank, world, run, {**SETTINGS, **changes})
    step = best_of(run)
    kept = [checkpoint.step for checkpoint in RunFolder(run).store.committed()]
    assert kept == [step, 31]
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["step"] == step
    forecaster = Forecaster.load(run)
    assert forecaster.step == step
    again = evaluate(
        forecaster.dataset, Split.TEST, forecaster.predict_windows, batch_size=16
    ).scores()
    for name, scores in again.items():
        for key, value in scores.items():
            assert evaluation["scores"][name][key] == pytest.approx(value, rel=1e-5)


def test_another_is_used_where_the_best_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    ranks.run(train_rank, 1, run, {**SETTINGS, "checkpoint.keep": 3, "checkpoint.every": 3})
    store, step = RunFolder(run).store, best_of(run)
    others = [c.step for c in store.committed() if c.step != step]
    scores = {r["step"]: r.get("validation_mse", 1e9) for r in read_metrics(run / "metrics.jsonl")}
    second = min(others, key=lambda one: scores[one])
    part = next(store.checkpoint(step).path.glob("*.distcp"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert find(run).step == step and intact(find(run)).step == second
    part.write_bytes(content[:-1])
    assert find(run).step == second
    shutil.rmtree(store.checkpoint(step).path)
    assert find(run).step == second


@pytest.mark.slow
def test_training_ends_where_nothing_better_comes(tmp_path: Path) -> None:
    """On one rank as on four, and after a stop; and it goes on with more patience."""
    changes = {**SETTINGS, "train.patience": 2, "train.steps": 90}
    ended = {}
    for name, world, layout in (
        ("one", 1, {}),
        ("four", 4, {"parallel.pipeline": 2}),
    ):
        run = tmp_path / name
        ranks.run(train_rank, world, run, {**changes, **layout})
        last = read_metrics(run / "metrics.jsonl")[-1]["step"]
        assert last < 90 and best_of(run) == last - 6 and (run / "done").exists()
        assert json.loads((run / "evaluation.json").read_text())["step"] == last - 6
        ended[name] = last
    assert ended["one"] == ended["four"]
    run = tmp_path / "one"
    configuration = load(run / "config.yaml")
    assert prepare(configuration, run_dir=run).start.is_done
    (run / "done").unlink()  # as if it had been killed while it scored
    ranks.run(train_rank, 1, run, {**changes})
    assert read_metrics(run / "metrics.jsonl")[-1]["step"] == ended["one"]
    ranks.run(train_rank, 1, run, {**changes, "train.patience": 4})
    assert read_metrics(run / "metrics.jsonl")[-1]["step"] > ended["one"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoint.best": None, "train.patience": 2}, "train.patience: no score says what is"),
        ({"logging.validate_every": 0}, "checkpoint.best: no validation has validation_mse; set"),
        ({"checkpoint.best": "loss"}, "no validation has loss; it may be validation_mse"),
        ({"checkpoint.best": "zero_shot/m4/mase"}, "it may be validation_mse"),
    ],
)
def test_a_score_that_no_validation_has_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        prepare(load(TINY, {**SETTINGS, **changes}), run_dir=tmp_path / "run")
