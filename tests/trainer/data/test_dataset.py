"""Windows of series: their splits, their order and their contents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.trainer.data.tables import dataset, frame, mistake, words
from trainer.data import Split


def test_parts_meet_in_time_and_only_context_reaches_back(tmp_path: Path) -> None:
    data = dataset(tmp_path, frame(100), scaling="none")
    assert [data.windows(split) for split in Split] == [70 - 8, 10 - 2, 20 - 2, 0]
    for split, first, last in (
        (Split.TRAIN, 6, 69),
        (Split.VALIDATION, 70, 79),
        (Split.TEST, 80, 99),
    ):
        everything = data.batch(split, np.arange(data.windows(split)))
        assert everything.target[0, 0, 0] == first
        assert everything.target[-1, -1, 0] == last
        assert (everything.context[:, -1, 0] + 1 == everything.target[:, 0, 0]).all()


def test_split_by_rows_leaves_the_rest_unused(tmp_path: Path) -> None:
    data = dataset(tmp_path, frame(100), split=[40, 20, 20], scaling="none")
    assert data.batch(Split.TEST, np.array([data.windows(Split.TEST) - 1])).target[0, -1, 0] == 79
    assert mistake(tmp_path, frame(60), split=[40, 20, 20]).startswith(
        "data.split: the parts add to 80 rows, but"
    )


def test_scaling_knows_the_training_part_only(tmp_path: Path) -> None:
    data = dataset(tmp_path, frame(100))
    training = np.arange(70.0)
    facts = data.facts
    assert facts.mean == pytest.approx((training.mean(), 2 * training.mean()))
    assert facts.deviation == pytest.approx((training.std(), 2 * training.std()))


def test_order_is_a_pure_function_of_seed_and_index(tmp_path: Path) -> None:
    data = dataset(tmp_path, frame(100))
    whole = data.draw(3, 0, 64)
    parts = [data.draw(3, start, start + size) for start, size in ((0, 1), (1, 7), (8, 56))]
    assert np.array_equal(whole, np.concatenate(parts))
    assert not np.array_equal(whole, data.draw(4, 0, 64))
    counts = np.bincount(data.draw(0, 0, 62_000), minlength=62)
    assert counts.min() > 800 and counts.max() < 1200 and len(counts) == 62


def test_missing_targets_are_masked_counted_and_told(tmp_path: Path) -> None:
    table = frame()
    table.loc[[3, 50], "load"] = np.nan
    data = dataset(tmp_path, table)
    assert "load: 2 of 60 values are missing; they are masked" in data.notes
    assert np.isnan(data.batch(Split.TRAIN, np.array([0])).context[0, 3, 0])
    assert np.isfinite(data.facts.mean).all()


def test_a_small_deviation_around_a_large_mean_is_kept(tmp_path: Path) -> None:
    wave = np.sin(np.arange(60))
    data = dataset(tmp_path, frame().assign(load=1e9 + wave))
    expected = (wave - wave[:42].mean()) / wave[:42].std()
    context = data.batch(Split.TRAIN, np.array([20])).context[0, :, 0]
    np.testing.assert_allclose(context, expected[20:26], atol=1e-5)
    raw = dataset(tmp_path, frame().assign(load=1e9 + wave), scaling="none")
    assert any("fp32 loses much of its variation" in note for note in raw.notes)


def test_a_digest_changes_with_any_value(tmp_path: Path) -> None:
    first = dataset(tmp_path, frame()).digest
    assert first == dataset(tmp_path, frame()).digest
    assert first != dataset(tmp_path, words(frame(), "heat", 59, 0.0)).digest


def test_padding_repeats_windows_with_weight_zero(tmp_path: Path) -> None:
    batch = dataset(tmp_path, frame()).batch(Split.TRAIN, np.array([4, 5]), size=4)
    assert batch.weight.tolist() == [1, 1, 0, 0]
    assert batch.context.shape == (4, 6, 2)


def test_covariates_are_known_for_context_and_future(tmp_path: Path) -> None:
    data = dataset(
        tmp_path,
        frame(holiday=[i % 2 == 0 for i in range(60)]),
        targets=["load"],
        covariates=["holiday"],
        calendar=["time_of_day"],
    )
    assert data.shape.covariates == 3
    assert data.batch(Split.TRAIN, np.array([0])).covariates[0, :, 2].tolist() == [1, -1] * 4 + [1]
