"""Fine-tuning by adapters: the run's matrices stay, and whoever takes its weights has the sum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.adapters import product
from tests import ranks
from tests.settings import planned, train_rank
from tests.trainer.weights.conftest import SETTINGS, weights
from trainer.checkpoint.tensor_files import read, tensor_shapes
from trainer.forecast.forecaster import Forecaster
from trainer.weights.export import export
from trainer.weights.source import find

ADAPTED: dict[str, Any] = {
    **SETTINGS,
    "model.lora_rank": 4,
    "model.lora_alpha": 8.0,
    "train.learning_rate": 1e-2,
    "train.warmup_steps": 1,
}


def stored(run: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a run's last checkpoint, by key."""
    folder = run / "checkpoints" / "step-00000003"
    tensors = {key: torch.empty(shape) for key, shape in tensor_shapes(folder).items()}
    read(folder, tensors, alone=True)
    return tensors


@pytest.mark.parametrize(
    ("world", "layout"),
    [
        (1, {}),
        (2, {"parallel.tensor": 2, "parallel.expert": 2, "train.ema_decay": 0.5}),
        pytest.param(2, {"parallel.zero_stage": 3}, marks=pytest.mark.slow),
        pytest.param(
            2, {"parallel.pipeline": 2, "train.precision": "bf16"}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_run_trains_adapters_and_gives_merged_weights(
    run: Path, tmp_path: Path, world: int, layout: dict[str, Any]
) -> None:
    new = tmp_path / "new"
    settings = {**ADAPTED, **layout, "model.init_from": str(run)}
    ranks.run(train_rank, world, new, settings)
    kept, before = stored(new), weights(Forecaster.load(run))
    kind = "ema" if "train.ema_decay" in layout else "weights"
    is_rounded = layout.get("train.precision") == "bf16"
    merged = weights(Forecaster.load(new))
    assert merged.keys() == before.keys()
    matrices = [n for n in before if f"weights/{down_of(n)}" in kept]
    assert len(matrices) > 10
    for name in matrices:
        base = kept[f"weights/{name}"]
        first = before[name].detach()
        assert torch.equal(base, first.bfloat16().float() if is_rounded else first), name
        assert f"exp_avg/{name}" not in kept and f"{kind}/{down_of(name)}" in kept
        down, up = kept[f"{kind}/{down_of(name)}"], kept[f"{kind}/{up_of(name)}"]
        added = 2.0 * product(down, up, base.shape)
        assert added.abs().max() > 1e-4, name
        assert torch.equal(merged[name].detach(), (base + added).to(merged[name].dtype)), name
    out = tmp_path / "out"
    export(find(new), out)
    told = json.loads((out / "config.json").read_text())
    assert told["settings"]["model"]["lora_rank"] == 0
    plain = weights(Forecaster.load(out))
    assert all(torch.equal(plain[name].to(one.dtype), one) for name, one in merged.items())


def down_of(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{module}.adapters.{leaf}.down"


def up_of(name: str) -> str:
    return down_of(name).removesuffix("down") + "up"


def test_another_head_is_trained_beside_them_and_a_run_goes_on(run: Path, tmp_path: Path) -> None:
    changes = {
        **ADAPTED,
        "model.init_from": str(run),
        "model.loss": "quantile",
        "data.context_length": 128,
    }
    first = ranks.run(train_rank, 1, tmp_path / "new", changes)[0]
    record = json.loads((tmp_path / "new" / "environment.json").read_text())["init_from"]
    assert set(record["anew"]) == {"head.weight", "head.bias"}  # adapters are no surprise
    longer = {**changes, "train.steps": 5, "parallel.pipeline": 2}
    rows = ranks.run(train_rank, 2, tmp_path / "new", longer)[0]
    assert [row["loss"] for row in rows[:3]] == [row["loss"] for row in first]
    assert len(rows) == 5 and np.isfinite(rows[-1]["loss"])


def test_adapters_of_adapters_begin_at_the_merged_weights(run: Path, tmp_path: Path) -> None:
    ranks.run(train_rank, 1, tmp_path / "one", {**ADAPTED, "model.init_from": str(run)})
    again = {**ADAPTED, "model.lora_rank": 2, "model.init_from": str(tmp_path / "one")}
    ranks.run(train_rank, 2, tmp_path / "two", {**again, "parallel.tensor": 2})
    merged, kept = weights(Forecaster.load(tmp_path / "one")), stored(tmp_path / "two")
    name = "encoder.layers.0.self_attention.query_key_value"
    torch.testing.assert_close(kept[f"weights/{name}"], merged[name].detach())


def test_what_would_stay_random_is_refused_or_told(run: Path, tmp_path: Path) -> None:
    deeper = {**ADAPTED, "model.init_from": str(run), "model.num_layers": 3}
    with pytest.raises(ranks.RanksFailedError, match=r"model\.lora_rank: .* does not have what"):
        ranks.run(train_rank, 1, tmp_path / "deeper", deeper)
    assert not (tmp_path / "deeper" / "config.yaml").exists()
    [told] = [w for w in planned(tmp_path / "x", ADAPTED).warnings() if "lora_rank" in w]
    assert "model.init_from" in told
    named = planned(tmp_path / "y", {**ADAPTED, "model.init_from": str(run)})
    assert not [w for w in named.warnings() if "lora_rank" in w]
