"""Stages are balanced by the definition: the way to cut whose largest sum is the smallest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from random import Random

import pytest

from parallel.pipeline_parallel import balance


def by_definition(costs: Sequence[float], stages: int) -> list[range]:
    """Try all ways to cut; of equally good ones, each cut from the last on is the earliest."""

    def largest(cuts: tuple[int, ...]) -> list[float]:
        """Return the largest sum of all stages, of all but the last, of all but the last two..."""
        sums = [sum(costs[a:b]) for a, b in zip((0, *cuts), (*cuts, len(costs)), strict=True)]
        return [max(sums[:count]) for count in range(len(sums), 0, -1)]

    def rank(cuts: tuple[int, ...]) -> list[float]:
        return [
            number for pair in zip(largest(cuts), (*cuts[::-1], 0), strict=True) for number in pair
        ]

    best = min(combinations(range(1, len(costs)), stages - 1), key=rank)
    return [range(a, b) for a, b in zip((0, *best), (*best, len(costs)), strict=True)]


@pytest.mark.parametrize(
    "draw",
    [
        lambda random: float(random.randint(1, 3)),
        lambda random: float(random.choice([1, 100, 10**9])),
        lambda random: 5.0,
    ],
    ids=["small", "uneven", "equal"],
)
def test_no_other_stages_have_a_smaller_largest_sum(draw: Callable[[Random], float]) -> None:
    random = Random(3)
    for _ in range(150):
        costs = [draw(random) for _ in range(random.randint(1, 9))]
        stages = random.randint(1, len(costs))
        assert balance(costs, stages) == by_definition(costs, stages), (costs, stages)


def test_thousands_of_layers_are_balanced_too() -> None:
    """The largest sum is at least the mean, and at most one layer above it."""
    costs = [1.0 + index % 3 for index in range(3000)]
    for stages in (1, 7, 64):
        ranges = balance(costs, stages)
        assert [index for part in ranges for index in part] == list(range(3000))
        sums = [sum(costs[index] for index in part) for part in ranges]
        assert sum(costs) / stages <= max(sums) <= sum(costs) / stages + 3
