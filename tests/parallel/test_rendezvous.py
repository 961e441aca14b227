"""Ranks that do not come are named, and the others do not wait for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import ranks
from tests.parallel.starting import start


def _start_all_but(rank: int, world: int, run: Path, absent: int) -> str:
    """Start all ranks but one; those that come wait 3 seconds for it."""
    return "absent" if rank == absent else start(rank, world, run, {}, seconds=3.0)


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_a_rank_that_does_not_come_is_named(tmp_path: Path, absent: int) -> None:
    said = ranks.run(_start_all_but, 3, tmp_path / "run", absent, timeout=30)
    if absent == 0:
        assert all("cannot reach the meeting point 127.0.0.1" in s for s in said[1:])
        return
    assert f"rank {absent} of 3 did not come within 3 s" in said[0]
    assert "ranks 0, " in said[0]
