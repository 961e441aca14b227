"""Parts of series and windows of them: nothing is seen that should not be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from model.errors import UserError
from tests.settings import planned
from tests.trainer.data.sets import prepared
from trainer.config.data_settings import DataConfig, SourceConfig
from trainer.data import Dataset, Split
from trainer.data.windows import Windows

LENGTH, HORIZON = 12, 4


def series(name: str, points: int, start: str = "2024-01-01", freq: str = "h") -> pd.DataFrame:
    """Return a long table's rows of one series, each value the number of its hour since 1970."""
    times = pd.date_range(start, periods=points, freq=freq)
    hours = (times - pd.Timestamp("1970-01-01")) / pd.Timedelta(hours=1)
    return pd.DataFrame({"unique_id": name, "time": times, "y": hours + 0.125})


def dataset(folder: Path, *frames: pd.DataFrame, name: str = "t", **config: Any) -> Dataset:
    """Return the dataset of a table of several series, unscaled."""
    file = folder / f"{name}.parquet"
    pd.concat(frames, ignore_index=True).to_parquet(file)
    settings = {"source": str(file), "scaling": "none", **config}
    return Dataset(DataConfig(context_length=LENGTH, prediction_length=HORIZON, **settings))


def everything(data: Dataset, split: Split) -> tuple[Any, Any]:
    """Return all contexts and targets of a split [N, L] and [N, H]."""
    batch = data.batch(split, np.arange(data.windows(split)))
    return batch.context[:, :, 0], batch.target[:, :, 0]


@pytest.mark.parametrize("seed", range(20))
def test_windows_are_all_that_fit(seed: int) -> None:
    """By the definition, written as a loop."""
    rng = np.random.default_rng(seed)
    begin = rng.integers(0, 30, 8)
    end = begin + rng.integers(0, 40, 8)
    context, horizon = int(rng.integers(1, 20)), int(rng.integers(1, 8))
    windows = Windows.between(begin, end, context, horizon)
    expected = []
    for item in range(8):
        futures = range(max(1, int(begin[item])), int(end[item]) - horizon + 1)
        whole = [future for future in futures if future >= context]
        expected += [(item, future - context) for future in whole or list(futures)[-1:]]
    item, first = windows.locate(np.arange(len(windows)))
    assert list(zip(item.tolist(), first.tolist(), strict=True)) == expected
    offset = first - windows.first[item]
    assert (windows.number(item, offset) == np.arange(len(windows))).all()


def test_short_series_are_padded_on_the_left(tmp_path: Path) -> None:
    data = dataset(tmp_path, series("long", 100), series("short", 12), series("tiny", 5))
    assert data.shape.missing and data.windows(Split.TRAIN) == 70 - 15 + 1
    context, target = everything(data, Split.TRAIN)
    assert np.isnan(context[-1, :8]).all() and (np.diff(context[-1, 8:]) == 1).all()
    assert target[-1, 0] == context[-1, -1] + 1
    (short, padded) = (note for note in data.notes if "of 3 series" in note)
    assert "1 of 3 series have no training window, such as tiny with 3 points" in short
    assert padded.startswith("1 of 3 series are shorter")


@pytest.mark.parametrize("freqs", [("h", "h"), ("h", "D"), ("MS", "h"), ("B", "15min")])
def test_a_cut_in_time_is_one_for_all_series(tmp_path: Path, freqs: tuple[str, str]) -> None:
    """Whatever their own dates: none is trained on beyond the first cut, by context or future."""
    cuts = ["2024-03-01", "2024-04-15"]
    starts = ["2024-01-01", "2024-02-10"]
    frames = [series("a", 3000, starts[0], freqs[0]), series("b", 3000, starts[1], freqs[1])]
    if "MS" in freqs:
        frames[0] = series("a", 60, "2020-01-01", "MS")
    data = dataset(tmp_path, *frames, split_at=cuts)
    first, second = (pd.Timestamp(cut).timestamp() / 3600 for cut in cuts)
    context, target = everything(data, Split.TRAIN)
    assert np.nanmax(context) < first and np.nanmax(target) < first
    context, target = everything(data, Split.VALIDATION)
    assert np.nanmin(target) >= first and np.nanmax(target) < second
    context, target = everything(data, Split.TEST)
    assert np.nanmin(target) >= second


def test_a_cut_is_of_the_series_zone(tmp_path: Path) -> None:
    frame = series("a", 2000)
    frame["time"] = frame["time"].dt.tz_localize("UTC")
    data = dataset(tmp_path, frame, split_at=["2024-02-01", "2024-03-01"], timezone="Asia/Tokyo")
    cut = pd.Timestamp("2024-02-01", tz="Asia/Tokyo").timestamp() / 3600
    assert np.nanmax(everything(data, Split.TRAIN)[1]) == cut - 1 + 0.125


def test_the_last_points_of_each_series(tmp_path: Path) -> None:
    data = dataset(
        tmp_path, series("a", 100), series("b", 60, "2020-01-01"), split_last=[5, HORIZON]
    )
    assert [data.windows(split) for split in Split] == [91 - 15 + 51 - 15, 2 + 2, 2, 0]
    target = everything(data, Split.TEST)[1]
    ends = [pd.Timestamp("2024-01-01") + pd.Timedelta(hours=99), pd.Timestamp("2020-01-03 11:00")]
    assert target[:, -1].tolist() == [end.timestamp() / 3600 + 0.125 for end in ends]


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        (["2024-03-01", "2024-02-01"], "2024-02-01 is before 2024-03-01"),
        (["soon", "2024-03-01"], "'soon' is no time"),
        (["2024-03-01T00:00+01:00", "2024-04-01"], "names an offset"),
        (["1999-01-01", "2000-01-01"], "no series is long enough"),
    ],
)
def test_a_cut_that_is_none(tmp_path: Path, cuts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataset(tmp_path, series("a", 3000), split_at=cuts)


def test_series_without_times_cannot_be_cut_in_time(tmp_path: Path) -> None:
    frame = series("a", 300).drop(columns="time")
    with pytest.raises(UserError, match=r"data\.split_at: a has no times"):
        dataset(tmp_path, frame, split_at=["2024-03-01", "2024-04-01"])


def test_series_that_are_held_out_are_not_trained_on(tmp_path: Path) -> None:
    frames = [series(f"s{n}", 40, f"{1990 + n}-01-01") for n in range(200)]
    data = dataset(tmp_path, *frames, held_out=0.2)
    held = {data.item_id(int(i)) for i in data.items_of(Split.HELD_OUT, all_of(data, "held_out"))}
    assert 20 <= len(held) <= 60
    for split in ("train", "validation", "test"):
        seen = {data.item_id(int(i)) for i in data.items_of(Split(split), all_of(data, split))}
        assert not seen & held and len(seen) == 200 - len(held)
    drawn = data.items_of(Split.TRAIN, data.draw(0, 0, 20_000))
    assert not {data.item_id(int(item)) for item in np.unique(drawn)} & held
    assert data.windows(Split.HELD_OUT) == len(held) * (40 - LENGTH - HORIZON + 1)
    other = dataset(tmp_path, *frames[::2], held_out=0.2, name="other")
    again = {
        other.item_id(int(i)) for i in other.items_of(Split.HELD_OUT, all_of(other, "held_out"))
    }
    assert again == held & {f"s{n}" for n in range(0, 200, 2)}


def all_of(data: Dataset, split: str) -> Any:
    """Return the numbers of all windows of a split."""
    return np.arange(data.windows(Split(split)))


def test_what_is_after_the_training_part_changes_nothing_in_it(tmp_path: Path) -> None:
    """No statistic reaches past the cut, of values or of covariates."""
    frame = pd.concat([series("a", 200), series("b", 150)]).reset_index(drop=True)
    frame["price"] = np.cos(np.arange(len(frame)))
    changed = frame.copy()
    late = frame.groupby("unique_id").cumcount() >= frame["unique_id"].map({"a": 140, "b": 105})
    changed.loc[late, ["y", "price"]] *= -1000
    roles = {"scaling": "train", "covariates": ["price"], "targets": ["y"]}
    first = dataset(tmp_path, frame, name="first", **roles)
    second = dataset(tmp_path, changed, name="second", **roles)
    index = all_of(first, "train")
    ours, theirs = first.batch(Split.TRAIN, index), second.batch(Split.TRAIN, index)
    for name in ("context", "target", "covariates"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


def test_series_that_differ_in_scale_alone_look_alike(tmp_path: Path) -> None:
    wave = np.sin(np.arange(100)) + np.arange(100) % 7
    frames = [series("a", 100).assign(y=wave), series("b", 100).assign(y=1e6 * wave - 3e7)]
    data = dataset(tmp_path, *frames, scaling="train")
    context, target = everything(data, Split.TRAIN)
    half = len(context) // 2
    np.testing.assert_allclose(context[:half], context[half:], atol=1e-5)
    np.testing.assert_allclose(target[:half], target[half:], atol=1e-5)


def mixture(folder: Path, **config: Any) -> Dataset:
    """Return a mixture of two sets, drawn 3 to 1, of unequal numbers of windows."""
    sets = []
    for name, points in (("a", [400, 60]), ("b", [100, 100, 30])):
        frames = [series(f"{name}{n}", size, f"{2000 + n}-01-01") for n, size in enumerate(points)]
        pd.concat(frames).to_parquet(folder / f"{name}.parquet")
        sets.append(prepared(folder, folder / f"{name}.parquet").folder)
    sources = [
        SourceConfig(path=str(path), weight=weight)
        for path, weight in zip(sets, (3, 1), strict=True)
    ]
    return Dataset(
        DataConfig(
            source=sources,
            context_length=LENGTH,
            prediction_length=HORIZON,
            scaling="none",
            **config,
        )
    )


def test_a_mixture_is_drawn_by_its_weights(tmp_path: Path) -> None:
    data = mixture(tmp_path)
    index = data.draw(0, 0, 20_000)
    items = data.items_of(Split.TRAIN, index)
    share = np.mean(items < 2)
    assert abs(share - 0.75) < 0.015  # five deviations
    windows = data.items_of(Split.TRAIN, all_of(data, "train"))
    within = np.mean(items[items < 2] == 0)
    assert abs(within - np.mean(windows[windows < 2] == 0)) < 0.015
    names = [data.item_id(n) for n in range(data.items)]
    assert names == ["a0", "a1", "b0", "b1", "b2"]
    batch = data.batch(Split.TRAIN, index[:500])
    for item, context in zip(items[:500], batch.context[:, :, 0], strict=True):
        year = pd.Timestamp(f"{2000 + int(names[int(item)][1])}-01-01").timestamp() / 3600
        assert 0 <= np.nanmin(context) - year < 400


def test_all_series_of_a_source_are_as_likely_with_exponent_0(tmp_path: Path) -> None:
    data = mixture(tmp_path, length_exponent=0.0)
    items = data.items_of(Split.TRAIN, data.draw(0, 0, 20_000))
    counts = np.bincount(items, minlength=5) / 20_000
    np.testing.assert_allclose(counts, [0.375, 0.375, 1 / 12, 1 / 12, 1 / 12], atol=0.02)


def test_an_epoch_has_each_window_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an epoch sees each window once"):
        mixture(tmp_path, order="epoch")
    data = dataset(tmp_path, series("a", 200), series("b", 90, "2020-01-01"), order="epoch")
    total = data.windows(Split.TRAIN)
    for epoch in range(3):
        drawn = data.draw(7, epoch * total, (epoch + 1) * total)
        assert sorted(drawn.tolist()) == list(range(total))


def test_what_a_source_lacks_of_the_channels_is_missing(tmp_path: Path) -> None:
    series("a", 100).to_parquet(tmp_path / "a.parquet")
    series("b", 100).assign(z=lambda f: f["y"] * 2).to_parquet(tmp_path / "b.parquet")
    sources = [SourceConfig(path=str(tmp_path / f"{name}.parquet")) for name in "ab"]
    data = Dataset(DataConfig(source=sources, context_length=LENGTH, prediction_length=HORIZON))
    assert data.channels == ["y", "z"] and data.shape.missing
    assert any("has 1 of 2 channels; others are masked" in note for note in data.notes)
    each = data.windows(Split.TRAIN) // 2
    batch = data.batch(Split.TRAIN, np.array([3, each + 3]))
    for values in (batch.context, batch.target):
        assert np.isnan(values[0, :, 1]).all() and not np.isnan(values[0, :, 0]).any()
        assert not np.isnan(values[1]).any()
    mean, deviation = data.scales(np.arange(2))
    assert (mean[0, 1], deviation[0, 1]) == (0, 1) and np.isnan(data.seasonal_scale([0])[0, 1])
    changes = {
        "data.source": [source.model_dump(exclude_none=True) for source in sources],
        "data.targets": None,
        "data.covariates": [],
        "data.calendar": [],
        "data.rows": None,
        "data.timezone": None,
        "data.context_length": LENGTH,
        "data.prediction_length": HORIZON,
        "model.patch_length": 4,
    }
    assert planned(tmp_path / "run", {**changes, "model.channels": "grouped"})
    for other in ({}, {"model.channels": "grouped", "model.channel_embedding": True}):
        with pytest.raises(
            UserError, match=r"a.parquet has 1 channel, and .*b.parquet 2; .*=grouped"
        ):
            planned(tmp_path / "run", {**changes, **other})


def test_sources_that_hold_the_same_are_refused(tmp_path: Path) -> None:
    frame = series("a", 300)
    first, copy = (tmp_path / name for name in ("first.csv", "copy.csv"))
    for file in (first, copy):
        frame.to_csv(file, index=False)
    made = {"synthetic": {"kind": "structured", "items": 10, "length": 200}}
    for pair in ([{"path": str(first)}, {"path": str(copy)}], [made, made]):
        with pytest.raises(UserError, match=r"data\.source: .* hold the same; name one of them"):
            Dataset(DataConfig(source=pair, context_length=20, prediction_length=5))
    other = {"synthetic": {**made["synthetic"], "seed": 1}}
    Dataset(DataConfig(source=[made, other], context_length=20, prediction_length=5))
