"""What a machine has, as its processes may use it."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from launch.machine import memory_limit, processors, threads


def test_a_process_counts_the_processors_that_it_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert processors() == 1 and threads(1) == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("allowed", "all_of_them", "ranks", "expected"),
    [
        (16, 16, 1, 16),
        (16, 16, 4, 4),
        (1, 16, 1, 1),  # one processor of sixteen is allowed
        (12, 96, 8, 12),  # each rank is bound to its own twelve
        (2, 2, 8, 1),
    ],
)
def test_ranks_divide_what_they_may_use(
    monkeypatch: pytest.MonkeyPatch, allowed: int, all_of_them: int, ranks: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    monkeypatch.setattr(os, "cpu_count", lambda: all_of_them)
    assert threads(ranks) == expected


@pytest.mark.parametrize(
    ("group", "limits", "expected"),
    [
        ("0::/\n", {"": "2048"}, 2048.0),
        ("0::/job/step\n", {"": "max", "job": "4096", "job/step": "max"}, 4096.0),
        ("0::/job/step\n", {"job": "4096", "job/step": "1024"}, 1024.0),
        ("3:cpu:/a\n2:memory:/docker/x\n", {"memory/docker/x": "512", "memory": "9" * 18}, 512.0),
        ("0::/nowhere\n", {}, None),
        ("", {}, None),
    ],
)
def test_a_container_s_memory_is_what_it_may_use(
    tmp_path: Path, group: str, limits: dict[str, str], expected: float | None
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(group)
    for folder, limit in limits.items():
        file = "memory.limit_in_bytes" if folder.startswith("memory") else "memory.max"
        (tmp_path / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys/fs/cgroup" / folder / file).write_text(f"{limit}\n")
    whole = float(psutil.virtual_memory().total + psutil.swap_memory().total)
    assert memory_limit(tmp_path) == (whole if expected is None else expected)
