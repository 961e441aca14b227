"""A device without room ends the run with one sentence: what was asked and held, and a way out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from model.errors import DeviceMemoryError
from parallel.layout import Layout
from parallel.mesh import Mesh
from tests import ranks
from tests.settings import UNSCORED, planned, tiny
from trainer.faults.device_memory import Held, explained
from trainer.job import train
from trainer.logs.utilisation import GIB

ERROR = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 1.06 GiB is free."
)
MESH = Mesh(Layout(1, 4), 3, torch.device("cuda", 1))


def held(fixed: float, rest: float) -> Held:
    """Return what a device of 80 GiB held, in GiB; a quarter each of weights and gradients."""
    quarter = int(fixed * GIB / 4)
    return Held(quarter, quarter, 2 * quarter, int(rest * GIB), 80 * GIB)


def said(held: Held | None, **changes: Any) -> str:
    return str(explained(ERROR, 7, MESH, tiny(**changes).settings, held))


def test_what_was_asked_and_held_is_said_by_kind() -> None:
    assert said(held(20, 58), train__micro_batch_size=8).startswith(
        "step 7: cuda:1 of rank 3 has no room for 2.00 GiB more: of 80.0 GiB weights 5.0, "
        "gradients 5.0, optimizer 10.0, activations and the rest 58.0 were held; "
    )


@pytest.mark.parametrize(
    ("fixed", "rest", "changes", "advice"),
    [
        (20, 58, {"train__micro_batch_size": 8}, "train.micro_batch_size=4 instead of 8"),
        (60, 18, {"train__micro_batch_size": 8}, "train.micro_batch_size=4 instead of 8"),
        (70, 10, {"train__micro_batch_size": 16}, "train.micro_batch_size=8 instead of 16"),
        (74, 5, {"train__micro_batch_size": 4}, "train.micro_batch_size=1 instead of 4"),
        (20, 58, {"train__micro_batch_size": 1}, "activation_checkpointing=selective"),
        (
            20,
            58,
            {
                "train__micro_batch_size": 1,
                "parallel__activation_checkpointing": "selective",
            },
            "activation_checkpointing=block",
        ),
        (
            20,
            58,
            {"train__micro_batch_size": 1, "parallel__activation_checkpointing": "block"},
            "parallel.zero_stage=2",
        ),
        (78, 1, {"train__micro_batch_size": 8}, "parallel.zero_stage=2"),
        (78, 1, {"parallel__zero_stage": 2}, "parallel.zero_stage=3"),
        (78, 1, {"parallel__zero_stage": 3}, "divide the model further"),
        (78, 1, {"parallel__pipeline": 2}, "divide the model further"),
    ],
)
def test_the_mildest_setting_that_fits_is_advised(
    fixed: float, rest: float, changes: dict[str, Any], advice: str
) -> None:
    assert advice in said(held(fixed, rest), **changes).partition("were held; ")[2]


def test_a_device_that_tells_nothing_gets_advice_too() -> None:
    assert "train.micro_batch_size=2 instead of 4" in said(None)
    unknown = torch.OutOfMemoryError("out of memory")
    assert "has no room; train" in str(explained(unknown, 1, MESH, tiny().settings, None))


def _train_without_room(rank: int, world: int, run: Path) -> str:
    """Train until torch has no more memory; return what was said."""
    read: Callable[..., torch.Tensor] = torch.from_numpy
    calls = []

    def full(array: Any) -> torch.Tensor:
        calls.append(array)
        if len(calls) > 20:
            raise ERROR
        return read(array)

    with patch("torch.from_numpy", full), pytest.raises(DeviceMemoryError) as raised:
        train(planned(run, UNSCORED))
    return str(raised.value)


def test_a_run_ends_with_it(tmp_path: Path) -> None:
    """On a CPU, where torch raises no such error itself."""
    [said] = ranks.run(_train_without_room, 1, tmp_path / "run")
    assert said.startswith("step 2: cpu of rank 0 has no room for 2.00 GiB more; ")
