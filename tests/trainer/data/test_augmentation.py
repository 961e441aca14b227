"""Training windows are changed by their samples' numbers, as often as the settings say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.data.sets import csv, hourly
from trainer.config.data_settings import AugmentConfig, DataConfig
from trainer.data import Dataset, Split
from trainer.data.augmentation import CHANGES, augmented

CONTEXT = 20


def windows(count: int = 400) -> Any:
    """Return windows of two channels."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, CONTEXT + 10, 2)).cumsum(axis=1).astype(np.float32)


def words(count: int = 400) -> Any:
    """Return a random word for each window."""
    return np.random.default_rng(1).integers(2**63, size=count, dtype=np.uint64)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_as_likely_as_said(name: str) -> None:
    before = windows()
    after = augmented(before, CONTEXT, words(), AugmentConfig(**{name: 0.3}))
    changed = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert abs(np.mean(changed) - 0.3) < 0.1
    assert after.dtype == np.float32 and after.shape == before.shape


def test_changes_are_what_they_are_called() -> None:
    before, always = windows(20), dict.fromkeys
    for name, expected in (
        ("sign", lambda w: -w),
        ("reverse", lambda w: w[:, ::-1]),
    ):
        after = augmented(before, CONTEXT, words(20), AugmentConfig(**always([name], 1.0)))
        assert np.array_equal(after, expected(before))
    scaled = augmented(before, CONTEXT, words(20), AugmentConfig(scale=1.0))
    factor = scaled[:, :1, :1] / before[:, :1, :1]
    np.testing.assert_allclose(scaled, before * factor, rtol=1e-5)
    assert (factor >= 0.1).all() and (factor <= 10).all()
    holes = np.isnan(augmented(before, CONTEXT, words(20), AugmentConfig(missing=1.0)))
    assert holes.any((1, 2)).all() and not holes[:, CONTEXT:].any() and not holes.all(1).any()
    cut = augmented(before, CONTEXT, words(20), AugmentConfig(censor=1.0))
    assert all((c <= b).all() or (c >= b).all() for c, b in zip(cut, before, strict=True))
    stretched = augmented(before, CONTEXT, words(20), AugmentConfig(resample=1.0))
    assert (stretched.max(1) <= before.max(1) + 1e-5).all()


def test_a_sample_is_changed_alike_in_any_batch(tmp_path: Path) -> None:
    config = DataConfig(
        source=str(csv(tmp_path, hourly(300))),
        context_length=CONTEXT,
        prediction_length=10,
        augment=AugmentConfig(**dict.fromkeys(CHANGES, 0.5)),
    )
    data = Dataset(config)
    assert data.shape.missing
    whole = data.samples(3, 0, 48)
    parts = [data.samples(3, first, first + size) for first, size in ((0, 1), (1, 7), (8, 40))]
    for name in ("context", "target"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(getattr(whole, name), joined, equal_nan=True)
    plain = data.batch(Split.TRAIN, data.draw(3, 0, 48))
    assert not np.array_equal(plain.context, whole.context)


@pytest.mark.parametrize("name", ["reverse", "resample"])
def test_time_is_not_turned_without_its_calendar(name: str) -> None:
    with pytest.raises(ValueError, match=f"augment.{name}: it changes the time"):
        DataConfig(augment=AugmentConfig(**{name: 0.1}), calendar=["time_of_day"])
