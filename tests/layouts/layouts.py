"""The layouts that are held to plain torch: (name, ranks, changed settings)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

Case = tuple[str, int, dict[str, Any]]

AXES = {
    "pp": "parallel.pipeline",
    "tp": "parallel.tensor",
    "ep": "parallel.expert",
    "zero": "parallel.zero_stage",
    "micro": "train.micro_batch_size",
    "recompute": "parallel.activation_checkpointing",
    "offload": "parallel.offload_optimizer",
    "batch": "train.global_batch_size",
    "precision": "train.precision",
}

DENSE = {"use_moe": False}
SKEWED = {"num_experts": 16, "top_k": 1, "balance_loss": 0.001}
"""Twice as many experts as a token may choose from evenly: some get no token at all."""
CAPACITY = {"capacity_factor": 0.7, "shared_expert": True, "z_loss": 0.01, "loss": "student_t"}
BIAS = {"router_score": "sigmoid", "balance_rate": 0.05, "position": "learned"}
ENCODER = {"architecture": "encoder", "att_type": "flash", "position": "rotary"}
DECODER = {"architecture": "decoder", "use_adaptive_ln": "layer", "norm_strategy": "post_norm"}
GROUPED = {
    "num_kv_heads": 2,
    "att_type": "xformer",
    "use_adaptive_ln": "adaptive",
    "qk_norm": True,
}
FREQUENCY = {"att_type": "frequency", "loss": "quantile", "channel_embedding": True}
PLAIN_MLP = {"use_swiglu": False, "activation": "gelu", "shared_expert": True}
TIED = {"share_layers": True}
SIX = {"num_experts": 6, "balance_loss": 0.02}
MIXED = {"channels": "mixed", "use_moe": False}
VARIATES = {
    "architecture": "encoder",
    "head": "token",
    "channels": "grouped",
    "num_layers": 4,
    "channel_embedding": True,
    "att_type": "flash",
    "position": "rotary",
    "loss": "quantile",
}
"""Layers that attend to other times and to other channels, with experts."""
CAUSAL_VARIATES = {
    "architecture": "decoder",
    "channels": "grouped",
    "num_kv_heads": 2,
    "qk_norm": True,
    "use_moe": False,
}
ASKED = {
    "architecture": "encoder",
    "head": "token",
    "output_patch_length": 32,
    "position": "rotary",
    "loss": "quantile",
    "loss_units": "window",
    "arcsinh": True,
    "periods": 2,
    "patch_projection": "residual",
    "quantile_order": "sorted",
}
"""As models of many series are pre-trained; its contexts and horizons vary."""
ASKED_QUERIES = ASKED | {
    "architecture": "encoder_decoder",
    "position": "sinusoidal",
    "loss_units": "season",
}
RUNNING = {
    "architecture": "decoder",
    "loss_positions": "all",
    "output_patch_length": 48,
    "position": "rotary",
    "loss": "quantile",
}
"""As causal models of many series are pre-trained."""
ADAPTED = {"lora_rank": 8, "lora_alpha": 16.0, "shared_expert": True, "num_kv_heads": 2}
"""The layers' matrices stay, and adapters are trained, of experts too."""
ADAPTED_DENSE = ADAPTED | {"use_moe": False, "share_layers": True}
SEEN = {"data.targets": ["Demand"], "data.past_covariates": ["Temperature"]}
"""A column that is known up to the present."""
VARIED = {
    "train.gradient_clipping": 0.05,
    "data.context_lengths": [48, 80, 96],
    "data.min_prediction_length": 5,
}
"""Contexts that differ by step, and horizons that differ by sample."""


REPEATED = {
    "4-micro1-moe",
    "4-pp4-moe",
    "4-pp4-frequency",
    "4-pp2-capacity",
    "4-pp2-decoder",
    "4-pp2-tp2-grouped",
    "4-tp4-dense",
    "4-ep4-capacity",
    "4-ep2-zero2-moe",
    "6-tp2-ep3-micro4-batch12-six",
}
"""Cases of four ranks and more whose axes and networks others have too: slow, as those of eight."""

FIRST = {
    "2-pp2-asked",
    "2-tp2-asked",
    "2-zero3-asked",
    "2-pp2-asked_queries",
    "2-pp2-running",
    "2-tp2-ep2-running",
    "2-tp2-variates",
    "2-zero3-recomputeselective-causal_variates",
    "2-tp2-adapted",
    "2-pp2-adapted_dense",
    "2-ep2-adapted",
}
"""Cases of ASKED, ASKED_QUERIES, RUNNING, VARIATES and ADAPTED that are not slow."""


def case(world: int, *, model: dict[str, Any] | None = None, **axes: Any) -> Case:
    """`model` changes the network; the axes by their short names."""
    changes = {AXES[axis]: value for axis, value in axes.items()}
    changes |= {f"model.{key}": value for key, value in (model or {}).items()}
    changes |= VARIED if model in (ASKED, ASKED_QUERIES, RUNNING) else {}
    # What starts at zero is all AdamW's: without this it makes roundings as large as any gradient.
    changes |= {"train.epsilon": 1e-6} if model in (ADAPTED, ADAPTED_DENSE) else {}
    changes |= SEEN if model in (CAUSAL_VARIATES, MIXED) else {}
    kind = next((name.lower() for name, value in globals().items() if value is model), "moe")
    name = "-".join([str(world), *(f"{axis}{value}" for axis, value in axes.items()), kind])
    return name, world, changes


def parameters(cases: Iterable[Case], *, grouped: bool = False) -> list[Any]:
    """Return the cases for pytest's parametrize: by name, REPEATED ones and those of 8 ranks slow.

    Where they are `grouped`, cases of one network share a worker, and so its reference.
    """
    result = []
    for name, world, changes in cases:
        is_new = any(word in name for word in ("asked", "running", "variates", "adapted"))
        is_repeated = name in REPEATED or (is_new and name not in FIRST)
        marks = [pytest.mark.slow] if world == 8 or is_repeated else []
        marks += [pytest.mark.xdist_group(name.rpartition("-")[2])] if grouped else []
        result.append(pytest.param(name, world, changes, id=name, marks=marks))
    return result


CASES: list[Case] = [
    case(1),
    case(1, micro=16, model=BIAS),
    case(1, zero=3),
    case(1, recompute="block", model=CAPACITY),
    case(1, recompute="selective", micro=16),
    # two ranks: each axis by itself, over the kinds of networks
    case(2, micro=2),
    case(2, zero=2),
    case(2, zero=3, micro=8),
    case(2, zero=3, recompute="block", model=DECODER),
    case(2, offload="cpu"),
    case(2, zero=3, offload="cpu", model=ENCODER),
    case(2, model=TIED),
    case(2, pp=2),
    case(2, pp=2, model=DENSE),
    case(2, pp=2, model=MIXED),
    case(2, pp=2, model=TIED),
    case(2, pp=2, offload="cpu", model=TIED),
    case(2, zero=3, recompute="selective", model=TIED),
    case(2, pp=2, recompute="block", model=ENCODER),
    case(2, pp=2, micro=16, model=DECODER),
    case(2, tp=2),
    case(2, tp=2, model=DENSE),
    case(2, tp=2, model=GROUPED),
    case(2, tp=2, model=FREQUENCY),
    case(2, tp=2, model=PLAIN_MLP),
    case(2, tp=2, zero=3, recompute="selective", model=CAPACITY),
    case(2, ep=2),
    case(2, ep=2, model=SKEWED),
    case(2, ep=2, recompute="block", model=CAPACITY),
    case(2, ep=2, zero=2, model=BIAS),
    case(2, tp=2, ep=2),
    case(2, tp=2, ep=2, micro=16, model=SKEWED),
    # four: products
    case(4, micro=1),
    case(4, pp=4),
    case(4, pp=4, model=FREQUENCY),
    case(4, pp=4, model=TIED),
    case(4, pp=2, model=CAPACITY),
    case(4, pp=2, model=DECODER),
    case(4, pp=2, tp=2, model=ENCODER),
    case(4, pp=2, tp=2, model=GROUPED),
    case(4, pp=2, ep=2, model=SKEWED),
    case(4, pp=2, tp=2, ep=2, model=BIAS),
    case(4, tp=4, model=DENSE),
    case(4, tp=2, zero=2, model=ENCODER),
    case(4, tp=2, ep=4, zero=2),
    case(4, ep=4, model=CAPACITY),
    case(4, ep=2, zero=2),
    case(4, tp=4, ep=2),
    case(6, tp=2, ep=3, micro=4, batch=12, model=SIX),
    case(1, recompute="selective", model=VARIATES),
    case(2, micro=2, model=VARIATES),
    case(2, zero=2, model=VARIATES),
    case(2, zero=3, recompute="block", model=VARIATES),
    case(2, pp=2, model=VARIATES),
    case(2, tp=2, model=VARIATES),
    case(2, ep=2, model=VARIATES),
    case(2, tp=2, ep=2, recompute="selective", model=VARIATES),
    case(2, offload="cpu", model=VARIATES),
    case(2, tp=2, model=CAUSAL_VARIATES),
    case(2, pp=2, model=CAUSAL_VARIATES),
    case(2, zero=3, recompute="selective", model=CAUSAL_VARIATES),
    case(4, micro=1, model=VARIATES),
    case(4, pp=2, tp=2, model=VARIATES),
    case(4, pp=2, ep=2, model=VARIATES),
    case(4, tp=2, ep=4, zero=2, model=VARIATES),
    case(4, pp=4, model=VARIATES),
    case(4, pp=2, tp=2, ep=2, recompute="block", model=VARIATES),
    case(4, tp=2, zero=2, model=CAUSAL_VARIATES),
    case(4, pp=2, tp=2, model=CAUSAL_VARIATES),
    case(8, pp=2, tp=2, ep=2, model=VARIATES),
    # what models of many series need
    case(1, micro=16, model=ASKED),
    case(1, zero=3, recompute="selective", model=ASKED),
    case(2, zero=2, model=ASKED),
    case(2, zero=3, model=ASKED),
    case(2, pp=2, model=ASKED),
    case(2, tp=2, model=ASKED),
    case(2, ep=2, model=ASKED),
    case(2, tp=2, ep=2, micro=2, model=ASKED),
    case(2, offload="cpu", model=ASKED),
    case(2, zero=3, recompute="block", model=ASKED_QUERIES),
    case(2, pp=2, model=ASKED_QUERIES),
    case(2, tp=2, model=ASKED_QUERIES),
    case(2, ep=2, recompute="selective", model=ASKED_QUERIES),
    case(1, recompute="block", model=RUNNING),
    case(2, micro=2, model=RUNNING),
    case(2, pp=2, model=RUNNING),
    case(2, tp=2, ep=2, model=RUNNING),
    case(2, zero=3, model=RUNNING),
    case(4, pp=2, tp=2, model=RUNNING),
    case(4, micro=1, model=ASKED),
    case(4, pp=2, micro=2, model=ASKED),
    case(4, pp=2, tp=2, model=ASKED),
    case(4, pp=2, ep=2, model=ASKED),
    case(4, tp=2, ep=4, zero=2, model=ASKED),
    case(4, pp=4, model=ASKED_QUERIES),
    case(4, pp=2, tp=2, ep=2, recompute="block", model=ASKED_QUERIES),
    case(4, tp=4, model=ASKED_QUERIES),
    case(8, pp=2, tp=2, ep=2, model=ASKED),
    # adapters
    case(1, recompute="selective", model=ADAPTED),
    case(2, micro=2, model=ADAPTED),
    case(2, zero=2, model=ADAPTED),
    case(2, zero=3, model=ADAPTED),
    case(2, tp=2, model=ADAPTED),
    case(2, ep=2, model=ADAPTED),
    case(2, tp=2, ep=2, model=ADAPTED),
    case(2, pp=2, model=ADAPTED),
    case(2, pp=2, model=ADAPTED_DENSE),
    case(2, tp=2, model=ADAPTED_DENSE),
    case(2, offload="cpu", model=ADAPTED),
    case(4, pp=2, tp=2, model=ADAPTED_DENSE),
    case(4, tp=2, ep=4, zero=2, model=ADAPTED),
    case(4, pp=2, ep=2, recompute="block", model=ADAPTED),
    case(8, pp=2, tp=2, ep=2, model=ADAPTED),
    # eight: all at once
    case(8, micro=2),
    case(8, pp=2, tp=2),
    case(8, pp=2, tp=2, ep=4, recompute="block"),
    case(8, pp=2, tp=2, ep=2, micro=2, model=CAPACITY),
    case(8, pp=4, tp=2, ep=2, model=TIED),
    case(8, pp=4, ep=2, model=BIAS),
    case(8, tp=4, ep=8, zero=2, model=PLAIN_MLP | {"num_experts": 8}),
]
