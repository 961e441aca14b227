"""Any checkpoint loads on any layout, and the same layout goes on bit for bit."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import ranks
from tests.layouts.layouts import ADAPTED, AXES, BIAS, TIED
from tests.report import note_difference
from tests.settings import made_trainer, planned, train_rank
from trainer.checkpoint.saver import Saver
from trainer.checkpoint.store import Checkpoint, Store
from trainer.checkpoint.tensor_files import read, tensor_shapes
from trainer.logs.metrics import Row, read_metrics, without_machine

SAVED, STEPS = 2, 4

SETTINGS: dict[str, Any] = {
    "train.steps": STEPS,
    "train.warmup_steps": 1,
    "train.learning_rate": 1e-3,
    "data.rows": 600,
    "data.split": [0.9, 0.1, 0.0],
    "checkpoint.every": SAVED,
    "checkpoint.keep": 9,
    "logging.tensorboard": False,
}

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "one, micro 16": (1, {"micro": 16}),
    "dp2": (2, {}),
    "dp2 zero2": (2, {"zero": 2}),
    "dp2 zero3": (2, {"zero": 3}),
    "dp2 offloaded": (2, {"offload": "cpu"}),
    "pp2": (2, {"pp": 2}),
    "tp2": (2, {"tp": 2}),
    "ep2": (2, {"ep": 2}),
    "tp2 zero3": (2, {"tp": 2, "zero": 3}),
    "dp3": (3, {"micro": 4, "batch": 12}),
    "pp4": (4, {"pp": 4}),
    "tp4": (4, {"tp": 4}),
    "ep4 zero2": (4, {"ep": 4, "zero": 2}),
    "pp2 tp2 ep2": (4, {"pp": 2, "tp": 2, "ep": 2}),
    "dp4 zero3": (4, {"zero": 3}),
    "pp2 tp2 ep4 dp2": (8, {"pp": 2, "tp": 2, "ep": 4}),
    "pp4 dp2 ep2": (8, {"pp": 4, "ep": 2}),
    "tp2 dp4 zero2 ep8": (8, {"tp": 2, "ep": 4, "zero": 2, "micro": 2}),
}

PAIRS: list[tuple[str, str, dict[str, Any]]] = [
    # one axis at a time, there and back
    *(
        (a, b, {})
        for layout in (
            "dp2",
            "dp2 zero2",
            "dp2 zero3",
            "dp2 offloaded",
            "pp2",
            "tp2",
            "ep2",
            "pp4",
            "tp4",
            "ep4 zero2",
        )
        for a, b in (("one", layout), (layout, "one, micro 16"))
    ),
    ("dp2", "dp2 zero3", {}),
    ("dp2 zero3", "dp2 zero2", {}),
    ("dp4 zero3", "dp2 zero3", {}),
    ("pp2", "pp4", {}),
    ("pp4", "pp2", {}),
    ("tp4", "tp2", {}),
    ("ep4 zero2", "ep2", {}),
    # all at once
    ("pp2 tp2 ep4 dp2", "dp4 zero3", {}),
    ("dp4 zero3", "pp2 tp2 ep4 dp2", {}),
    ("pp4 dp2 ep2", "tp2 dp4 zero2 ep8", {}),
    ("tp2 dp4 zero2 ep8", "pp4 dp2 ep2", {}),
    ("tp2 zero3", "pp2 tp2 ep2", {}),
    ("pp2 tp2 ep2", "one", {}),
    # what has buffers, and layers that several stages hold
    ("pp2 tp2 ep2", "dp2 zero3", BIAS),
    ("one", "pp4 dp2 ep2", BIAS),
    ("pp4", "dp2", TIED),
    ("dp2 zero3", "pp2", TIED),
    ("pp2", "pp4", TIED),
    # what is kept of weights that are not trained
    ("pp2 tp2 ep2", "dp2 zero3", ADAPTED),
    ("dp2 zero3", "pp2 tp2 ep2", ADAPTED),
]


SLOW = (
    "one -> dp2 zero2",
    "one -> pp4",
    "pp4 -> one, micro 16",
    "one -> tp4",
    "tp4 -> one, micro 16",
    "pp2 tp2 ep2 -> one",
)
"""Pairs that repeat what others here do between other layouts of the same axes."""


def is_slow(source: str, target: str) -> bool:
    """Whether a pair is left to the slow tests, as those of eight ranks are."""
    return f"{source} -> {target}" in SLOW or 8 in (LAYOUTS[source][0], LAYOUTS[target][0])


def changes(layout: str, model: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    world, axes = LAYOUTS[layout]
    moved = {AXES[axis]: value for axis, value in axes.items()}
    return world, SETTINGS | moved | {f"model.{key}": value for key, value in model.items()}


@cache
def saved(folder: Path, layout: str, model: tuple[tuple[str, Any], ...]) -> tuple[Path, list[Row]]:
    """A checkpoint of step SAVED, and the rows of the run that goes on on the layout."""
    world, settings = changes(layout, dict(model))
    run = folder / f"{layout}{len(model)}"
    rows = ranks.run(train_rank, world, run, settings)[0]
    return run / "checkpoints" / f"step-{SAVED:08d}", rows


def _load(rank: int, world: int, settings: dict[str, Any], source: Path, run: Path) -> list[Row]:
    """Load `source`, write what has been loaded to `run/again`, and train to the last step."""
    plan = planned(run, {**settings, "resume": "never"}, world)
    # Whatever settings it is of.
    plan = replace(plan, start=replace(plan.start, checkpoint=Checkpoint(source)))
    with made_trainer(plan, rank) as trainer:
        config, engine = trainer.settings.checkpoint, trainer.engine
        again = Saver(Store(run / "again"), trainer.mesh, config, engine.shapes, lambda: True)
        again.save(SAVED, engine.state(), {})
        assert again.wait()
        trainer.run()
    return read_metrics(run / "metrics.jsonl") if rank == 0 else []


def everything(checkpoint: Path) -> dict[str, torch.Tensor]:
    state = {name: torch.zeros(shape) for name, shape in tensor_shapes(checkpoint).items()}
    read(checkpoint, state, alone=True)
    return state


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saved")


@pytest.mark.parametrize(
    ("source", "target", "model"),
    [
        pytest.param(
            a,
            b,
            m,
            id=f"{a} -> {b}{' +' * bool(m)}",
            marks=[
                pytest.mark.xdist_group(a),
                *([pytest.mark.slow] if is_slow(a, b) else []),
            ],
        )
        for a, b, m in PAIRS
    ],
)
def test_what_one_layout_saves_another_loads_and_goes_on_with(
    tmp_path: Path, folder: Path, source: str, target: str, model: dict[str, Any]
) -> None:
    checkpoint, straight = saved(folder, source, tuple(model.items()))
    world, settings = changes(target, model)
    rows = ranks.run(_load, world, settings, checkpoint, tmp_path / "run")[0]
    before, after = (
        everything(path) for path in (checkpoint, tmp_path / "run" / "again" / checkpoint.name)
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
        assert tensor.abs().max() > 0 or "bias" in name, name
    assert [row["step"] for row in rows] == [3, 4]
    for ours, theirs in zip(rows, straight[SAVED:], strict=True):
        difference = abs(ours["loss"] - theirs["loss"]) / theirs["loss"]
        note_difference("loss after loading", difference, f"{source} -> {target}")
        assert difference < 1e-6


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("pp2", "dp2 zero3"),
        pytest.param("dp2 zero2", "pp2 tp2 ep2", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "precisions",
    [
        ("fp32", "bf16"),
        *(pytest.param(p, marks=pytest.mark.slow) for p in (("bf16", "fp32"), ("bf16", "bf16"))),
    ],
)
def test_weights_of_either_precision_load_into_the_other(
    tmp_path: Path, source: str, target: str, precisions: tuple[str, str]
) -> None:
    """What is kept is fp32 on both sides, so it is bit-equal."""
    world, settings = changes(source, {})
    settings = {**settings, "train.precision": precisions[0], "train.steps": SAVED}
    ranks.run(train_rank, world, tmp_path / "first", settings)
    checkpoint = tmp_path / "first" / "checkpoints" / f"step-{SAVED:08d}"
    world, settings = changes(target, {})
    settings = {**settings, "train.precision": precisions[1]}
    rows = ranks.run(_load, world, settings, checkpoint, tmp_path / "run")[0]
    before, after = (
        everything(path) for path in (checkpoint, tmp_path / "run" / "again" / checkpoint.name)
    )
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(0.0 < row["loss"] < 2.0 for row in rows)


def _die_at(rank: int, world: int, run: Path, settings: dict[str, Any], step: int) -> None:
    """Train; every rank is killed when it comes to `step`."""

    def on_step(number: int) -> None:
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)

    train_rank(rank, world, run, settings, on_step=on_step)


@pytest.mark.parametrize(
    ("world", "layout"),
    [
        pytest.param(1, {}, marks=pytest.mark.slow),
        (2, {"parallel.pipeline": 2, "train.precision": "bf16"}),
        pytest.param(
            2,
            {"parallel.zero_stage": 3, "parallel.activation_checkpointing": "block"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            4,
            {"parallel.tensor": 2, "parallel.expert": 4, "parallel.zero_stage": 2},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            4,
            {
                "parallel.pipeline": 2,
                "parallel.tensor": 2,
                "train.precision": "bf16",
                "model.share_layers": True,
                "model.num_layers": 4,
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            2,
            {"parallel.zero_stage": 3, "train.precision": "bf16", "model.lora_rank": 4},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_20_steps_after_a_kill_are_bit_equal(
    tmp_path: Path, world: int, layout: dict[str, Any]
) -> None:
    """With experts, dropout, router noise and a bias that balances; saved asynchronously."""
    settings = {
        **SETTINGS,
        **layout,
        "train.steps": 28,
        "checkpoint.every": 4,
        "model.dropout": 0.1,
        "model.attention_dropout": 0.1,
        "model.router_noise": 0.1,
        "model.balance_rate": 0.05,
        "model.router_score": "sigmoid",
    }
    with pytest.raises(ranks.RanksFailedError):
        ranks.run(_die_at, world, tmp_path / "cut", settings, 12)
    newest = max((tmp_path / "cut" / "checkpoints").glob("step-*"))
    assert newest.name in ("step-00000004", "step-00000008")
    resumed = ranks.run(train_rank, world, tmp_path / "cut", settings)[0]
    straight = ranks.run(train_rank, world, tmp_path / "straight", settings)[0]
    assert len(straight) == 28
    assert without_machine(resumed) == without_machine(straight)
