"""Options of the library's classes that several tests try."""

from __future__ import annotations

from typing import Any

from torch import nn

SMALL: dict[str, Any] = {"d_model": 24, "nhead": 4, "num_layers": 2, "dim_feedforward": 48}
"""Sizes of a small encoder or decoder."""

OPTIONS: list[dict[str, Any]] = [
    {},
    {"att_type": "flash"},
    {"att_type": "xformer", "num_kv_heads": 2},
    {"att_type": "frequency", "freq_modes": 4},
    {"norm_strategy": "post_norm"},
    {"use_adaptive_ln": "rms"},
    {"use_adaptive_ln": "adaptive"},
    {"use_adaptive_ln": nn.LayerNorm},
    {"use_swiglu": False, "activation": "relu"},
    {"share_layers": True},
    {"position": "learned"},
    {"position": "rotary"},
    {"position": "rotary", "qk_norm": True, "num_kv_heads": 2},
    {"use_moe": True, "num_experts": 4},
    {"use_moe": True, "num_experts": 4, "capacity_factor": 1.0, "shared_expert": True},
    {"use_moe": True, "router_score": "sigmoid", "balance_rate": 0.1, "z_loss": 0.01},
    {"use_final_norm": False, "drop_path": 0.2, "attention_dropout": 0.1},
]
"""Options that are tried in turn."""

CAUSAL = [options for options in OPTIONS if options.get("att_type") != "frequency"]
"""Options that a causal decoder accepts."""
