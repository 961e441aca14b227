"""The table knows every parameter, and parts fit together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.init import initialise
from model.network import TimeSeriesTransformer
from model.network_config import ModelConfig, SeriesShape
from parallel.layout import Layout
from parallel.pipeline_parallel import keep_only, split_layers, tied_modules
from parallel.sharding import shard_parameters, sharding

SHAPE = SeriesShape(96, 32, channels=2, covariates=1, calendar=(24, 7))
SMALL = {"d_model": 32, "nhead": 4, "num_layers": 2, "dim_feedforward": 96}
NETWORKS: list[dict[str, Any]] = [
    {"use_moe": True, "shared_expert": True, "position": "learned", "balance_rate": 0.1},
    {
        "architecture": "encoder",
        "att_type": "frequency",
        "use_adaptive_ln": "adaptive",
        "channel_embedding": True,
    },
    {"architecture": "decoder", "use_moe": True, "use_swiglu": False, "num_kv_heads": 2},
]


def network(changes: dict[str, Any]) -> TimeSeriesTransformer:
    return TimeSeriesTransformer(ModelConfig(**SMALL, **changes), SHAPE)


@pytest.mark.parametrize("changes", NETWORKS)
@pytest.mark.parametrize("expert", [1, 2, 4])
def test_the_parts_of_all_ranks_are_the_whole(changes: dict[str, Any], expert: int) -> None:
    whole = network(changes)
    initialise(whole, 3)
    layout = Layout.of(4, pipeline=1, tensor=2, expert=expert)
    filled = {name: torch.full_like(p, float("nan")) for name, p in whole.named_parameters()}
    for rank in range(layout.world):
        with torch.device("meta"):
            mine = network(changes)
        shards = shard_parameters(mine, layout, layout.coordinates(rank))
        mine.to_empty(device="cpu")
        initialise(mine, 3, shards)
        for name, parameter in mine.named_parameters():
            shard = shards[name]
            filled[name].narrow(shard.dim, shard.start, shard.size).copy_(parameter.detach())
    for name, parameter in whole.named_parameters():
        assert torch.equal(filled[name], parameter), name


def test_a_parameter_that_is_not_in_the_table_is_an_error() -> None:
    with pytest.raises(LookupError, match=r"gate\.weight is not in the sharding"):
        sharding("encoder.layers.0.gate.weight")


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("shared", [False, True])
def test_stages_hold_every_parameter_and_share_what_is_tied(stages: int, shared: bool) -> None:
    changes = {"architecture": "encoder_decoder", "share_layers": shared}
    whole = network(changes)
    cuts = split_layers(whole, stages)
    held: dict[str, list[int]] = {}
    for number in range(stages):
        part = network(changes)
        keep_only(part, split_layers(part, stages)[number])
        for name, _ in part.named_parameters():
            held.setdefault(name, []).append(number)
    assert set(held) == {name for name, _ in whole.named_parameters()}
    tied = tied_modules(cuts)
    for name, numbers in held.items():
        owners = next((s for t, s in tied.items() if name.startswith(f"{t}.")), numbers[:1])
        assert numbers == owners
    assert bool(tied) == (shared and stages == 4)
