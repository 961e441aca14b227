"""Each element of an initial weight depends on (seed, name, place) alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.counter_generator import normal, random_bits
from model.init import Init, Shard, fill, initialise, seed_of
from model.network import TimeSeriesTransformer
from model.network_config import ModelConfig, SeriesShape

SHAPE = SeriesShape(context_length=32, prediction_length=8, channels=2, covariates=1)


CONFIG = {
    "d_model": 32,
    "nhead": 2,
    "num_layers": 2,
    "dim_feedforward": 96,
    "use_moe": True,
    "num_experts": 4,
    "patch_length": 8,
}


def network(**changes: object) -> TimeSeriesTransformer:
    """Return an initialised network, with `changes` to CONFIG."""
    result = TimeSeriesTransformer(ModelConfig.model_validate({**CONFIG, **changes}), SHAPE)
    initialise(result, 7)
    return result


def test_seeds_never_change() -> None:
    """A run that is repeated or resumed depends on them for its weights and its dropout."""
    assert seed_of(7, "encoder.weight", 0) == 6007586019769577625
    assert len({seed_of(1, 12), seed_of(11, 2), seed_of(12, 1), seed_of(1, 1, 2)}) == 4


def test_a_parameter_does_not_depend_on_the_others() -> None:
    deep, shallow = network(num_layers=3), network(num_layers=1)
    weights = dict(deep.named_parameters())
    for name, parameter in shallow.named_parameters():
        assert torch.equal(parameter, weights[name]), name


def test_an_expert_does_not_depend_on_how_many_there_are() -> None:
    few, many = network(num_experts=2), network(num_experts=8)
    name = "encoder.layers.0.feed_forward.experts.input"
    assert torch.equal(few.get_parameter(name), many.get_parameter(name)[:2])


def draw(name: str, shard: Shard, seed: int) -> Tensor:
    """Return a shard of a parameter."""
    value = torch.empty(shard.shape)
    fill(value, name, shard, Init(std=1.0), seed)
    return value


def test_parameters_differ_by_seed_and_by_name() -> None:
    shape = torch.Size([64, 64])
    names_and_seeds = (("a", 0), ("b", 0), ("a", 1))
    values = [draw(name, Shard.all_of(shape), seed) for name, seed in names_and_seeds]
    assert not torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
    assert abs(float(values[0].std()) - 1.0) < 0.05
    assert float(values[0].abs().max()) <= 3.0


@pytest.mark.parametrize("shape", [(4, 6, 8), (6, 700, 20), (9,)])
def test_a_shard_is_a_slice_of_the_whole(shape: tuple[int, ...]) -> None:
    whole = draw("a", Shard.all_of(torch.Size(shape)), 0)
    for dim, size in enumerate(shape):
        for start, count in ((0, size), (0, 2), (1, size // 2), (size - 2, 2)):
            shard = draw("a", Shard(shape, dim, start, count), 0)
            assert torch.equal(shard, whole.narrow(dim, start, count)), (dim, start, count)


def test_where_it_lies_in_memory_does_not_matter() -> None:
    whole, turned = draw("a", Shard.all_of(torch.Size([5, 7])), 0), torch.empty(7, 5).t()
    fill(turned, "a", Shard.all_of(torch.Size([5, 7])), Init(std=1.0), 0)
    assert torch.equal(whole, turned)


def test_bits_are_those_of_splitmix64() -> None:
    """Compare with the reference's published outputs, and with its definition in whole numbers."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [bits % 2**64 for bits in random_bits(1234567, torch.arange(3)).tolist()] == published

    def defined(seed: int, counter: int) -> int:
        z = (seed + (counter + 1) * 0x9E3779B97F4A7C15) % 2**64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    for seed in (0, 2**63 - 1, seed_of(3, "head.weight")):
        counters = torch.tensor([0, 1, 12345, 2**33, 2**40 + 7])
        bits = [value % 2**64 for value in random_bits(seed, counters).tolist()]
        assert bits == [defined(seed, counter) for counter in counters.tolist()]


def test_numbers_are_normal_and_independent() -> None:
    """Compare with the truncated distribution, and neighbours and rows with each other."""
    x = normal(seed_of(0, "a"), torch.arange(2**20)).double()
    standard = torch.distributions.Normal(0.0, 1.0)
    low = standard.cdf(torch.tensor(-3.0, dtype=torch.float64))
    edges = torch.linspace(-3, 3, 61, dtype=torch.float64)
    expected = (standard.cdf(edges[1:-1]) - low) / (1 - 2 * low)
    observed = (x.unsqueeze(0) < edges[1:-1].unsqueeze(1)).double().mean(1)
    assert float((observed - expected).abs().max()) < 1.63 / 2**10  # Kolmogorov-Smirnov at 1 %
    other = normal(seed_of(0, "b"), torch.arange(2**20)).double()
    pairs = [(x[:-lag], x[lag:]) for lag in (1, 2, 64, 1000, 1024, 4096)] + [(x, other)]
    for a, b in pairs:
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 5 / 2**10


def test_extreme_draws_are_finite() -> None:
    x = normal(0, torch.arange(2**22))
    assert bool(torch.isfinite(x).all()) and float(x.abs().max()) <= 3.0


def test_a_network_made_on_the_meta_device_starts_the_same() -> None:
    here = network()
    with torch.device("meta"):
        there = TimeSeriesTransformer(here.config, SHAPE)
    there.to_empty(device="cpu")
    initialise(there, 7)
    for (name, a), (_, b) in zip(here.named_parameters(), there.named_parameters(), strict=True):
        assert torch.equal(a, b), name
