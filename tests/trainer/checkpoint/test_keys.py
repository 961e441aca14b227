"""The keys of a state name the kind of a tensor and its global name."""

from __future__ import annotations

import torch
from torch import nn

from trainer.checkpoint.keys import (
    NETWORK_KINDS,
    PARAMETER_KINDS,
    buffers_of,
    global_name,
    make_key,
    of_kinds,
    split_key,
    state_of,
)


def test_a_key_is_split_as_it_was_made() -> None:
    for kind in {*PARAMETER_KINDS, *NETWORK_KINDS}:
        key = make_key(kind, "encoder.layers.0.norm.weight")
        assert split_key(key) == (kind, "encoder.layers.0.norm.weight")
        assert global_name(key) == "encoder.layers.0.norm.weight"
    assert make_key("weights", "head.bias") == "weights/head.bias"


def test_entries_are_chosen_by_kind() -> None:
    state = {"weights/a": 1, "exp_avg/a": 2, "exp_avg_sq/a": 3, "buffers/b": 4}
    assert of_kinds(state, *NETWORK_KINDS) == {"weights/a": 1, "buffers/b": 4}
    assert of_kinds(state, *PARAMETER_KINDS) == {k: v for k, v in state.items() if v < 4}
    assert of_kinds(state, "exp_avg") == {"exp_avg/a": 2}
    assert of_kinds(state) == {}


def test_a_networks_state_is_its_parameters_and_buffers_themselves() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, affine=False))
    buffers = buffers_of(network)
    assert list(buffers) == [
        "buffers/1.running_mean",
        "buffers/1.running_var",
        "buffers/1.num_batches_tracked",
    ]
    state = state_of(network)
    assert list(state) == ["weights/0.weight", "weights/0.bias", *buffers]
    assert not any(tensor.requires_grad for tensor in state.values())
    state["weights/0.bias"].fill_(7.0)
    assert network[0].bias.tolist() == [7.0, 7.0, 7.0]
    assert torch.equal(state["buffers/1.running_var"], torch.ones(3))
