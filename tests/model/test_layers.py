"""Layers around the residual stream."""

from __future__ import annotations

import pytest
import torch

from forescale import TransformerEncoder
from model.config import TransformerConfig
from model.init import initialise
from model.layers import DropPath, EncoderLayer
from tests.model.options import SMALL


@pytest.mark.parametrize("strategy", ["pre_norm", "post_norm"])
def test_norm_strategies(strategy: str) -> None:
    sizes = {"d_model": 16, "nhead": 2, "dim_feedforward": 96, "dropout": 0.0}
    layer = EncoderLayer(TransformerConfig(**sizes, norm_strategy=strategy))
    initialise(layer, 0)
    x = torch.randn(2, 5, 16)
    h = x
    for norm, sublayer in (
        (layer.self_attention_norm, layer.self_attention),
        (layer.feed_forward_norm, layer.feed_forward),
    ):
        h = h + sublayer(norm(h)) if strategy == "pre_norm" else norm(h + sublayer(h))
    torch.testing.assert_close(layer(x), h)


def test_drop_path_skips_samples_and_keeps_the_mean() -> None:
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    y = drop(x)
    rows = y[:, 0, 0]
    assert sorted(set(rows.tolist())) == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(y, rows[:, None, None].expand_as(y))
    assert rows.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(drop.eval()(x), x)


def test_shared_layers_are_one_set_of_weights() -> None:
    shared = TransformerEncoder(3, **{**SMALL, "num_layers": 5}, share_layers=True)
    single = TransformerEncoder(3, **{**SMALL, "num_layers": 1})
    assert {n for n, _ in shared.named_parameters()} == {n for n, _ in single.named_parameters()}
    kept = set(single.state_dict())
    single.load_state_dict({n: p for n, p in shared.state_dict().items() if n in kept})
    shared.eval()
    x = torch.randn(2, 8, 3)
    h = shared.positions(shared.input_projection(x))
    for _ in range(5):
        h = single.layers[0].eval()(h)
    torch.testing.assert_close(shared(x), shared.final_norm(h))
