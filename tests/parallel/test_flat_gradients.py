"""Gradients that go to AdamW by one copy are those that DeepSpeed's own way brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.flat_gradients import BLOCK, norm
from tests import ranks
from tests.settings import UNSCORED, tiny, train_rank
from trainer.config.deepspeed_config import (
    DECIDES_REDUCTION,
    deepspeed_config,
    keeps_flat_gradients,
)
from trainer.logs.metrics import without_machine

DEEPSPEEDS_OWN = {"deepspeed.zero_optimization": {"reduce_bucket_size": 1000}}
"""Settings that leave gradients to DeepSpeed, in buckets that parameters do not fit into."""


@pytest.mark.parametrize(
    ("world", "layout"),
    [
        (1, {}),
        (2, {}),
        (2, {"parallel.expert": 2}),
        (2, {"parallel.pipeline": 2, "train.gradient_clipping": 0.05}),
        (2, {"parallel.tensor": 2, "train.gradient_clipping": 1e9}),
    ],
    ids=["one", "data", "expert", "pipeline, clipped", "tensor, never clipped"],
)
def test_steps_are_those_of_deepspeeds_own_way(
    tmp_path: Path, world: int, layout: dict[str, Any]
) -> None:
    settings = {**UNSCORED, **layout, "checkpoint.every": 100}
    rows = [
        ranks.run(train_rank, world, tmp_path / name, {**settings, **changes})[0]
        for name, changes in (("ours", {}), ("theirs", DEEPSPEEDS_OWN))
    ]
    ours, theirs = (without_machine(one) for one in rows)
    assert len(ours) == len(theirs) == 8
    for own, right in zip(ours, theirs, strict=True):
        assert own == pytest.approx(right, rel=2e-6)


@pytest.mark.parametrize("key", DECIDES_REDUCTION)
def test_a_user_who_decides_gets_deepspeeds_own_way(key: str) -> None:
    value = 1000 if "size" in key else True
    settings = tiny(deepspeed={"zero_optimization": {key: value}}).settings
    assert not keeps_flat_gradients(settings)
    zero = deepspeed_config(settings, 1)["zero_optimization"]
    assert zero[key] == value and (key == "contiguous_gradients" or zero["contiguous_gradients"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"deepspeed": {"zero_optimization": {"allgather_bucket_size": 4}}}, True),
        ({"train__precision": "bf16"}, False),
        ({"parallel__zero_stage": 2}, False),
        ({"parallel__zero_stage": 3}, False),
        ({"parallel__offload_optimizer": "cpu"}, False),
    ],
)
def test_others_are_left_to_deepspeed(changes: dict[str, Any], expected: bool) -> None:
    assert keeps_flat_gradients(tiny(**changes).settings) == expected


@pytest.mark.parametrize("shape", [(), (3,), (BLOCK,), (5, 2 * BLOCK), (BLOCK + 7, 3), (0,)])
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_norms_are_those_of_fp64(shape: tuple[int, ...], scale: float) -> None:
    torch.manual_seed(0)
    values = torch.randn(shape) * scale
    right = torch.linalg.vector_norm(values.double())
    torch.testing.assert_close(norm(values), right, rtol=1e-7, atol=0.0)
    assert norm(torch.full((3 * BLOCK,), torch.inf)).isinf()
    assert norm(torch.tensor([1.0, torch.nan])).isnan()
