"""`train.deterministic` switches torch for the run alone, and changes nothing on a CPU."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from model.attention_kernels import Call, Kernel
from model.fused_attention import TorchCudnn, XformersPackage
from tests import ranks
from tests.settings import UNSCORED, train_rank
from trainer.engine.determinism import deterministic
from trainer.logs.metrics import Row, without_machine


def _train(rank: int, world: int, run: Path, wanted: bool) -> tuple[list[bool], list[Row]]:
    """Train some steps; return whether torch was switched in each, and the rows."""
    seen: list[bool] = []

    def look(step: int) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())

    changes = {**UNSCORED, "train.steps": 3, "train.deterministic": wanted}
    return seen, train_rank(rank, world, run, changes, on_step=look)


def test_a_run_on_a_cpu_computes_the_same(tmp_path: Path) -> None:
    found = [ranks.run(_train, 1, tmp_path / str(wanted), wanted)[0] for wanted in (True, False)]
    assert [seen for seen, _ in found] == [[True] * 3, [False] * 3]
    assert without_machine(found[0][1]) == without_machine(found[1][1])


@pytest.mark.parametrize("before", [False, True])
def test_what_was_set_before_comes_back(before: bool) -> None:
    torch.use_deterministic_algorithms(before)
    try:
        with patch.dict(os.environ), deterministic(wanted=True):
            assert torch.are_deterministic_algorithms_enabled()
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
            assert not torch.utils.deterministic.fill_uninitialized_memory
        assert torch.are_deterministic_algorithms_enabled() == before
        assert torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kernel", [TorchCudnn(), XformersPackage()])
def test_attention_without_a_deterministic_backward_pass_is_refused(kernel: Kernel) -> None:
    call = Call("cuda", torch.bfloat16, 64, False, "none", True, False, deterministic=True)
    refusal = kernel.refusal(call)
    assert refusal is not None and "deterministic" in refusal
