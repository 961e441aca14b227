"""Series that are made: functions of seed and number, of the distributions that they claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from model.errors import UserError
from tests.settings import tiny
from tests.trainer.data.sets import csv, hourly
from trainer.config.data_settings import DataConfig, SourceConfig, SyntheticConfig
from trainer.data import Dataset, Split
from trainer.data.synthetic.components import coupled, intermittent
from trainer.data.synthetic.gaussian_process import (
    Linear,
    Term,
    bank,
    compose,
    periodic,
    rational_quadratic,
    sample_term,
    squared_exponential,
    white,
)
from trainer.data.synthetic.synthetic_set import SyntheticSet

KINDS = ["gaussian_process", "structured", "intermittent", "coupled"]


def made(kind: str, **settings: Any) -> SyntheticSet:
    """Return a small source of made series."""
    return SyntheticSet(SyntheticConfig(kind=kind, **{"items": 50, "length": 200, **settings}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_series_is_a_function_of_seed_and_number(kind: str, channels: int) -> None:
    one, other = (made(kind, channels=channels) for _ in range(2))
    numbers = np.random.default_rng(0).permutation(50)
    for number in numbers.tolist():
        values = one.target(number)
        assert values.shape == (channels, 200) and np.isfinite(values).all()
    for number in range(50):
        assert np.array_equal(one.target(number), other.target(number))
    series = [one.target(number).tobytes() for number in range(50)]
    assert len(set(series)) == 50
    assert made(kind, channels=channels, seed=1).target(0).tobytes() not in series
    assert one.digest == other.digest != made(kind, channels=channels, seed=1).digest


@pytest.mark.parametrize(
    "term",
    [
        Term((squared_exponential(0.1).covariance,)),
        Term((rational_quadratic(1.0).covariance, periodic(0.25).covariance)),
        Term((white(0.5).covariance,), variance=4.0),
        Term((squared_exponential(0.1).covariance,), powers=1, variance=2.0),
    ],
)
def test_paths_have_the_covariance_of_their_kernel(term: Term) -> None:
    """Over 20,000 paths, beside the kernel's own formula; the embedding errs by 8 % at most."""
    length, paths = 40, 20_000
    rng = np.random.default_rng(0)
    sampled = np.stack([sample_term(term, rng, length) for _ in range(paths)])
    x = np.linspace(0, 1, length)
    expected = np.full((length, length), term.variance)
    for factor in term.factors:
        expected = expected * factor(np.abs(x[:, None] - x[None]))
    expected = expected * np.outer(x, x) ** term.powers
    found = sampled.T @ sampled / paths
    bound = 6 * np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / paths)
    assert (np.abs(found - expected) <= bound + 0.08 * term.variance).all()


def test_a_product_is_spread_over_a_sum() -> None:
    """(k + c^2 + x x') (d^2 + x x') is evaluated at pairs of inputs."""
    kernel = squared_exponential(1.0)
    terms = [*Term().times(kernel), *Term().times(Linear(3.0))]
    terms = [product for term in terms for product in term.times(Linear(2.0))]
    x = np.linspace(0, 1, 7)
    distance, both = np.abs(x[:, None] - x[None]), np.outer(x, x)
    expected = (kernel.covariance(distance) + 9 + both) * (4 + both)
    found = np.zeros((7, 7))
    for term in terms:
        part = np.full((7, 7), term.variance) * both**term.powers
        for factor in term.factors:
            part = part * factor(distance)
        found += part
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_all_kernels_are_composed() -> None:
    rng = np.random.default_rng(0)
    terms = [compose(rng, 1024) for _ in range(500)]
    assert {len(one) for one in terms} >= {1, 2, 3, 4} and len(bank(1024)) > 20
    assert any(term.powers for one in terms for term in one)


def test_demand_is_often_nothing() -> None:
    rng = np.random.default_rng(0)
    shares = [float((intermittent(rng, 300) == 0).mean()) for _ in range(50)]
    assert 0.5 < np.mean(shares) < 0.95


def test_channels_are_coupled() -> None:
    """Most pairs of channels go together more than those of independent noise would."""
    rng = np.random.default_rng(0)
    strengths = []
    for _ in range(30):
        values = coupled(rng, 400, 4)
        strengths.append(np.abs(np.corrcoef(values)[np.triu_indices(4, 1)]).max())
    assert np.median(strengths) > 0.5


def test_mixtures_of_real_series(tmp_path: Path) -> None:
    file = csv(tmp_path, hourly(500))
    config = DataConfig(
        source=[SourceConfig(synthetic=SyntheticConfig(kind="mixup", of=str(file), length=100))],
        context_length=50,
        prediction_length=10,
    )
    data = Dataset(config)
    batch = data.batch(Split.TRAIN, data.draw(0, 0, 32))
    assert np.isfinite(batch.context).all() and (np.diff(batch.context[:, :, 0]) > 0).all()


def test_made_series_are_a_source_beside_others(tmp_path: Path) -> None:
    sources = [
        SourceConfig(path=str(csv(tmp_path, hourly(500))), weight=1.0),
        SourceConfig(synthetic=SyntheticConfig(kind="structured", length=100), weight=3.0),
    ]
    data = Dataset(DataConfig(source=sources, context_length=50, prediction_length=10))
    index = data.draw(0, 0, 4000)
    assert abs(np.mean(data.items_of(Split.TRAIN, index) > 0) - 0.75) < 0.04
    assert data.windows(Split.TEST) == 500 - 400 - 10 + 1  # made series are for training
    assert np.isfinite(data.batch(Split.TRAIN, index[:256]).context).all()
    assert data.facts.sources[1].name == "synthetic structured"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "a", "synthetic": {"kind": "structured"}}, "either a path or the key synthetic"),
        ({}, "either a path or the key synthetic"),
        ({"synthetic": {"kind": "mixup"}}, "mixup mixes the series of a source"),
        ({"synthetic": {"kind": "noise"}}, "gaussian_process"),
        ({"path": "a", "weight": 0.0}, "greater than 0"),
        ({"path": "a", "weight": -1.0}, "greater than 0"),
    ],
)
def test_sources_that_are_none(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SourceConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, r"data\.source: expected text, got 5"),
        ([{"path": "a", "wieght": 2}], r"data\.source\.0\.wieght: unknown key"),
        ([{"path": "a", "weight": 0}], r"data\.source\.weight: expected greater than 0, got 0"),
    ],
)
def test_a_mistake_in_a_list_of_sources_is_named(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(data__source=value)
