"""A new run starts with another's weights, as far as they fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.errors import UserError
from parallel.mesh import init_mesh, local_device
from tests import ranks
from tests.settings import planned, train_plan, train_rank
from tests.trainer.weights.conftest import SETTINGS, weights
from trainer.config import load
from trainer.engine.engine import Engine
from trainer.engine.pretrained import load_pretrained
from trainer.forecast.forecaster import Forecaster
from trainer.logs.metrics import read_metrics
from trainer.prepare import prepare
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


def test_a_short_configuration_has_the_sources_network(run: Path, tmp_path: Path) -> None:
    """A table of the user's own, and a file of a few lines: another horizon, the same layers."""
    hours = np.arange("2024-01-01", "2024-03-01", dtype="datetime64[h]")
    rows = [f"{t},{5.5 + i % 24}" for i, t in enumerate(hours.astype(str))]
    (tmp_path / "own.csv").write_text("\n".join(["time,value", *rows]) + "\n")
    source = tmp_path / "export"
    export(find(run), source)
    file = tmp_path / "tune.yaml"
    file.write_text(
        f"model: {{init_from: {source}, dropout: 0.2}}\n"
        f"data: {{source: {tmp_path / 'own.csv'}, context_length: 64, prediction_length: 8}}\n"
        "train: {steps: 2, micro_batch_size: 4, global_batch_size: 8}\n"
        "logging: {tensorboard: false}\n"
    )
    theirs = find(run).settings.model
    plan = prepare(load(file), run_dir=tmp_path / "new")
    ours = plan.configuration.settings.model
    assert ours == theirs.model_copy(update={"init_from": str(source), "dropout": 0.2})
    assert ours.model_fields_set == {"init_from", "dropout"}  # so that nobody is told of others
    rows = ranks.run(_train_file, 2, file, tmp_path / "new", {})[0]
    shutil.rmtree(source)
    longer = ranks.run(_train_file, 2, file, tmp_path / "new", {"train.steps": 3})[0]
    assert [row["loss"] for row in longer[:2]] == [row["loss"] for row in rows]
    assert len(longer) == 3
    with pytest.raises(UserError, match=r"tune\.yaml:1: model\.init_from: .* is neither a run"):
        prepare(load(file), run_dir=tmp_path / "other")


def test_what_a_short_configuration_sets_must_fit_the_sources(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "tune.yaml"
    file.write_text(f"model:\n  init_from: {run}\n  num_kv_heads: 8\n")
    with pytest.raises(
        UserError, match=r"tune\.yaml:3: model\.num_kv_heads: beside what .*run has: 8 "
    ):
        prepare(load(file), run_dir=tmp_path / "new")


def _train_file(rank: int, world: int, file: Path, run: Path, overrides: dict[str, Any]) -> Any:
    """Train a configuration of any file; return the run's rows on rank 0."""
    train_plan(prepare(load(file, overrides), run_dir=run, world=world), rank)
    return read_metrics(run / "metrics.jsonl") if rank == 0 else []
