"""Initial weights depend on (seed, name, expert) alone."""

from __future__ import annotations

import pytest
import torch

from model.config import ModelConfig, SeriesShape
from model.init import Init, Shard, draw, initialise, seed_of
from model.network import TimeSeriesTransformer

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


def test_parameters_differ_by_seed_and_by_name() -> None:
    shape, init = torch.Size([64, 64]), Init(std=1.0)
    names_and_seeds = (("a", 0), ("b", 0), ("a", 1))
    values = [draw(name, Shard.all_of(shape), init, seed) for name, seed in names_and_seeds]
    assert not torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
    assert abs(float(values[0].std()) - 1.0) < 0.05
    assert float(values[0].abs().max()) <= 3.0


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_a_shard_is_a_slice_of_the_whole(stacked: bool, dim: int) -> None:
    shape, init = torch.Size([4, 6, 8]), Init(std=1.0, stacked=stacked)
    whole = draw("a", Shard.all_of(shape), init, 0)
    shard = draw("a", Shard(tuple(shape), dim, 2, 2), init, 0)
    assert torch.equal(shard, whole.narrow(dim, 2, 2))


def test_a_network_made_on_the_meta_device_starts_the_same() -> None:
    here = network()
    with torch.device("meta"):
        there = TimeSeriesTransformer(here.config, SHAPE)
    there.to_empty(device="cpu")
    initialise(there, 7)
    for (name, a), (_, b) in zip(here.named_parameters(), there.named_parameters(), strict=True):
        assert torch.equal(a, b), name
