"""The ridge regression beside a network's scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from model.errors import UserError
from trainer.config.data_settings import DataConfig
from trainer.data import Dataset, Split
from trainer.forecast.ridge import PENALTIES, Ridge

LENGTH, HORIZON = 16, 4


def dataset(folder: Path, values: np.ndarray, **changes: object) -> Dataset:
    """Return the dataset of the columns of `values` [T, C]."""
    columns = {f"c{n}": column for n, column in enumerate(values.T)}
    pd.DataFrame(columns).to_csv(folder / "series.csv", index=False)
    settings = {"context_length": LENGTH, "prediction_length": HORIZON, "time_column": "none"}
    return Dataset(
        DataConfig.model_validate({"source": str(folder / "series.csv"), **settings, **changes})
    )


def autoregressive(points: int, seed: int) -> np.ndarray:
    """Return a series of the second order with noise of deviation 1."""
    rng, values = np.random.default_rng(seed), [0.0, 0.0]
    for _ in range(points):
        values.append(1.6 * values[-1] - 0.8 * values[-2] + rng.normal())
    return np.array(values[2:])


def rows(data: Dataset, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and outputs, a row for each window and channel."""
    batch = data.batch(split, np.arange(data.windows(split)))
    inputs, outputs = [], []
    for context, target in zip(batch.context, batch.target, strict=True):
        for past, future in zip(context.T.tolist(), target.T.tolist(), strict=True):
            inputs.append([*(value - past[-1] for value in past[:-1]), past[-1], 1.0])
            outputs.append([value - past[-1] for value in future])
    return np.array(inputs), np.array(outputs)


def test_it_is_the_plain_formula_at_the_penalty_that_validation_likes_best(tmp_path: Path) -> None:
    data = dataset(tmp_path, np.stack([autoregressive(600, 1), 30 * autoregressive(600, 2)], 1))
    made = Ridge.fit(data)
    (x, y), (seen, wanted) = rows(data, Split.TRAIN), rows(data, Split.VALIDATION)
    unit = np.trace(x.T @ x) / (LENGTH + 1)
    plain = {
        p: np.linalg.solve(x.T @ x + p * unit * np.eye(LENGTH + 1), x.T @ y) for p in PENALTIES
    }
    errors = {p: np.square(wanted - seen @ weights).sum() for p, weights in plain.items()}
    assert made.penalty == min(errors, key=lambda p: errors[p])
    np.testing.assert_allclose(made.weights, plain[made.penalty], atol=1e-6)
    batch = data.batch(Split.TEST, np.arange(data.windows(Split.TEST)))
    expected = rows(data, Split.TEST)[0] @ plain[made.penalty]
    last = batch.context[:, -1].reshape(-1, 1)
    found = made(batch.context).transpose(0, 2, 1).reshape(-1, HORIZON)
    np.testing.assert_allclose(found, expected + last, atol=1e-4)


def test_a_linear_process_is_forecast_up_to_its_noise(tmp_path: Path) -> None:
    data = dataset(tmp_path, autoregressive(6000, 3)[:, None], scaling="none")
    made = Ridge.fit(data)
    batch = data.batch(Split.TEST, np.arange(data.windows(Split.TEST)))
    errors = np.square(made(batch.context) - batch.target).mean((0, 2))
    # The variance of the error of an ideal forecast of n points ahead: 1, 1 + 1.6^2, ...
    weights = [1.0, 1.6]
    while len(weights) < HORIZON:
        weights.append(1.6 * weights[-1] - 0.8 * weights[-2])
    np.testing.assert_allclose(errors, np.cumsum(np.square(weights)), rtol=0.15)


def test_missing_points_are_left_out_of_the_fit_and_filled_in_forecasts(tmp_path: Path) -> None:
    """A fit to windows with holes is that to the series up to these."""
    values = autoregressive(600, 4)[:, None]
    validation = {"scaling": "none", "split": [300, 150, 150]}
    whole = Ridge.fit(dataset(tmp_path, values, **validation))
    longer = np.concatenate([np.full((1, 1), np.nan), values])
    holed = dataset(tmp_path, longer, scaling="none", split=[301, 150, 150])
    made = Ridge.fit(holed)
    np.testing.assert_allclose(made.weights, whole.weights, atol=1e-6)
    values[-20:-10] = np.nan
    batch = dataset(tmp_path, values, **validation).batch(Split.TEST, np.arange(100))
    assert np.isfinite(made(batch.context)).all()
    values[::7] = np.nan
    with pytest.raises(UserError, match="--ridge: no window of the training part is without"):
        Ridge.fit(dataset(tmp_path, values))
