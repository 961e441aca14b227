"""Intervals by resampling hold what they should, and are left out where nothing can be told."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.forecast.bootstrap import reductions


def interval_of(errors: np.ndarray, others: np.ndarray, items: np.ndarray, block: int = 1) -> tuple:
    (found,) = reductions({"ours": errors, "theirs": others}, items, block, "ours").values()
    return found.value, found.low, found.high


@pytest.mark.parametrize("items", [1, 40])
def test_the_interval_holds_the_true_reduction_about_as_often_as_it_says(items: int) -> None:
    """Of 200 trials with independent windows of which the truth is known, 95 % hold it."""
    rng, held = np.random.default_rng(1), 0
    of_window = np.sort(np.arange(120) % items)
    for _ in range(200):
        theirs = rng.gamma(4.0, size=120)
        ours = 0.7 * rng.gamma(4.0, size=120)
        value, low, high = interval_of(ours, theirs, of_window)
        assert low < value < high and value == pytest.approx(1 - ours.sum() / theirs.sum())
        held += low <= 0.3 <= high
    assert 180 <= held <= 199


def test_windows_that_repeat_each_other_are_no_further_witnesses() -> None:
    """Blocks of windows that say the same leave an interval as wide as one window each."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.gamma(4.0, size=30), rng.gamma(4.0, size=30)
    one = interval_of(ours, theirs, np.zeros(30, np.int64))
    repeated = interval_of(np.repeat(ours, 8), np.repeat(theirs, 8), np.zeros(240, np.int64), 8)
    assert repeated == pytest.approx(one)
    naive = interval_of(np.repeat(ours, 8), np.repeat(theirs, 8), np.zeros(240, np.int64))
    assert naive[2] - naive[1] < 0.6 * (one[2] - one[1])


def test_blocks_end_with_their_item() -> None:
    items = np.array([0] * 15 + [1] * 15)
    by_item = np.where(items == 0, 1.0, 3.0)
    found = interval_of(by_item, np.full(30, 2.0), items, block=15)
    assert found == (0.0, None, None)  # two blocks tell nothing


def test_the_same_windows_give_the_same_interval() -> None:
    errors = np.random.default_rng(0).gamma(4.0, size=(2, 50))
    items = np.zeros(50, np.int64)
    assert interval_of(*errors, items) == interval_of(*errors, items)
