"""Whole runs on a GPU: they give the CPU's results, and resume as if they had not stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT
from trainer.logs.metrics import read_metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

BASE = ["train.steps=8", "checkpoint.every=4", "logging.tensorboard=false", "data.rows=800"]

KINDS = {
    "zero 1": [],
    "zero 2": ["parallel.zero_stage=2"],
    "zero 3": ["parallel.zero_stage=3"],
    "offload": ["parallel.offload_optimizer=cpu"],
    "dense": ["model.use_moe=false"],
    "block": ["parallel.activation_checkpointing=block"],
    "selective": ["parallel.activation_checkpointing=selective"],
    "capacity": ["model.capacity_factor=1.0", "model.balance_rate=0.001"],
    "decoder": ["model.architecture=decoder", "model.position=rotary", "model.loss=quantile"],
    "encoder": ["model.architecture=encoder", "model.att_type=flash", "model.dropout=0.1"],
    "frequency": ["model.att_type=frequency", "model.freq_modes=4"],
}


Steps = list[dict[str, Any]]
"""What each step of a run computed."""


def forescale(*arguments: str | Path, visible: str | None = None) -> str:
    """Run the command line in the repository; return what it printed, or fail with it."""
    environment = dict(os.environ)
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    ended = subprocess.run(
        [sys.executable, "-m", "launch", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def train(run: Path, *changes: str, visible: str | None = None) -> Steps:
    """Train configs/tiny.yaml; return what each step computed."""
    forescale("train", "configs/tiny.yaml", "--run-dir", run, *BASE, *changes, visible=visible)
    names = ("step", "loss", "aux_loss", "grad_norm")
    rows = read_metrics(run / "metrics.jsonl")
    return [{name: row[name] for name in names} for row in rows if "loss" in row]


BY_KIND = [pytest.param(kind, marks=pytest.mark.xdist_group(f"gpu {kind}")) for kind in KINDS]
"""One worker runs what shares the run of a kind."""

Straight = Callable[[str], tuple[Path, Steps]]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """Return a function that trains a kind once, and returns the run's folder and steps."""

    @cache
    def run(kind: str) -> tuple[Path, Steps]:
        folder = tmp_path_factory.mktemp("run") / "straight"
        return folder, train(folder, *KINDS[kind])

    return run


@pytest.mark.parametrize("kind", BY_KIND)
def test_a_run_resumes_as_if_it_had_not_stopped(
    tmp_path: Path, straight: Straight, kind: str
) -> None:
    folder, steps = straight(kind)
    source = folder / "checkpoints" / "step-00000004"
    resumed = train(tmp_path / "resumed", *KINDS[kind], "--resume", str(source))
    assert [row["step"] for row in resumed] == [5, 6, 7, 8]
    for ours, theirs in zip(resumed, steps[4:], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("kind", BY_KIND)
def test_the_gpu_computes_what_the_cpu_does(tmp_path: Path, straight: Straight, kind: str) -> None:
    if "model.dropout=0.1" in KINDS[kind]:
        pytest.skip("dropout draws other numbers on a GPU")
    _, gpu = straight(kind)
    cpu = train(tmp_path / "cpu", *KINDS[kind], visible="")
    for ours, theirs in zip(gpu, cpu, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("kind", BY_KIND)
def test_bf16_follows_fp32(tmp_path: Path, straight: Straight, kind: str) -> None:
    _, precise = straight(kind)
    quick = train(tmp_path / "bf16", *KINDS[kind], "train.precision=bf16")
    for ours, theirs in zip(quick, precise, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.05)


@pytest.mark.parametrize("kind", ["zero 1", "zero 3", "decoder", "encoder", "capacity"])
def test_with_deterministic_kernels_a_run_resumes_bit_for_bit(tmp_path: Path, kind: str) -> None:
    settings = [*KINDS[kind], "train.deterministic=true", "train.precision=bf16"]
    steps = train(tmp_path / "straight", *settings)
    source = tmp_path / "straight" / "checkpoints" / "step-00000004"
    assert train(tmp_path / "resumed", *settings, "--resume", str(source)) == steps[4:]


@pytest.mark.xdist_group("gpu zero 1")
def test_a_run_s_weights_start_another(tmp_path: Path, straight: Straight) -> None:
    run, _ = straight("zero 1")
    forescale("export", run, tmp_path / "weights")
    started = train(tmp_path / "second", f"model.init_from={tmp_path / 'weights'}")
    assert started[-1]["loss"] < 1.0


@pytest.mark.xdist_group("gpu zero 1")
def test_scores_come_out(straight: Straight) -> None:
    run, _ = straight("zero 1")
    scores = json.loads((run / "evaluation.json").read_text())["scores"]
    assert 0 < scores["Forescale"]["mse"] < 10
    printed = forescale("evaluate", run, "--json")
    assert "mse" in printed
