"""DeepSpeed's own configuration: the keys that Forescale sets, and those that a user may add.

This module imports neither torch nor DeepSpeed, so that a bad key is refused before a rank starts.
"""

from __future__ import annotations

import sys
from typing import Any, cast

from pydantic import ValidationError

from model.sentences import nearest
from model.validation import mistake
from trainer.config.deepspeed_section import PASSED_TO_DEEPSPEED, DeepSpeedSection, siblings
from trainer.config.load import Configuration
from trainer.config.settings import Settings

OWNED_BY_FORESCALE = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size and train.micro_batch_size",
    "gradient_clipping": "train.gradient_clipping",
    "optimizer": "the section train",
    "scheduler": "train.warmup_steps and train.final_learning_rate",
    "bf16": "train.precision",
    "bfloat16": "train.precision",
    "fp16": "train.precision",
    "amp": "train.precision",
    "data_types": "train.precision",
    "communication_data_type": "train.precision",
    "zero_optimization.stage": "parallel.zero_stage",
    "zero_optimization.offload_optimizer": "parallel.offload_optimizer",
    "pipeline": "parallel.pipeline",
    "activation_checkpointing": "parallel.activation_checkpointing",
    "checkpoint": "the section checkpoint",
    "tensorboard": "logging.tensorboard",
    "steps_per_print": "logging.every",
}
"""Keys of DeepSpeed's configuration that Forescale owns -> the setting that decides each."""


DECIDES_REDUCTION = (
    "allgather_partitions",
    "contiguous_gradients",
    "overlap_comm",
    "reduce_bucket_size",
    "reduce_scatter",
    "use_multi_rank_bucket_allreduce",
)
"""Keys of `zero_optimization` by which a user says how DeepSpeed itself reduces gradients."""

BUCKET = 50_000_000
"""Elements that DeepSpeed reduces at once; its own default makes a buffer of 2 GB in each step."""


def keeps_flat_gradients(settings: Settings) -> bool:
    """Return whether gradients go by `parallel.flat_gradients` in place of DeepSpeed's own way."""
    parallel = settings.parallel
    return (
        parallel.zero_stage == 1
        and settings.train.precision == "fp32"
        and parallel.offload_optimizer == "none"
        and not any(k in settings.deepspeed.get("zero_optimization", {}) for k in DECIDES_REDUCTION)
    )


def deepspeed_config(settings: Settings, accumulation: int) -> dict[str, Any]:
    """Return the engine's configuration: Forescale's own, then the section `deepspeed`."""
    train, parallel = settings.train, settings.parallel
    own: dict[str, Any] = {
        "train_batch_size": train.global_batch_size,
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": train.gradient_clipping,
        "steps_per_print": sys.maxsize,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": parallel.zero_stage,
            "reduce_bucket_size": BUCKET,
            # What its hooks on gradients would make a bucket for in each step.
            "contiguous_gradients": not keeps_flat_gradients(settings),
        },
        # Stages send their tensor whole: partitioned sending fails an assertion on the mask.
        "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
    }
    if train.precision == "bf16":
        own["bf16"] = {"enabled": True}
        own["data_types"] = {"grad_accum_dtype": "fp32"}
        own["communication_data_type"] = "fp32"  # for sums of gradients
    if parallel.offload_optimizer == "cpu":
        own["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
        own["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW needs no build
    return _merged(own, settings.deepspeed)


def _merged(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `extra` laid over it, section by section."""
    result = dict(base)
    for key, value in extra.items():
        below = result.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        result[key] = _merged(cast(dict[str, Any], below), value) if both else value
    return result


def check_deepspeed(configuration: Configuration) -> None:
    """Raise UserError for a key of the section `deepspeed` that is not a user's to set.

    The same for a value that DeepSpeed would refuse, or fail with, in every rank.
    """
    content = configuration.settings.deepspeed
    zero = content.get("zero_optimization", {})
    keys = [key for key in content if key != "zero_optimization"]
    if isinstance(zero, dict):
        keys += [f"zero_optimization.{key}" for key in zero]
    else:
        keys.append("zero_optimization")
    for key in keys:
        name = f"deepspeed.{key}"
        if key in OWNED_BY_FORESCALE:
            raise configuration.error(
                name, f"this is set by {OWNED_BY_FORESCALE[key]}; remove it from deepspeed"
            )
        if key not in PASSED_TO_DEEPSPEED:
            near = nearest(key, PASSED_TO_DEEPSPEED)
            hint = f"did you mean {near}?" if near else ", ".join(PASSED_TO_DEEPSPEED)
            raise configuration.error(name, f"this cannot be passed on to DeepSpeed; {hint}")
    try:
        DeepSpeedSection.model_validate(content)
    except ValidationError as error:
        path, sentence = mistake(error)
        if sentence is None:
            sentence = f"DeepSpeed has no such key; there are {', '.join(siblings(path))}"
        raise configuration.error(".".join(("deepspeed", *path)), sentence) from None
    _check_timers(configuration)


def _check_timers(configuration: Configuration) -> None:
    """Raise UserError for timers that an assertion of DeepSpeed's pipeline engine fails at."""
    settings = configuration.settings
    if settings.parallel.pipeline == 1:
        return
    profiler = settings.deepspeed.get("flops_profiler", {})
    for key, is_on in (
        ("wall_clock_breakdown", settings.deepspeed.get("wall_clock_breakdown", False)),
        ("flops_profiler.enabled", profiler.get("enabled", False)),
    ):
        if is_on:
            raise configuration.error(
                f"deepspeed.{key}",
                "DeepSpeed cannot time pipeline stages; leave it out, or profile with "
                "parallel.pipeline=1",
            )
