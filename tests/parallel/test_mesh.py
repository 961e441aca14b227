"""Which backend the ranks' devices allow, and how late a rank may come to a group."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest
import torch

from parallel.address import Address
from parallel.deepspeed_adapter import own_device
from parallel.layout import Layout
from parallel.mesh import LATE, backend_for, destroy_mesh, device_name, init_mesh
from parallel.rendezvous import meet
from tests import ranks


@pytest.mark.parametrize(
    ("names", "backend"),
    [
        (["cpu"], "gloo"),
        (["cpu", "cpu"], "gloo"),
        (["GPU-a"], "nccl"),
        (["GPU-a", "GPU-b", "GPU-c"], "nccl"),
        (["GPU-a", "GPU-b", "GPU-a"], "gloo"),  # NCCL needs a GPU for each rank
    ],
)
def test_the_backend_fits_the_devices(names: list[str], backend: str) -> None:
    assert backend_for(names) == backend


def test_a_gpu_is_told_by_its_uuid_and_not_by_its_number() -> None:
    """Where each task sees one GPU, all of them are number 0."""

    class Properties:
        uuid = "6f5a"

    with patch.object(torch.cuda, "get_device_properties", return_value=Properties()):
        assert device_name(torch.device("cuda", 0)) == "6f5a"
    assert device_name(torch.device("cpu")) == "cpu"


def _meet_with(rank: int, world: int, devices: list[str]) -> str:
    met = meet(Address.from_environment(), rank, world, {}, devices[rank])
    met.exchange("")  # rank 0 keeps the store until all have come here
    return met.backend


def test_all_ranks_know_the_backend_of_all_devices() -> None:
    own, shared = ["GPU-a", "GPU-b", "GPU-c"], ["GPU-a", "GPU-b", "GPU-b"]
    assert ranks.run(_meet_with, 3, own) == ["nccl"] * 3
    assert ranks.run(_meet_with, 3, shared) == ["gloo"] * 3


def _come_late(rank: int, world: int) -> float:
    """Do by hand what NCCL does in a group's first collective: its first rank tells the others."""
    with patch.dict("os.environ", FORESCALE_START_SECONDS="2"):
        met = meet(Address.from_environment(), rank, world, {})
    init_mesh(Layout(1, world), rank, torch.device("cpu"), met.store, met.backend)
    started = time.monotonic()
    if rank == 0:
        time.sleep(4)
        met.store.set("id", "0")
    met.store.get("id")
    waited = time.monotonic() - started
    destroy_mesh()
    return waited


def test_a_rank_may_come_to_a_group_later_than_to_the_rendezvous() -> None:
    waited = ranks.run(_come_late, 2)
    assert min(waited) > 3
    assert timedelta(minutes=10) <= LATE


@pytest.mark.parametrize("given", [{"LOCAL_RANK": "3"}, {}])
@pytest.mark.parametrize("launcher", [{}, {"OMPI_COMM_WORLD_LOCAL_RANK": "3"}])
def test_deepspeed_is_told_the_device_by_its_own_number(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], launcher: dict[str, str]
) -> None:
    """A rank that sees one GPU is not number 0 on its machine."""
    names = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in (given | launcher).items():
        monkeypatch.setenv(name, value)

    def seen() -> dict[str, Any]:
        import os

        return {name: os.environ[name] for name in names if name in os.environ}

    before = seen()
    with own_device(torch.device("cuda", 0)):
        assert seen() == dict.fromkeys(launcher | {"LOCAL_RANK": ""}, "0")
    assert seen() == before
    with own_device(torch.device("cpu")):
        assert seen() == before
