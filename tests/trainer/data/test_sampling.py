"""The order of samples: a pure function of seed and number, with the shares that it promises."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from model.errors import UserError
from trainer.data.permutation import permuted
from trainer.data.sampling import Drawn, Sampler

COUNTS = [np.array([10, 0, 1000, 3]), np.array([500, 500]), np.array([1] * 50)]
BUCKETS = [np.array([0, 0, 2, 0]), np.array([1, 2]), np.array([0] * 25 + [1] * 25)]


def together(parts: list[Drawn]) -> list[list[int]]:
    """Return source, item, offset and random word of all samples, in order."""
    names = ("source", "item", "offset", "random")
    return [list(map(int, np.concatenate([getattr(p, name) for p in parts]))) for name in names]


def close(seen: Any, expected: Any) -> bool:
    """Return whether counts fit expected ones: chi-square below its 0.9999 quantile, about."""
    seen, expected = np.asarray(seen, float), np.asarray(expected, float)
    assert not seen[expected == 0].any()
    seen, expected = seen[expected > 0], expected[expected > 0]
    degrees = len(seen) - 1
    square = ((seen - expected) ** 2 / expected).sum()
    return bool(square < degrees + 4 * np.sqrt(2 * degrees) + 8)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 65_536, 100_003])
@pytest.mark.parametrize("key", [0, 1, 2**63])
def test_each_number_has_one_place(size: int, key: int) -> None:
    assert sorted(permuted(np.arange(size), size, key).tolist()) == list(range(size))


def test_orders_differ_by_key_and_look_random() -> None:
    """Neighbours, fixed points and inversions are as rare as chance has them."""
    size = 100_000
    first, second = (permuted(np.arange(size), size, key) for key in (1, 2))
    assert (first == second).sum() < 12 and (first == np.arange(size)).sum() < 12
    assert (np.diff(first) == 1).sum() < 12
    assert abs(np.corrcoef(first, np.arange(size))[0, 1]) < 0.015
    assert (np.diff(first) > 0).mean() == pytest.approx(0.5, abs=0.01)


def test_a_place_in_a_large_order_takes_no_table() -> None:
    size = 10**13 + 7
    places = permuted(np.array([0, 1, size - 1]), size, 5)
    assert ((places >= 0) & (places < size)).all() and len(set(places.tolist())) == 3


@pytest.mark.parametrize(
    "options",
    [{}, {"exponent": 0.5, "weights": [3, 1, 1]}, {"order": "epoch"}],
    ids=["draw", "mixture", "epoch"],
)
@pytest.mark.parametrize("seed", [0, 7])
def test_samples_depend_on_their_number_alone(options: dict[str, Any], seed: int) -> None:
    """However they are divided among ranks and steps, over the edge of epochs too."""
    sampler = Sampler(COUNTS, **options)
    whole = together([sampler.draw(seed, 0, 6000)])
    for size in (1, 7, 64, 4096):
        edges = [*range(0, 6000, size), 6000] if size > 1 else range(300)
        parts = [sampler.draw(seed, a, b) for a, b in itertools.pairwise(edges)]
        assert together(parts) == [column[: edges[-1]] for column in whole]
    assert together([sampler.draw(seed + 1, 0, 6000)]) != whole


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("weights", [[1, 1, 1], [5, 1, 0.1]])
def test_shares_are_those_of_the_weights(exponent: float, weights: list[float]) -> None:
    drawn = Sampler(COUNTS, weights, exponent=exponent).draw(3, 0, 200_000)
    share = np.array(weights) / sum(weights)
    assert close(np.bincount(drawn.source), 200_000 * share)
    for source, counts in enumerate(COUNTS):
        items = drawn.item[drawn.source == source]
        by_item = np.where(counts > 0, counts.astype(float) ** exponent, 0)
        expected = len(items) * by_item / by_item.sum()
        assert close(np.bincount(items, minlength=len(counts)), expected)


def test_windows_of_an_item_are_as_likely() -> None:
    drawn = Sampler([np.array([40, 7])], exponent=0.0).draw(0, 0, 100_000)
    for item, count in ((0, 40), (1, 7)):
        offsets = drawn.offset[drawn.item == item]
        assert close(np.bincount(offsets), np.full(count, len(offsets) / count))


def test_an_epoch_sees_each_window_once() -> None:
    sampler = Sampler(COUNTS, order="epoch")
    every = sorted(
        (source, item, offset)
        for source, counts in enumerate(COUNTS)
        for item, count in enumerate(counts)
        for offset in range(count)
    )
    orders = []
    for epoch in range(3):
        start = epoch * sampler.windows
        drawn = together([sampler.draw(1, start, start + sampler.windows)])
        orders.append(list(zip(*drawn[:3], strict=True)))
        assert sorted(orders[-1]) == every
    assert orders[0] != orders[1] != orders[2]


def test_a_step_is_of_one_bucket_and_shares_stay() -> None:
    """Over all steps, sources and items are drawn as often as they are without buckets."""
    weights, exponent, batch = [5, 1, 2], 0.5, 8
    sampler = Sampler(COUNTS, weights, exponent=exponent, buckets=BUCKETS)
    seen = [np.zeros(len(counts)) for counts in COUNTS]
    for step in range(10_000):
        bucket = sampler.bucket(2, step)
        drawn = sampler.draw(2, step * batch, (step + 1) * batch, bucket)
        for source, item in zip(drawn.source, drawn.item, strict=True):
            assert BUCKETS[source][item] == bucket
            seen[source][item] += 1
    share = np.array(weights) / sum(weights)
    for source, counts in enumerate(COUNTS):
        by_item = np.where(counts > 0, counts.astype(float) ** exponent, 0)
        expected = 80_000 * share[source] * by_item / by_item.sum()
        # Samples of a step come together: their counts vary by the batch more.
        np.testing.assert_allclose(seen[source], expected, atol=6 * np.sqrt(batch * 80_000) / 10)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"weights": [1, 0, 1]}, "above 0"),
        ({"weights": [1, -1, 1]}, "above 0"),
        ({"weights": [1, float("nan"), 1]}, "above 0"),
        ({"weights": [1, float("inf"), 1]}, "above 0"),
        ({"order": "epoch", "weights": [1, 1, 1]}, "epoch sees each window once"),
        ({"order": "epoch", "exponent": 0.5}, "epoch sees each window once"),
        ({"order": "epoch", "buckets": BUCKETS}, "epoch sees each window once"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Sampler(COUNTS, **options)


def test_a_source_without_windows_is_refused() -> None:
    with pytest.raises(UserError, match="source 1 has no window"):
        Sampler([np.array([1]), np.array([0, 0])])
