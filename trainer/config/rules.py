"""What the sections of a configuration demand of each other and of the world."""

from __future__ import annotations

import difflib

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
    "bfloat16": "train.precision",
    "fp16": "train.precision",
    "amp": "train.precision",
    "data_types": "train.precision",
    "zero_optimization.stage": "parallel.zero_stage",
    "pipeline": "parallel.pipeline",
    "activation_checkpointing": "parallel.activation_checkpointing",
    "checkpoint": "the section checkpoint",
    "tensorboard": "logging.tensorboard",
    "steps_per_print": "logging.every",
}
"""Keys of DeepSpeed's configuration -> what sets them."""

PASSED_TO_DEEPSPEED: dict[str, type] = {
    "communication_data_type": str,
    "comms_logger": dict,
    "dump_state": bool,
    "flops_profiler": dict,
    "memory_breakdown": bool,
    "timers": dict,
    "wall_clock_breakdown": bool,
    "zero_optimization.allgather_bucket_size": int,
    "zero_optimization.allgather_partitions": bool,
    "zero_optimization.contiguous_gradients": bool,
    "zero_optimization.overlap_comm": bool,
    "zero_optimization.reduce_bucket_size": int,
    "zero_optimization.reduce_scatter": bool,
    "zero_optimization.round_robin_gradients": bool,
    "zero_optimization.stage3_max_live_parameters": int,
    "zero_optimization.stage3_max_reuse_distance": int,
    "zero_optimization.stage3_param_persistence_threshold": int,
    "zero_optimization.stage3_prefetch_bucket_size": int,
    "zero_optimization.use_multi_rank_bucket_allreduce": bool,
}
"""What a configuration may add to it, and of what type: none changes a result."""


def check(configuration: Configuration, world: int) -> Layout:
    """The layout of `world` ranks. Raises UserError for whatever cannot run on it."""
    layout = _layout(configuration, world)
    _check_stages(configuration)
    _check_zero(configuration)
    _check_tensor(configuration)
    _check_expert(configuration)
    _check_batches(configuration, layout)
    _check_lengths(configuration)
    _check_deepspeed(configuration)
    return layout


def _layout(configuration: Configuration, world: int) -> Layout:
    parallel = configuration.settings.parallel
    pipeline, tensor, expert = parallel.pipeline, parallel.tensor, parallel.expert
    fixed = pipeline * tensor
    if world % fixed:
        key = "pipeline" if world % pipeline else "tensor"
        raise configuration.error(
            f"parallel.{key}",
            f"{world} rank{'s' if world > 1 else ''} cannot form {pipeline} pipeline stages x "
            f"{tensor} tensor ranks; start a multiple of {fixed} (--ranks {fixed}), or set "
            f"{_nearest(world, pipeline, tensor)}",
        )
    stage = world // pipeline
    if stage % expert:
        raise configuration.error(
            "parallel.expert",
            f"groups of {expert} cannot be formed of a stage's {stage} ranks (data "
            f"{stage // tensor} x tensor {tensor}); use parallel.expert="
            f"{' or '.join(str(n) for n in divisors(stage))}",
        )
    return Layout.of(world, pipeline=pipeline, tensor=tensor, expert=expert)


def _nearest(world: int, pipeline: int, tensor: int) -> str:
    """The largest axes no larger than asked that divide the world."""
    stages = max(n for n in divisors(world) if n <= pipeline)
    split = max(n for n in divisors(world // stages) if n <= tensor)
    return f"parallel.pipeline={stages} parallel.tensor={split}"


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _check_lengths(configuration: Configuration) -> None:
    settings = configuration.settings
    patch, context = settings.model.patch_length, settings.data.context_length
    if patch > context:
        raise configuration.error(
            "model.patch_length", f"{patch} is longer than data.context_length={context}"
        )
    memory, future = -(-context // patch), -(-settings.data.prediction_length // patch)
    longest = {
        "encoder": memory,
        "decoder": memory + future - 1,
        "encoder_decoder": memory + future,
    }
    tokens = longest[settings.model.architecture]
    if tokens > settings.model.max_seq_len:
        raise configuration.error(
            "model.max_seq_len",
            f"{settings.model.max_seq_len} is shorter than the {tokens} patches of context and "
            f"future; use at least {tokens}, or a longer model.patch_length",
        )
    if settings.logging.validate_every and settings.data.split[1] == 0:
        raise configuration.error(
            "logging.validate_every", "data.split leaves no validation part to score; set it to 0"
        )


def _check_stages(configuration: Configuration) -> None:
    model, stages = configuration.settings.model, configuration.settings.parallel.pipeline
    layers = model.transformer_layers
    if stages > layers:
        raise configuration.error(
            "parallel.pipeline",
            f"{stages} stages are more than the {layers} transformer layers of this "
            f"{model.architecture}; use at most {layers}",
        )


def _check_zero(configuration: Configuration) -> None:
    parallel = configuration.settings.parallel
    stage = parallel.zero_stage
    if stage > 1 and parallel.pipeline > 1:
        raise configuration.error(
            "parallel.zero_stage",
            f"{stage} sums gradients in every micro-batch, which pipeline stages cannot wait for; "
            "use parallel.zero_stage=1, or parallel.pipeline=1",
        )
    if stage == 3 and parallel.expert > 1:
        raise configuration.error(
            "parallel.zero_stage",
            "3 spreads whole layers over all data-parallel ranks, which hold different experts; "
            "use parallel.zero_stage=2, or parallel.expert=1",
        )


def _check_tensor(configuration: Configuration) -> None:
    model, tensor = configuration.settings.model, configuration.settings.parallel.tensor
    for what, size in (
        ("key/value heads (model.num_kv_heads or model.nhead)", model.kv_heads),
        ("hidden units of the feed-forward (model.dim_feedforward)", model.feedforward_width),
    ):
        if size % tensor:
            fitting = [n for n in divisors(size) if n < tensor]
            raise configuration.error(
                "parallel.tensor",
                f"{tensor} ranks cannot share the {size} {what}; use at most "
                f"parallel.tensor={fitting[-1]}",
            )


def _check_expert(configuration: Configuration) -> None:
    model, expert = configuration.settings.model, configuration.settings.parallel.expert
    if expert == 1:
        return
    if not model.use_moe:
        raise configuration.error(
            "parallel.expert",
            f"there are no experts to spread over {expert} ranks; set model.use_moe=true, or "
            "parallel.expert=1",
        )
    if model.num_experts % expert:
        raise configuration.error(
            "parallel.expert",
            f"{expert} ranks cannot share model.num_experts={model.num_experts} evenly; use "
            f"parallel.expert={' or '.join(str(n) for n in divisors(model.num_experts))}",
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


def _check_deepspeed(configuration: Configuration) -> None:
    content = configuration.settings.deepspeed
    zero = content.get("zero_optimization", {})
    keys = {key: value for key, value in content.items() if key != "zero_optimization"}
    if isinstance(zero, dict):
        keys |= {f"zero_optimization.{key}": value for key, value in zero.items()}
    else:
        keys["zero_optimization"] = zero
    for key, value in keys.items():
        name = f"deepspeed.{key}"
        if key in OWNED_BY_FORESCALE:
            raise configuration.error(
                name, f"this is set by {OWNED_BY_FORESCALE[key]}; remove it from deepspeed"
            )
        if key not in PASSED_TO_DEEPSPEED:
            near = difflib.get_close_matches(key, PASSED_TO_DEEPSPEED, 1)
            hint = f"did you mean {near[0]}?" if near else ", ".join(PASSED_TO_DEEPSPEED)
            raise configuration.error(name, f"this cannot be passed on to DeepSpeed; {hint}")
        if type(value) is not PASSED_TO_DEEPSPEED[key]:
            expected = {dict: "keys below it", bool: "true or false", int: "a whole number"}
            wanted = expected.get(PASSED_TO_DEEPSPEED[key], "text")
            raise configuration.error(name, f"expected {wanted}, got {value!r}")
