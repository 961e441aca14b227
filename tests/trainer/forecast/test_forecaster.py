"""What a user may pass to a forecaster, and what comes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forescale import Forecaster, UserError
from model.network import TimeSeriesTransformer
from tests.settings import tiny
from trainer.data import Dataset


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    """Return a forecaster of tiny's two series with weights as they start."""
    settings = tiny(data__rows=800).settings
    facts = Dataset(settings.data).facts
    return Forecaster(TimeSeriesTransformer(settings.model, facts.shape), settings, facts, 0)


def inputs(forecaster: Forecaster) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return two contexts in the series' units and their covariates."""
    shape = forecaster.facts.shape
    mean, deviation = np.asarray(forecaster.facts.mean), np.asarray(forecaster.facts.deviation)
    context = np.random.default_rng(0).normal(size=(2, shape.context_length, shape.channels))
    length, columns = shape.context_length + shape.prediction_length, shape.covariates
    return context * deviation + mean, np.zeros((2, length, columns + len(shape.calendar)))


MODELS: list[dict[str, Any]] = [
    {},
    {"architecture": "encoder", "head": "token", "periods": 1, "arcsinh": True},
    {"architecture": "decoder", "loss_positions": "all", "output_patch_length": 32},
]


@pytest.mark.parametrize("model", MODELS, ids=["query decoder", "token head", "decoder"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("loss", ["mse", "quantile"])
def test_forecasts_of_many_series_follow_scale_and_level(
    model: dict[str, Any], precision: str, loss: str
) -> None:
    """forecast(a x + b) is a forecast(x) + b, to 1e-4 of the deviation."""
    changes = {f"model__{key}": value for key, value in model.items()}
    settings = tiny(data__rows=800, model__loss=loss, **changes).settings
    facts = Dataset(settings.data).facts
    shape = replace(facts.shape, many_series=True)
    facts = replace(facts, shape=shape, scaling="item", mean=(0.0, 0.0), deviation=(1.0, 1.0))
    network = TimeSeriesTransformer(settings.model, shape)
    network = network.bfloat16() if precision == "bf16" else network
    many = Forecaster(network, settings, facts, 0)
    context = np.random.default_rng(0).normal(size=(8, shape.context_length, 2)).cumsum(1)
    context[0, 5:9] = np.nan
    length, columns = shape.context_length + shape.prediction_length, shape.covariates
    known = np.random.default_rng(1).normal(size=(8, length, columns + len(shape.calendar)))
    plain = many.forecast(context, known)
    deviation = np.nanstd(context, axis=1, keepdims=True)
    assert np.abs(plain - context[:, -1:]).max() > 0.1
    for a in (1e-6, 0.37, 1.0, 3e3, 1e6):
        for b in (0.0, 50.0 * a, -1e4 * a * float(deviation.max())):
            moved = many.forecast(a * context + b, known)
            off = np.abs((moved - b) / a - plain) / deviation
            assert off.max() < 1e-4, (a, b)


@pytest.mark.parametrize("device", ["cuda:99", "meta:x", "nothing"])
def test_a_device_that_is_not_there_is_named(device: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"device='{device}': .*; device='cpu' is always there"):
        Forecaster.load(tmp_path, device=device)


def test_missing_points_are_forecast_from_the_others(forecaster: Forecaster) -> None:
    context, covariates = inputs(forecaster)
    context[0, :5] = np.nan
    forecast = forecaster.forecast(context, covariates)
    shape = forecaster.facts.shape
    assert forecast.shape == (2, shape.prediction_length, shape.channels)
    assert np.isfinite(forecast).all()


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_an_infinite_value_is_named(forecaster: Forecaster, value: float) -> None:
    context, covariates = inputs(forecaster)
    context[1, 3, 0] = value
    with pytest.raises(UserError, match=rf"context: found {value} at \[1, 3, 0\]; set it to NaN"):
        forecaster.forecast(context, covariates)


def test_a_channel_without_any_value_is_named(forecaster: Forecaster) -> None:
    context, covariates = inputs(forecaster)
    context[1, :, 1] = np.nan
    with pytest.raises(UserError, match="channel 1 of context 1 has no value at all"):
        forecaster.forecast(context, covariates)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_covariates_must_be_known(forecaster: Forecaster, value: float) -> None:
    context, covariates = inputs(forecaster)
    covariates[0, 7, 0] = value
    with pytest.raises(UserError, match=r"covariates: found .* at \[0, 7, 0\]; all covariates"):
        forecaster.forecast(context, covariates)


def test_what_is_no_array_of_the_right_shape_is_named(forecaster: Forecaster) -> None:
    context, covariates = inputs(forecaster)
    length, channels = context.shape[1:]
    with pytest.raises(UserError, match=r"context: a table's columns are not known here; pass an"):
        forecaster.forecast(pd.DataFrame(context[0]), covariates)
    with pytest.raises(UserError, match="context: not an array of numbers: could not convert"):
        forecaster.forecast([[["a"] * channels] * length] * 2, covariates)
    with pytest.raises(UserError, match="context: not an array of numbers"):
        forecaster.forecast([[1.0, 2.0], [3.0]], covariates)
    with pytest.raises(
        UserError, match=rf"context: expected \[B, 1 to {length}, {channels}\], got"
    ):
        forecaster.forecast(context[0], covariates)
    with pytest.raises(UserError, match="covariates: expected"):
        forecaster.forecast(context)
    with pytest.raises(UserError, match="covariates: of 1 contexts, and there are 2"):
        forecaster.forecast(context, covariates[:1])
