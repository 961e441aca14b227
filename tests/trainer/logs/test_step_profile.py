"""`train --profile` tells where each rank's time went, and leaves traces."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import ranks
from tests.conftest import ROOT
from tests.settings import UNSCORED, planned
from trainer.job import train
from trainer.logs.step_profile import COLLECTIVE, DATA, OPTIMIZER, Shares, as_table, shares_of


def event(name: str, start: float, end: float, *, cuda: bool = False) -> Any:
    device = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    return SimpleNamespace(
        name=name,
        device_type=device,
        is_user_annotation=False,
        time_range=SimpleNamespace(start=start, end=end),
    )


def test_a_cpu_s_time_is_divided_without_rest() -> None:
    events = [
        event(DATA, 0, 1000),
        event("aten::stack", 100, 900),  # a part of making the batch
        event("aten::mm", 1000, 3000),
        event("aten::view", 1500, 1600),
        event("aten::mm", 2500, 4000),  # in another thread
        event(COLLECTIVE, 4500, 6000),
        event("aten::copy_", 4600, 4700),
        event(OPTIMIZER, 6000, 8000),
        event("aten::_fused_adamw_", 6100, 7900),
        event("forescale: other", 8000, 9000),
    ]
    assert shares_of(events, 10_000, 2, "cpu") == Shares(
        compute=1.5, communication=0.75, data=0.5, optimizer=1.0, idle=1.25
    )


def test_a_gpu_s_communication_counts_where_nothing_hides_it() -> None:
    kernels = [
        event("Memcpy HtoD (Pinned -> Device)", 0, 500, cuda=True),
        event("ampere_bf16_gemm", 400, 3000, cuda=True),
        event("ncclDevKernel_AllReduce", 2000, 4000, cuda=True),
        event("multi_tensor_apply_kernel<FusedAdamMathFunctor>", 4500, 5000, cuda=True),
        event("aten::mm", 0, 9000),  # the host's time is not the GPU's
    ]
    assert shares_of(kernels, 8000, 1, "cuda") == Shares(
        compute=2.6, communication=1.0, data=0.4, optimizer=0.5, idle=3.5
    )


def test_the_table_has_a_row_for_each_rank() -> None:
    lines = as_table([Shares(6, 2, 1, 1, 0), Shares(0, 0, 0, 0, 0)]).splitlines()
    assert lines[0].split() == ["rank", *asdict(Shares(0, 0, 0, 0, 0))]
    assert "6.0 (60%)" in lines[1] and len(lines) == 3


def _profiled(rank: int, world: int, run: Path, changes: dict[str, Any]) -> str:
    plan = planned(run, {**UNSCORED, **changes}, world)
    return str(train(plan, rank, rank, profile=(3, 4)))


@pytest.mark.parametrize(
    ("world", "layout"),
    [
        (1, {}),
        pytest.param(2, {"parallel.tensor": 2}, marks=pytest.mark.slow),
        pytest.param(2, {"parallel.pipeline": 2}, marks=pytest.mark.slow),
    ],
)
def test_each_rank_leaves_its_trace_and_shares(
    tmp_path: Path, world: int, layout: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    assert ranks.run(_profiled, world, run, layout) == ["done"] * world
    summary = json.loads((run / "profile" / "summary.json").read_text())
    assert (summary["first"], summary["last"], len(summary["ranks"])) == (3, 4, world)
    for rank, shares in enumerate(summary["ranks"]):
        assert all(shares[name] > 0 for name in ("compute", "data", "optimizer"))
        assert (shares["communication"] > 0) == (world > 1)
        trace = json.loads((run / "profile" / f"rank-{rank}.trace.json").read_text())
        names = {one.get("name") for one in trace["traceEvents"]}
        assert {DATA, OPTIMIZER, "aten::mm"} <= names


def test_what_cannot_be_profiled_is_refused(tmp_path: Path) -> None:
    for steps, why in (
        ("3:4", "expected steps such as 5-7"),
        ("4-3", "expected steps such as 5-7"),
        ("0", "expected steps such as 5-7"),
        ("9-10", "the last step, 10, cannot be profiled"),
    ):
        command = [sys.executable, "-m", "launch", "train", "configs/tiny.yaml"]
        command += ["--run-dir", str(tmp_path / "run"), "--profile", steps]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == 2 and ended.stderr.startswith("forescale: --profile: ")
        assert why in ended.stderr and not (tmp_path / "run").exists()
