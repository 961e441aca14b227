"""Low-rank adapters: what they compute, what they keep from training, and how they are merged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.adapters import product
from model.network_config import ModelConfig
from model.transformer import TransformerEncoder
from tests.model.networks import SHAPE, inputs, network

KINDS = [
    {},
    {"use_moe": False, "use_swiglu": False, "num_kv_heads": 2},
    {"architecture": "encoder", "shared_expert": True, "position": "rotary", "qk_norm": True},
    {"architecture": "decoder", "use_swiglu": False, "router_score": "sigmoid"},
    {"att_type": "frequency", "freq_modes": 2, "use_moe": False},
    {"channels": "grouped", "num_layers": 2, "architecture": "encoder", "head": "token"},
]


def merge(adapted: nn.Module, plain: nn.Module, scale: float) -> None:
    """Fill `plain` with the weights of `adapted`, each matrix with its product added."""
    given = dict(adapted.named_parameters())
    for name, parameter in plain.named_parameters():
        module, _, leaf = name.rpartition(".")
        value = given[name]
        factors = [given.get(f"{module}.adapters.{leaf}.{factor}") for factor in ("down", "up")]
        if factors[0] is not None and factors[1] is not None:
            value = value + scale * product(factors[0], factors[1], value.shape)
        parameter.data.copy_(value)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_a_merged_network_computes_what_the_adapted_one_does(changes: dict[str, object]) -> None:
    adapted = network(**changes, lora_rank=3, lora_alpha=6.0).double()
    plain = network(**changes).double()
    context, covariates = (one.double() for one in inputs())
    future = torch.full((4, SHAPE.prediction_length, SHAPE.channels), torch.nan).double()
    given = adapted.inputs(context, covariates, future)
    start = adapted(given)
    torch.testing.assert_close(start, plain(given))  # ups are zero
    ups = [p for name, p in adapted.named_parameters() if name.endswith(".up")]
    for parameter in ups:
        nn.init.normal_(parameter, std=0.2)
    merge(adapted, plain, scale=2.0)
    with torch.no_grad():
        ours, merged = adapted(given), plain(given)
    torch.testing.assert_close(ours, merged, rtol=1e-9, atol=1e-9)
    assert (ours - start).abs().max() > 0.01


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_the_layers_large_matrices_alone_are_not_trained(changes: dict[str, object]) -> None:
    adapted = network(**changes, lora_rank=3).train()
    for name, parameter in adapted.named_parameters():
        is_matrix = ".layers." in name and name.endswith(
            (".query_key_value", ".query", ".key_value", ".output", ".input", ".gate_value")
        )
        assert parameter.requires_grad == (not is_matrix), name
        assert not is_matrix or f"{name.rpartition('.')[2]}.down" in " ".join(
            n for n, _ in adapted.named_parameters()
        )


def test_the_scale_is_alpha_by_rank() -> None:
    assert ModelConfig(lora_rank=8).lora_scale == 1.0
    assert ModelConfig(lora_rank=8, lora_alpha=32.0).lora_scale == 4.0
    assert ModelConfig().lora_scale == 0.0
    assert ModelConfig(lora_alpha=2.0).unused("model.") == [
        "model.lora_alpha has no effect with lora_rank: 0"
    ]


def test_a_librarys_encoder_takes_them() -> None:
    encoder = TransformerEncoder(3, 16, 2, 1, dropout=0.0, lora_rank=2)
    plain = TransformerEncoder(3, 16, 2, 1, dropout=0.0)
    missing, unexpected = encoder.load_state_dict(plain.state_dict(), strict=False)
    assert all(".adapters." in name for name in missing) and not unexpected
    x = torch.randn(2, 9, 3)
    torch.testing.assert_close(encoder(x), plain(x))
    traced = torch.export.export(encoder, (x,)).module()
    torch.testing.assert_close(traced(x), encoder(x))
    encoder(x).square().mean().backward()
    untrained = [name for name, p in encoder.named_parameters() if p.grad is None]
    assert untrained and not any(".adapters." in name for name in untrained)
