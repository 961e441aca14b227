"""Numbers of parameters by formula against built networks, over random configurations."""

from __future__ import annotations

import random

import pytest
import torch

from model.network import TimeSeriesTransformer
from model.network_config import ModelConfig, SeriesShape
from model.size import active_parameters, network_parameters


def random_configuration(seed: int) -> tuple[ModelConfig, SeriesShape]:
    """Return a configuration and sizes drawn from `seed`."""
    draw = random.Random(seed)
    heads = draw.choice([2, 4])
    swiglu = draw.random() < 0.5
    layers = draw.randint(1, 3)
    channels = draw.choice(["independent", "mixed", *["grouped"] * (layers > 1)])
    architecture = draw.choice(["encoder", "decoder", "encoder_decoder"])
    kinds = ["standard", "xformer", "flash"] + ["frequency"] * (architecture != "decoder")
    config = ModelConfig(
        d_model=8 * heads,
        nhead=heads,
        num_kv_heads=draw.choice([None, 1, 2]),
        num_layers=layers,
        num_decoder_layers=draw.choice([None, 1, 2]),
        dim_feedforward=draw.choice([32, 100, 200]),
        use_swiglu=swiglu,
        activation=None if swiglu else draw.choice([None, "relu"]),
        att_type=draw.choice(kinds),
        decoder_att_type=draw.choice([None, "standard"]),
        freq_modes=draw.randint(1, 6),
        use_adaptive_ln=draw.choice(["layer", "rms", "adaptive"]),
        norm_strategy=draw.choice(["pre_norm", "post_norm"]),
        share_layers=draw.random() < 0.3 and channels != "grouped",
        use_final_norm=draw.random() < 0.7,
        position=draw.choice(["sinusoidal", "learned", "rotary"]),
        max_seq_len=64,
        use_moe=draw.random() < 0.5,
        num_experts=draw.randint(2, 5),
        shared_expert=draw.random() < 0.5,
        balance_rate=draw.choice([0.0, 0.1]),
        lora_rank=draw.choice([0, 0, 0, 3]),
        architecture=architecture,
        patch_length=draw.randint(1, 7),
        head=draw.choice(["flatten", "token"]),
        patch_projection=draw.choice(["linear", "residual"]),
        loss_positions=draw.choice(["future", "all"]),
        output_patch_length=draw.choice([None, 3, 8]),
        periods=draw.choice([0, 0, 2]) if architecture != "decoder" else 0,
        channels=channels,
        channel_embedding=channels != "mixed" and draw.random() < 0.5,
        loss=draw.choice(["mse", "mae", "huber", "quantile", "student_t"]),
        quantiles=[0.1, 0.5, 0.9],
    )
    shape = SeriesShape(
        draw.randint(8, 30),
        draw.randint(1, 12),
        draw.randint(1, 4),
        draw.randint(0, 3),
        draw.choice([(), (24, 7)]),
        past=draw.choice([0, 0, 2]),
    )
    return config, shape


@pytest.mark.parametrize("seed", range(150))
def test_the_formula_counts_a_built_networks_parameters(seed: int) -> None:
    config, shape = random_configuration(seed)
    with torch.device("meta"):
        network = TimeSeriesTransformer(config, shape)
    built = sum(parameter.numel() for parameter in network.parameters())
    assert network_parameters(config, shape) == built


def test_active_parameters_leave_unchosen_experts_out() -> None:
    for seed in range(100):
        config, shape = random_configuration(seed)
        whole, active = network_parameters(config, shape), active_parameters(config, shape)
        if not config.use_moe:
            assert active == whole
            continue
        network = TimeSeriesTransformer(config, shape)
        experts = [m.experts for m in network.mixtures().values()]
        one = sum(p.numel() for e in experts for p in e.parameters()) // config.num_experts
        assert whole - active == (config.num_experts - config.top_k) * one
