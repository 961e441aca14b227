"""What this machine's memory cannot hold is refused before a rank begins, in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import forescale
from launch.capacity import check_machine
from launch.cli import main
from launch.cluster_environment import ClusterEnvironment
from launch.machine import unusable_gpus
from model.errors import UserError
from tests.launch.test_cli import TRAIN, refused
from tests.settings import TINY, planned

LEARNED = {"model.position": "learned"}
WIDE = {**LEARNED, "model.max_seq_len": 10**10}
"""A table of 6.4e11 parameters: 12 TiB with gradients and optimizer."""


def check(tmp_path: Path, changes: dict[str, Any], world: int = 1, rank: int = 0) -> None:
    here = ClusterEnvironment(rank=rank, local_rank=rank, world=world, local_world=world)
    check_machine(planned(tmp_path / "run", {"data.rows": 800, **changes}, world), here)


def test_a_run_that_this_machine_cannot_hold_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    changes = ["model.position=learned", "model.max_seq_len=10000000000"]
    said = refused([*TRAIN, *changes, "--run-dir", str(run)], capsys)
    assert "this machine has" in said and "its ranks need at least 1.19e+04 GiB" in said
    assert not run.exists()
    with pytest.raises(UserError, match="this machine has"):
        forescale.train(TINY, run_dir=run, **WIDE)
    assert not run.exists()


def test_all_ranks_of_this_machine_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    class Memory:
        total = 20 * 2**20

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    monkeypatch.setattr(psutil, "swap_memory", lambda: type("Swap", (), {"total": 0}))
    changes = {"model.d_model": 128, "model.nhead": 4}
    check(tmp_path, changes)
    for rank in range(4):
        with pytest.raises(UserError, match=r"this machine has 0\.0195 GiB"):
            check(tmp_path, changes, world=4, rank=rank)


def test_a_bucket_that_this_machine_cannot_hold_is_refused(tmp_path: Path) -> None:
    key = "deepspeed.zero_optimization.reduce_bucket_size"
    with pytest.raises(UserError, match=f"{key}: 68719476736 elements are more than"):
        check(tmp_path, {key: 2**36})
    check(tmp_path, {key: 10**8})


def test_a_plan_tells_what_this_machine_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ["plan", "configs/tiny.yaml", "--world", "1", "--run-dir", str(tmp_path / "run")]
    main(plan)
    assert "cannot be trained here" not in capsys.readouterr().out
    main([*plan, "model.position=learned", "model.max_seq_len=10000000000"])
    said = " ".join(capsys.readouterr().out.split())
    assert "It cannot be trained here: this machine has" in said
    assert "and its ranks need at least 1.19e+04 GiB for weights" in said


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is a CUDA build")
def test_gpus_that_torch_is_not_built_for_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidiactl").touch()
    assert unusable_gpus(tmp_path) is None
    (tmp_path / "nvidia3").touch()
    assert unusable_gpus(tmp_path) == f"torch {torch.__version__} is a build for CPUs"
    for hidden in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert unusable_gpus(tmp_path) is None


def test_training_on_cpus_beside_gpus_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.capacity.unusable_gpus", lambda: "the driver is too old")
    with pytest.raises(UserError, match=r"has GPUs and the driver is too old; .*train\.device=cpu"):
        check(tmp_path, {})
    check(tmp_path, {"train.device": "cpu"})
