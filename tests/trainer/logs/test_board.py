"""TensorBoard shows a run by its name, its loss first."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from trainer.logs.board import CHARTS, show_command
from trainer.logs.metrics import MetricsLog, Row


def row(step: int) -> Row:
    return {
        "step": step,
        "loss": 0.5 / step,
        "aux_loss": 0.01,
        "grad_norm": 1.0,
        "learning_rate": 1e-3,
        "skipped_steps": 0,
        "samples": 16 * step,
        "step_seconds": 0.1,
        "tokens_per_second": 100.0,
        "points_per_second": 1000.0,
        "encoder.layers.0.mixture/load": [0.75, 0.25],
        "encoder.layers.0.mixture/entropy": 0.6,
        "encoder.layers.0.mixture/drop_rate": 0.0,
        "attention_seconds": [0.01, 0.02],
    }


def written(folder: Path) -> EventMultiplexer:
    return EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()


def test_a_run_has_its_name_and_its_loss_comes_first(tmp_path: Path) -> None:
    folder = tmp_path / "demo" / "tensorboard"
    folder.mkdir(parents=True)
    (folder / "events.out.tfevents.1.host.1.0").touch()  # of an earlier version
    with MetricsLog(tmp_path / "demo" / "metrics.jsonl", 0, tensorboard=folder) as metrics:
        for step in (1, 2):
            metrics.write(row(step))
        metrics.complete({**row(2), "validation_mse": 0.7})
    board = written(folder)
    assert list(board.Runs()) == ["demo"]
    tags = sorted(board.Runs()["demo"]["scalars"])
    assert tags[:2] == ["loss/loss", "loss/validation_mse"]
    assert {"routing/encoder.layers.0.mixture/load/1", "ranks/attention_seconds/0"} < {*tags}
    losses = [(event.step, event.value) for event in board.Scalars("demo", "loss/loss")]
    assert losses == [(1, 0.5), (2, 0.25)]
    assert [event.step for event in board.Scalars("demo", "loss/validation_mse")] == [2]
    assert not list(folder.glob("events*")) and len(list((folder / "demo").iterdir())) == 2


def test_each_chart_has_a_line(tmp_path: Path) -> None:
    folder = tmp_path / "demo" / "tensorboard"
    folder.parent.mkdir()
    with MetricsLog(tmp_path / "demo" / "metrics.jsonl", 0, tensorboard=folder) as metrics:
        scores = {"mase": 0.9, "naive_mase": 1.2, "wql": 0.03}
        zero_shot = {f"zero_shot/m4/{name}": score for name, score in scores.items()}
        metrics.write({**row(1), "validation_mse": 0.7, **zero_shot})
    board = written(folder)
    tags = board.Runs()["demo"]["scalars"]
    for chart in (chart for charts in CHARTS.values() for chart in charts.values()):
        for expression in chart:
            assert any(re.fullmatch(expression, tag) for tag in tags), expression
    [event] = board.Tensors("demo", "custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == list(CHARTS)


def test_a_resumed_run_shows_each_step_once(tmp_path: Path) -> None:
    folder, file = tmp_path / "demo" / "tensorboard", tmp_path / "demo" / "metrics.jsonl"
    folder.parent.mkdir()
    for steps_done, steps in ((0, (1, 2, 3)), (1, (2, 3, 4))):
        with MetricsLog(file, steps_done, tensorboard=folder) as metrics:
            for step in steps:
                metrics.write(row(step))
    assert [event.step for event in written(folder).Scalars("demo", "loss/loss")] == [1, 2, 3, 4]


def test_the_command_that_shows_a_board_can_be_pasted() -> None:
    words = shlex.split(show_command(Path("runs/my run; rm x/tensorboard")))
    assert words[1:] == ["--logdir", "runs/my run; rm x/tensorboard"]
