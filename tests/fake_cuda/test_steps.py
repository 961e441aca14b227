"""What a training step launches on a GPU, and where its host waits for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, skip
from tests.fake_cuda.device import build

DENSE, EXPERTS = "configs/large.yaml", "configs/moe_large.yaml"

CASES: dict[str, tuple[dict[str, Any], int, dict[str, int]]] = {
    "dense": ({"file": DENSE}, 70, {}),
    "dense, without Triton": ({"file": DENSE, "fused": False}, 72, {}),
    "dense, gaps": ({"file": DENSE, "gaps": True}, 75, {}),
    "dense, recomputed": ({"file": DENSE, "recompute": "block"}, 70, {}),
    "experts": ({"file": EXPERTS}, 180, {}),
    "experts, capacity": (
        {"file": EXPERTS, "gaps": True, "changes": {"model.capacity_factor": 1.5}},
        260,
        {},
    ),
    "experts over 8 ranks": (
        {"file": EXPERTS, "expert": 8},
        210,
        {"parallel/expert_parallel.py _plan": 2},
    ),
    "experts over 8 ranks, capacity": (
        {"file": EXPERTS, "expert": 8, "changes": {"model.capacity_factor": 1.5}},
        260,
        {"parallel/expert_parallel.py _plan": 2},
    ),
}
"""Case -> how it differs from COMMON, the most operators of a layer's forward and backward pass,
and the waits of a step of two layers, by place."""

COMMON = {"changes": {}, "gaps": False, "fused": True, "recompute": "selective", "expert": 1}


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what each case counts; all are counted in one process."""
    if shutil.which("g++") is None:
        skip("needs g++")
    folder = tmp_path_factory.mktemp("device")
    build(folder / "device.so")
    command = [sys.executable, "-m", "tests.fake_cuda.count", folder / "device.so"]
    cases = json.dumps([COMMON | case for case, _, _ in CASES.values()])
    ended = subprocess.run(
        command, cwd=ROOT, input=cases, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return dict(zip(CASES, json.loads(ended.stdout), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_layer_launches_no_more_than(case: str, counted: dict[str, Any]) -> None:
    found, most = counted[case], CASES[case][1]
    assert sum(found["launches"].values()) <= most, json.dumps(found["operators"], indent=1)


@pytest.mark.parametrize("case", CASES)
def test_the_host_waits_nowhere_else(case: str, counted: dict[str, Any]) -> None:
    assert counted[case]["waits"] == CASES[case][2]


def test_constants_are_copied_once(counted: dict[str, Any]) -> None:
    assert counted["dense"]["once"] == ["model/constants.py _kept"]


@pytest.mark.parametrize("case", CASES)
def test_no_attention_leaves_the_fused_kernels(case: str, counted: dict[str, Any]) -> None:
    """A causal decoder whose data has gaps included, and under recomputation."""
    kernel = "torch memory-efficient" if CASES[case][0].get("gaps") else "torch cuDNN"
    assert [name.startswith(kernel) for name in counted[case]["kernels"].values()] == [True]


def test_waits_and_launches_are_seen(tmp_path: Path) -> None:
    """Those of an item, a mask, a copy either way; not those of views and unawaited copies."""
    build(tmp_path / "device.so")
    program = """
import os
from contextlib import suppress
from tests.fake_cuda import count
import torch
with count.FakeTensorMode(allow_non_fake_inputs=True), count.Counting(3) as seen:
    x = torch.ones(4, device="cuda")
    float(x.sum())
    x.cpu()
    torch.ones(3).to("cuda")
    x.view(2, 2).t()
    torch.ones(3).to("cuda", non_blocking=True)
    launched = sum(seen.launches.values())
    with suppress(Exception):  # which a fake tensor has no size for
        x.masked_select(torch.ones(4, device="cuda", dtype=torch.bool))
print(sum(seen.waits.values()), launched, flush=True)
os._exit(0)
"""
    command = [sys.executable, "-c", program, tmp_path / "device.so"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.stdout.split() == ["4", "6"], ended.stderr
