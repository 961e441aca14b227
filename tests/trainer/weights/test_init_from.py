"""A new run starts with another's weights, as far as they fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parallel.mesh import init_mesh, local_device
from tests import ranks
from tests.settings import planned, train_rank
from tests.trainer.weights.conftest import SETTINGS, weights
from trainer.engine.engine import Engine
from trainer.engine.pretrained import load_pretrained
from trainer.forecast.forecaster import Forecaster
from trainer.resume import verify
from trainer.weights.export import export
from trainer.weights.source import find


def _start_from(rank: int, world: int, run: Path, overrides: dict[str, Any]) -> Any:
    """Return the state that a run would start with, and its report of it."""
    plan = planned(run, overrides, world)
    torch.distributed.init_process_group("gloo")
    mesh = init_mesh(plan.layout, rank, local_device(rank))
    engine = Engine(plan.configuration.settings, plan.dataset.shape, mesh)
    fresh = {name: p.detach().clone() for name, p in engine.network.named_parameters()}
    assert plan.start.weights is not None
    taken = load_pretrained(engine, verify(plan.start, mesh).weights)
    moments = [t.data_1d.abs().sum() for n, t in engine.state().items() if n.startswith("exp_avg")]
    now = dict(engine.network.named_parameters())
    parts = engine._parallel.shards
    same = {n for n, p in now.items() if torch.equal(p, fresh[n])}
    held = {n: (parts[n], p.detach().numpy()) for n, p in now.items()}
    return taken, same, held, float(sum(moments))


@pytest.mark.parametrize(
    "layout",
    [
        {"parallel.zero_stage": 2},
        {"parallel.pipeline": 2},
        {"parallel.tensor": 2, "parallel.expert": 2},
    ],
)
@pytest.mark.parametrize("kind", ["run", "export"])
def test_fine_tuning_takes_over_what_fits_and_tells_the_rest(
    run: Path, tmp_path: Path, layout: dict[str, Any], kind: str
) -> None:
    """Another head (quantiles), another context, other covariates."""
    source = run
    if kind == "export":
        source = tmp_path / "out"
        export(find(run), source, file_bytes=100_000)
    changes = {
        **SETTINGS,
        **layout,
        "model.init_from": str(source),
        "model.loss": "quantile",
        "data.context_length": 128,
        "data.covariates": [],
    }
    before = weights(Forecaster.load(run))
    told = ranks.run(_start_from, 2, tmp_path / "new", changes)
    anew = {
        "encoder.input_projection.weight",
        "decoder.input_projection.weight",
        "head.weight",
        "head.bias",
    }
    for taken, same, held, moments in told:
        assert set(taken.anew) == anew and not taken.left
        assert taken.anew["head.bias"] == "(16,) there, (144,) here"
        assert moments == 0.0
        for name, (shard, tensor) in held.items():
            assert (name in same) == (name in anew) or name.endswith(("norm.weight", "bias")), name
            if name not in anew:
                expected = before[name].narrow(shard.dim, shard.start, shard.size)
                np.testing.assert_array_equal(tensor, expected.detach().numpy(), name)
    sentence = told[0][0].sentence()
    assert "drawn anew: " in sentence and "head.bias ((16,) there, (144,) here)" in sentence


def test_weights_of_something_else_are_refused(run: Path, tmp_path: Path) -> None:
    changes = {**SETTINGS, "model.init_from": str(tmp_path / "nowhere")}
    with pytest.raises(
        ranks.RanksFailedError, match=r"model\.init_from: .*nowhere is neither a run"
    ):
        ranks.run(train_rank, 1, tmp_path / "new", changes)
    changes = {
        **SETTINGS,
        "model.init_from": str(run),
        "model.d_model": 16,
        "model.num_experts": 2,
        "model.loss": "quantile",
    }
    with pytest.raises(ranks.RanksFailedError, match="has the name and shape of anything here"):
        ranks.run(train_rank, 1, tmp_path / "other", changes)
    assert not (tmp_path / "other" / "config.yaml").exists()  # the corrected command may use it


def test_a_run_that_was_started_from_weights_goes_on_without_them(
    run: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(run / "checkpoints" / "step-00000003", tmp_path / "step-00000003")
    changes = {**SETTINGS, "model.init_from": str(source)}
    started = ranks.run(train_rank, 2, tmp_path / "new", changes)[0]
    recorded = json.loads((tmp_path / "new" / "environment.json").read_text())["init_from"]
    assert recorded["step"] == 3 and "head.weight" in recorded["taken"]
    shutil.rmtree(source)
    longer = ranks.run(train_rank, 2, tmp_path / "new", {**changes, "train.steps": 4})[0]
    assert [row["step"] for row in longer] == [1, 2, 3, 4]
    assert [row["loss"] for row in longer[:3]] == [row["loss"] for row in started]
