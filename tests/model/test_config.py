"""Settings of the network."""

from __future__ import annotations

from model.network_config import ModelConfig


def test_settings_without_effect_are_listed() -> None:
    config = ModelConfig(architecture="encoder", num_decoder_layers=2, top_k=1, quantiles=[0.5])
    assert config.unused("model.") == [
        "model.top_k has no effect with use_moe: false",
        "model.num_decoder_layers has no effect with architecture: encoder",
        "model.quantiles has no effect with loss: mse",
    ]
