"""The moving average of the weights: its formula on any layout, and who uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.errors import UserError
from tests import ranks
from tests.settings import UNSCORED, planned, train_rank
from tests.trainer.weights.conftest import weights
from trainer.checkpoint.keys import AVERAGE, WEIGHTS, averaged, make_key, of_kinds
from trainer.checkpoint.tensor_files import read, tensor_shapes
from trainer.data import Split
from trainer.engine.optimizer import GuardedAdamW
from trainer.forecast.evaluate import evaluate
from trainer.forecast.forecaster import Forecaster
from trainer.forecast.scores import MODEL
from trainer.weights.export import export
from trainer.weights.source import find

DECAY = 0.3
SETTINGS: dict[str, Any] = {
    **UNSCORED,
    "train.steps": 4,
    "train.warmup_steps": 1,
    "train.learning_rate": 1e-2,
    "train.ema_decay": DECAY,
    "model.dropout": 0.0,
    "checkpoint.every": 1,
    "checkpoint.keep": 10,
}


def kept(run: Path, step: int, kind: str) -> dict[str, Tensor]:
    """Return what a checkpoint holds of one kind, by the parameters' names."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    shapes = of_kinds(tensor_shapes(folder), kind)
    tensors = {key: torch.empty(shape) for key, shape in shapes.items()}
    read(folder, tensors, alone=True)
    return {key.partition("/")[2]: tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("world", "layout"),
    [
        (1, {}),
        pytest.param(2, {"parallel.zero_stage": 2}, marks=pytest.mark.slow),
        pytest.param(
            2,
            {"parallel.zero_stage": 3, "parallel.offload_optimizer": "cpu"},
            marks=pytest.mark.slow,
        ),
        pytest.param(2, {"train.precision": "bf16"}, marks=pytest.mark.slow),
        (4, {"parallel.pipeline": 2, "parallel.tensor": 2, "parallel.expert": 2}),
    ],
)
def test_it_is_its_formula_on_any_layout(
    tmp_path: Path, world: int, layout: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    ranks.run(train_rank, world, run, {**SETTINGS, **layout})
    average = kept(run, 1, AVERAGE)
    for step in range(2, 5):
        decay = min(DECAY, (1 + step) / (10 + step))
        held, found = kept(run, step, WEIGHTS), kept(run, step, AVERAGE)
        assert held.keys() == found.keys() == average.keys()
        for name, tensor in held.items():
            average[name] = decay * average[name] + (1 - decay) * tensor
            torch.testing.assert_close(found[name], average[name], rtol=1e-6, atol=1e-7)
    assert not any(torch.equal(found[name], held[name]) for name in held if held[name].numel() > 8)


def test_its_first_steps_weigh_more() -> None:
    """The average of one step is that of the first weights and the next ones."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = GuardedAdamW([weight], lr=0.1, fused=True)
    optimizer.ema_decay = 0.999
    before, expected = weight.detach().clone(), weight.detach().clone()
    for step in range(1, 30):
        weight.grad = torch.randn(3)
        optimizer.step()
        decay = min(0.999, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach()
        torch.testing.assert_close(optimizer.state[weight][AVERAGE], expected)
    assert not torch.equal(weight, before)
    held = optimizer.state[weight][AVERAGE].clone()
    optimizer.norm, optimizer.limit = (lambda: float("nan")), 1.0
    optimizer.step()  # is skipped
    assert torch.equal(optimizer.state[weight][AVERAGE], held)


def test_it_goes_on_after_a_stop_on_another_layout(tmp_path: Path) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    ranks.run(train_rank, 1, straight, SETTINGS)
    ranks.run(train_rank, 1, stopped, {**SETTINGS, "train.steps": 4}, timeout=200)
    for step in (3, 4):
        for path in (stopped / "checkpoints" / f"step-{step:08d}").iterdir():
            path.unlink()
        (stopped / "checkpoints" / f"step-{step:08d}").rmdir()
    (stopped / "done").unlink()
    ranks.run(train_rank, 2, stopped, {**SETTINGS, "parallel.pipeline": 2})
    ours, theirs = kept(straight, 4, AVERAGE), kept(stopped, 4, AVERAGE)
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-5, atol=1e-6)


def test_it_is_what_is_scored_exported_and_trained_on_from(tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes = {**SETTINGS, "data.split": [0.7, 0.1, 0.2], "logging.validate_every": 4}
    rows = ranks.run(train_rank, 2, run, changes)[0]
    average, last = kept(run, 4, AVERAGE), kept(run, 4, WEIGHTS)
    forecaster = Forecaster.load(run)
    for name, tensor in weights(forecaster).items():
        if make_key(WEIGHTS, name) in tensor_shapes(run / "checkpoints" / "step-00000004"):
            assert torch.equal(tensor, average[name]), name
    stored = json.loads((run / "evaluation.json").read_text())["scores"][MODEL]["mse"]
    dataset = forecaster.dataset

    def scored(split: Split) -> float:
        return evaluate(dataset, split, forecaster.predict_windows, batch_size=4).scores()[MODEL][
            "mse"
        ]

    assert scored(Split.TEST) == pytest.approx(stored, rel=1e-5)
    assert rows[-1]["validation_mse"] == pytest.approx(scored(Split.VALIDATION), rel=1e-5)
    forecaster.network.load_state_dict(last, strict=False)
    assert scored(Split.TEST) != pytest.approx(stored, rel=1e-4)

    export(find(run), tmp_path / "out")
    exported = weights(Forecaster.load(tmp_path / "out"))
    tuned = tmp_path / "tuned"
    start = {**SETTINGS, "model.init_from": str(run), "train.steps": 1, "train.warmup_steps": 0}
    ranks.run(train_rank, 1, tuned, start | {"train.learning_rate": 1e-12})
    for name, tensor in kept(tuned, 1, WEIGHTS).items():
        assert torch.equal(exported[name], average[name]), name
        torch.testing.assert_close(tensor, average[name], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(kept(tuned, 1, AVERAGE)[name], tensor, rtol=1e-6, atol=1e-9)


def test_keys_of_averages() -> None:
    assert averaged("weights/a.b") == "ema/a.b" and averaged("buffers/a") == "buffers/a"


def test_a_run_that_kept_none_cannot_go_on_with_one(tmp_path: Path) -> None:
    ranks.run(train_rank, 1, tmp_path / "run", {**UNSCORED, "train.steps": 2})
    changes = {**UNSCORED, "train.steps": 3, "train.ema_decay": 0.9}
    with pytest.raises(UserError, match=r"train\.ema_decay"):
        planned(tmp_path / "run", changes)
