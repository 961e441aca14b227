"""Rules between the sections of a configuration, and between it and the number of ranks."""

from __future__ import annotations

import sys
from math import gcd

from model.errors import UserError
from model.network_config import ModelConfig, SeriesShape
from parallel.layout import Layout
from trainer.config.deepspeed_config import check_deepspeed
from trainer.config.load import Configuration
from trainer.logs.sinks import is_installed

MAX_RANKS = 1_000_000
"""Most ranks that a layout is computed for."""


def check(configuration: Configuration, world: int) -> Layout:
    """Return the layout of `world` ranks. Raises UserError for whatever cannot run on it."""
    if world > MAX_RANKS:
        raise UserError(f"--world: {world} ranks are more than there are; use at most {MAX_RANKS}")
    layout = _layout(configuration, world)
    _check_stages(configuration)
    _check_zero(configuration)
    _check_tensor(configuration)
    _check_batches(configuration, layout)
    _check_lengths(configuration)
    _check_sinks(configuration)
    check_deepspeed(configuration)
    return layout


def _layout(configuration: Configuration, world: int) -> Layout:
    model, parallel = configuration.settings.model, configuration.settings.parallel
    pipeline, tensor, expert = parallel.pipeline, parallel.tensor, parallel.expert
    fixed = pipeline * tensor
    if world % fixed:
        key = "pipeline" if world % pipeline else "tensor"
        stages = max(n for n in divisors(world) if n <= min(pipeline, model.transformer_layers))
        sharing = gcd(world // stages, _heads_and_width(model, expert))
        split = max(n for n in divisors(sharing) if n <= tensor)
        more = -(-world // fixed) * fixed
        raise configuration.error(
            f"parallel.{key}",
            f"{world} rank{'s' if world > 1 else ''} cannot form {pipeline} pipeline stages x "
            f"{tensor} tensor ranks; start a multiple of {fixed} (--ranks {more}), or set "
            f"parallel.pipeline={stages} parallel.tensor={split}",
        )
    stage = world // pipeline
    if expert > 1 and not model.use_moe:
        raise configuration.error(
            "parallel.expert",
            f"there are no experts to spread over {expert} ranks; set model.use_moe=true, or "
            "parallel.expert=1",
        )
    if stage % expert or model.num_experts % expert:
        raise configuration.error(
            "parallel.expert",
            f"{expert} ranks cannot share model.num_experts={model.num_experts} evenly in groups "
            f"of a stage's {stage} ranks (data {stage // tensor} x tensor {tensor}); use "
            f"parallel.expert={_or(divisors(gcd(stage, model.num_experts)))}",
        )
    return Layout.of(world, pipeline=pipeline, tensor=tensor, expert=expert)


def _heads_and_width(model: ModelConfig, expert: int) -> int:
    """Return the number that the tensor axis must divide, to split heads and hidden units evenly.

    Experts that the expert axis spreads stay whole: their hidden units do not count.
    """
    only_experts = model.use_moe and expert > 1 and not model.shared_expert
    return model.kv_heads if only_experts else gcd(model.kv_heads, model.feedforward_width)


def _or(numbers: list[int]) -> str:
    return " or ".join(str(n) for n in numbers)


def divisors(number: int) -> list[int]:
    """Return the divisors of `number`, ascending."""
    return [n for n in range(1, number + 1) if number % n == 0]


def _check_lengths(configuration: Configuration) -> None:
    settings = configuration.settings
    patch, context = settings.model.patch_length, settings.data.context_length
    if patch > context:
        raise configuration.error(
            "model.patch_length", f"{patch} is longer than data.context_length={context}"
        )
    data = settings.data
    model = settings.model
    ahead, horizon = model.future_patch_length, data.prediction_length
    if model.scores_all_positions and ahead < horizon:
        raise configuration.error(
            "model.output_patch_length",
            f"{ahead} points are forecast after each position, fewer than data.prediction_length="
            f"{horizon}; use at least {horizon}",
        )
    if model.has_flatten_head and len(data.context_lengths or []) > 1:
        raise configuration.error(
            "data.context_lengths",
            "a flatten head forecasts from a context of one length; set model.head=token, or "
            "leave it out",
        )
    if settings.logging.validate_every and settings.data.split[1] == 0:
        raise configuration.error(
            "logging.validate_every", "data.split leaves no validation part to score; set it to 0"
        )


def check_tokens(configuration: Configuration, shape: SeriesShape) -> None:
    """Raise UserError for windows of more tokens than the network takes.

    It is for series that are known to be long enough for such windows.
    """
    settings = configuration.settings
    lengths = shape.context_length, shape.prediction_length
    tokens = settings.model.sequence_length(*lengths, shape.is_future_known)
    if tokens > settings.model.max_seq_len:
        raise configuration.error(
            "model.max_seq_len",
            f"{settings.model.max_seq_len} is shorter than the {tokens} patches of context and "
            f"future; use at least {tokens}, or a longer model.patch_length",
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
    settings = configuration.settings
    tied = settings.model.share_layers and parallel.pipeline > 1
    if tied and parallel.offload_optimizer == "cpu" and settings.train.precision == "bf16":
        raise configuration.error(
            "parallel.offload_optimizer",
            "in bf16 DeepSpeed does not sum the gradients of layers shared between stages where "
            "the optimizer is offloaded; use parallel.offload_optimizer=none, parallel.pipeline=1 "
            "or train.precision=fp32",
        )
    if stage == 3 and parallel.expert > 1:
        raise configuration.error(
            "parallel.zero_stage",
            "3 spreads whole layers over all data-parallel ranks, which hold different experts; "
            "use parallel.zero_stage=2, or parallel.expert=1",
        )


def _check_tensor(configuration: Configuration) -> None:
    model, parallel = configuration.settings.model, configuration.settings.parallel
    tensor, shared = parallel.tensor, _heads_and_width(model, parallel.expert)
    if shared % tensor:
        fitting = [n for n in range(1, min(tensor, shared + 1)) if shared % n == 0]
        raise configuration.error(
            "parallel.tensor",
            f"{tensor} ranks cannot share {model.kv_heads} key/value heads (model.num_kv_heads or "
            f"model.nhead) and {model.feedforward_width} hidden units (model.dim_feedforward) "
            f"evenly; use parallel.tensor={_or(fitting)}",
        )


def _check_batches(configuration: Configuration, layout: Layout) -> None:
    train = configuration.settings.train
    total, micro, data = train.global_batch_size, train.micro_batch_size, layout.data
    if total % (micro * data) == 0:
        return
    per_round = micro * data
    near = sorted({max(1, total // per_round) * per_round, -(-total // per_round) * per_round})
    # Of sizes beyond every machine's a far smaller one is offered.
    micros = [m for m in range(1, min(micro, 10_000) + 1) if total % (m * data) == 0]
    way_out = f"train.global_batch_size={' or '.join(str(n) for n in near)}"
    if micros:
        way_out += f" or train.micro_batch_size={micros[-1]}"
    raise configuration.error(
        "train.global_batch_size",
        f"{total} = micro_batch_size {micro} x data-parallel ranks {data} x accumulation "
        f"{total / per_round:.4g}, and accumulation must be whole; use {way_out}",
    )


def _check_sinks(configuration: Configuration) -> None:
    for name in configuration.settings.logging.sinks:
        if not is_installed(name):
            raise configuration.error(
                "logging.sinks",
                f"{name} is not installed for {sys.executable}; pip install {name} there, or "
                "leave it out",
            )
