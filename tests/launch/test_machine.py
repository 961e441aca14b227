"""What a machine has, as its processes may use it."""

from __future__ import annotations

import os

import pytest

from launch.machine import processors, threads


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
