"""A graph forecasts as the run that it was exported from: ONNX by onnxruntime, and torch's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from launch.cli import main
from model.errors import UserError
from tests.peers import answer
from tests.trainer.forecast.test_future import CONTEXT, HORIZON, MANY, shops, trained
from trainer.forecast.forecaster import Forecaster
from trainer.forecast.graph import INPUTS, export_graph

SCRIPT = (Path(__file__).parent / "onnx_script.py").read_text()

NETWORKS: dict[str, dict[str, Any]] = {
    "token": {},
    "seen": {
        "model.channel_embedding": True,
        "data.targets": ["sales"],
        "data.covariates": ["price"],
        "data.past_covariates": ["visits"],
        "model.channels": "grouped",
    },
    "flatten": {
        "model.head": "flatten",
        "model.loss": "mse",
        "model.loss_units": "window",
        "model.periods": 0,
        "model.channels": "mixed",
        "data.targets": ["sales", "price"],
    },
    "embedded": {
        "model.architecture": "encoder_decoder",
        "model.head": "flatten",
        "model.patch_length": 4,
        "model.loss": "student_t",
        "model.loss_units": "window",
        "model.periods": 0,
        "model.arcsinh": False,
        "data.calendar_encoding": "embedding",
    },
    "decoder": {
        "model.architecture": "decoder",
        "model.head": "flatten",
        "model.loss_positions": "all",
        "model.output_patch_length": HORIZON,
        "model.loss_units": "window",
        "model.periods": 0,
        "data.calendar": [],
    },
}
"""Networks that graphs are made of."""


def trained_on_shops(folder: Path, changes: dict[str, Any]) -> Forecaster:
    frame = shops(a=200, bb=150)
    for seed, name in enumerate(("price", "visits"), 1):
        frame[name] = np.random.default_rng(seed).normal(20, 1, len(frame))
    frame.to_csv(folder / "shops.csv", index=False)
    changes = {
        **MANY,
        "data.source": str(folder / "shops.csv"),
        "data.targets": ["sales"],
        "data.calendar": ["day_of_week"],
        **changes,
    }
    return trained(folder, changes)


Window = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]


def windows(forecaster: Forecaster) -> list[Window]:
    """Return contexts, covariates and past columns, of several batches and lengths, with holes."""
    shape, rng = forecaster.facts.shape, np.random.default_rng(7)
    lengths = (CONTEXT, 20, 5) if len(forecaster.context_lengths()) > 1 else (CONTEXT,)
    found = []
    for number, length in enumerate(lengths):
        context = 100 + rng.normal(0, 10, (1 + 2 * number, length, shape.channels))
        context[:, 1::4] = np.nan
        size = (len(context), length + HORIZON)
        numbers = rng.normal(20, 1, (*size, shape.covariates))
        dates = rng.integers(0, 5, (*size, len(shape.calendar)))
        past = rng.normal(20, 1, (len(context), length, len(forecaster.past)))
        past[:, 2::5] = np.nan
        found.append((context, np.concatenate([numbers, dates], 2), past))
    return found


def given_parts(window: Window) -> list[Any]:
    """Return a window's arrays, None for those without columns."""
    return [array if array.shape[2] else None for array in window]


def expected(forecaster: Forecaster, window: Window) -> npt.NDArray[np.float64]:
    return forecaster.forecast(*given_parts(window))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_forecasts_as_the_run_does(name: str, tmp_path: Path) -> None:
    forecaster = trained_on_shops(tmp_path, NETWORKS[name])
    given = windows(forecaster)
    arrays = {
        f"{name} {n}": a for n, w in enumerate(given) for name, a in zip(INPUTS, w, strict=True)
    }
    np.savez(tmp_path / "inputs.npz", **arrays)
    got = answer(SCRIPT, tmp_path / "run", tmp_path / "out.onnx", tmp_path / "inputs.npz")
    for made, window in zip(got["made"], given, strict=True):
        values = np.reshape(made["values"], made["shape"])
        wanted = expected(forecaster, window)
        np.testing.assert_allclose(values[..., 0], wanted, rtol=1e-5)
        assert values.shape == (*wanted.shape, len(got["told"]["forecast"]))
    assert got["told"]["channels"] == list(forecaster.facts.channels)
    assert got["told"]["forecast"][1:] == list(forecaster.network.output.levels)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_exported_program_forecasts_as_the_run_does(name: str, tmp_path: Path) -> None:
    forecaster = trained_on_shops(tmp_path, NETWORKS[name])
    main(["export", str(tmp_path / "run"), str(tmp_path / "out.pt2")])
    extra = {"forescale.json": ""}
    program = torch.export.load(tmp_path / "out.pt2", extra_files=extra).module()
    for window in windows(forecaster):
        tensors = [None if a is None else torch.from_numpy(a) for a in given_parts(window)]
        while tensors[-1] is None:
            tensors.pop()
        made = program(*tensors)
        np.testing.assert_allclose(made[..., 0].detach(), expected(forecaster, window), rtol=1e-5)
    assert json.loads(extra["forescale.json"])["known"] == list(forecaster.facts.known)
    with pytest.raises(UserError, match=r"out\.pt2 is there already; choose another file"):
        export_graph(forecaster, tmp_path / "out.pt2")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"model.use_moe": True, "model.num_experts": 4, "model.top_k": 1},
        {"model.att_type": "frequency"},
    ],
)
def test_what_onnx_cannot_hold_is_refused_with_the_reason(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    trained_on_shops(tmp_path, changes)
    np.savez(tmp_path / "inputs.npz")
    got = answer(SCRIPT, tmp_path / "run", tmp_path / "out.onnx", tmp_path / "inputs.npz")
    assert "cannot be written as .onnx: " in got["refused"]
    assert not list(tmp_path.glob("*.onnx*")) and not list(tmp_path.glob(".*partial*"))


@pytest.mark.parametrize(
    ("out", "options", "words"),
    [
        ("out.onnx", ["--precision", "bf16"], "--precision: a graph is of fp32"),
        ("none/out.pt2", [], "there is no such folder"),
        ("out.onnx", [], "run: pip install 'forescale[onnx]'"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    out: str,
    options: list[str],
    words: str,
) -> None:
    trained_on_shops(tmp_path, {})
    before = sorted(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(tmp_path / "run"), str(tmp_path / out), *options])
    assert words in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
