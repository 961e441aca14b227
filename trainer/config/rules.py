"""What the sections of a configuration demand of each other and of the world."""

from __future__ import annotations

from typing import Any

from model.errors import UserError
from parallel.layout import Layout
from trainer.config.load import Configuration

OWNED_BY_FORESCALE = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size and train.micro_batch_size",
    "gradient_clipping": "train.gradient_clipping",
    "optimizer": "the section train",
    "scheduler": "train.warmup_steps and train.final_learning_rate",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "data_types": "train.precision",
    "zero_allow_untested_optimizer": "nothing: Forescale brings its own AdamW",
    "zero_optimization.stage": "parallel.zero_stage",
    "pipeline": "parallel.pipeline",
    "activation_checkpointing": "parallel.activation_checkpointing",
    "checkpoint": "the section checkpoint",
    "tensorboard": "logging.tensorboard",
    "steps_per_print": "logging.every",
}
"""Keys of DeepSpeed's configuration -> what sets them."""


def check(configuration: Configuration, world: int) -> Layout:
    """The layout of `world` ranks. Raises UserError for whatever cannot run on it."""
    parallel = configuration.settings.parallel
    for axis in ("tensor", "expert"):
        if getattr(parallel, axis) > 1:
            raise configuration.error(
                f"parallel.{axis}",
                f"{axis} parallelism is not available in this version; "
                f"use parallel.{axis}=1 and pipeline or data parallelism",
            )
    try:
        layout = Layout.of(world, pipeline=parallel.pipeline)
    except UserError:
        raise configuration.error(
            "parallel.pipeline",
            f"{parallel.pipeline} stages cannot be formed of {world} "
            f"rank{'s' if world > 1 else ''}; start a multiple of {parallel.pipeline} "
            f"(--ranks {parallel.pipeline}), or set parallel.pipeline=1",
        ) from None
    _check_stages(configuration)
    _check_batches(configuration, layout)
    _check_deepspeed(configuration, configuration.settings.deepspeed, "")
    return layout


def _check_stages(configuration: Configuration) -> None:
    model, stages = configuration.settings.model, configuration.settings.parallel.pipeline
    layers = model.num_layers + model.decoder_layers
    if stages > layers:
        raise configuration.error(
            "parallel.pipeline",
            f"{stages} stages are more than the {layers} transformer layers "
            f"(num_layers {model.num_layers} + num_decoder_layers {model.decoder_layers}); "
            f"use at most {layers}",
        )


def _check_batches(configuration: Configuration, layout: Layout) -> None:
    train = configuration.settings.train
    total, micro, data = train.global_batch_size, train.micro_batch_size, layout.data
    if total % (micro * data) == 0:
        return
    per_round = micro * data
    near = sorted({max(1, total // per_round) * per_round, -(-total // per_round) * per_round})
    micros = [m for m in range(1, micro + 1) if total % (m * data) == 0]
    way_out = f"train.global_batch_size={' or '.join(str(n) for n in near)}"
    if micros:
        way_out += f" or train.micro_batch_size={micros[-1]}"
    raise configuration.error(
        "train.global_batch_size",
        f"{total} = micro_batch_size {micro} x data-parallel ranks {data} x accumulation "
        f"{total / per_round:.4g}, and accumulation must be whole; use {way_out}",
    )


def _check_deepspeed(configuration: Configuration, content: dict[str, Any], prefix: str) -> None:
    for key, value in content.items():
        name = prefix + key
        if name in OWNED_BY_FORESCALE:
            raise configuration.error(
                f"deepspeed.{name}",
                f"this is set by {OWNED_BY_FORESCALE[name]}; remove it from the section deepspeed",
            )
        if isinstance(value, dict):
            _check_deepspeed(configuration, value, f"{name}.")
