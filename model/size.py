"""Numbers of parameters by formula, so that a network need not be built to know its size."""

from __future__ import annotations

from model.config import AttentionType, TransformerConfig
from model.network_config import ModelConfig, SeriesShape


def network_parameters(config: ModelConfig, shape: SeriesShape) -> int:
    """Return the number of parameters of `TimeSeriesTransformer(config, shape)`."""
    memory, _ = config.patches(shape.context_length, shape.prediction_length)
    is_mixed, variates = config.channels == "mixed", config.variates(shape)
    channels = variates if is_mixed else 1
    values = (2 + config.periods) * config.patch_length * channels
    known = config.known_patch_length * shape.covariates
    asked = 1 + config.periods * channels + shape.covariates
    total = 0
    if config.architecture == "encoder":
        total += reading_stack(config, values + known, config.att_type)
    elif config.architecture == "decoder":
        total += reading_stack(config, values + known, config.att_type_of_decoder)
    else:
        total += reading_stack(config, values + known, config.att_type)
        queries = config.future_patch_length * asked
        total += stack_parameters(config, queries, decoder_layer(config), config.decoder_layers)
    if config.has_token_head:
        total += projection(config, config.future_patch_length * asked, config.d_model)
    at_once = config.has_flatten_head
    inputs = config.d_model * (memory if at_once else 1)
    points = shape.prediction_length if at_once else config.future_patch_length
    forecast = shape.channels if is_mixed else 1
    total += projection(config, inputs, points * forecast * output_size(config))
    total += variates * config.d_model if config.channel_embedding else 0
    total += config.d_model if variates > shape.channels and not is_mixed else 0
    return total + sum(shape.calendar) * config.d_model


def active_parameters(config: ModelConfig, shape: SeriesShape) -> int:
    """Return how many of the parameters of `TimeSeriesTransformer(config, shape)` a token uses."""
    if not config.use_moe:
        return network_parameters(config, shape)
    chosen = config.model_copy(update={"num_experts": config.top_k})
    routers = (config.num_experts - config.top_k) * config.d_model * config.distinct_layers
    return network_parameters(chosen, shape) + routers


def projection(config: TransformerConfig, inputs: int, outputs: int) -> int:
    """Return the parameters of a projection between patches and tokens."""
    linear = (inputs + 1) * outputs
    if not isinstance(config, ModelConfig) or config.patch_projection == "linear":
        return linear
    hidden = 2 * config.d_model
    return linear + (inputs + 1) * hidden + (hidden + 1) * outputs


def reading_stack(config: ModelConfig, input_size: int, att_type: AttentionType) -> int:
    """Return the parameters of a stack that reads values, some of whose layers attend to variates.

    Those have no frequencies.
    """
    layer = encoder_layer(config, att_type)
    fewer = layer - encoder_layer(config, "flash") if att_type == "frequency" else 0
    return stack_parameters(config, input_size, layer) - len(config.variate_layers) * fewer


def stack_parameters(
    config: TransformerConfig, input_size: int, layer: int, layers: int | None = None
) -> int:
    """Return the parameters of a stack: input projection, positions, layers and final norm.

    `layer` is the number of parameters of one layer; `layers` defaults to num_layers.
    """
    count = 1 if config.share_layers else layers or config.num_layers
    positions = config.max_seq_len * config.d_model if config.position == "learned" else 0
    final = norm(config) if config.use_final_norm else 0
    first = projection(config, input_size, config.d_model)
    return first + positions + count * layer + final


def encoder_layer(config: TransformerConfig, att_type: AttentionType) -> int:
    """Return the parameters of an encoder layer."""
    own = attention(config, att_type) + attention_adapters(config, 1)
    return own + feed_forward(config) + 2 * norm(config)


def decoder_layer(config: TransformerConfig) -> int:
    """Return the parameters of a decoder layer: an encoder layer and cross-attention."""
    att_type = config.att_type_of_decoder
    cross = attention(config, att_type) + attention_adapters(config, 2)
    return encoder_layer(config, att_type) + cross + norm(config)


def attention(config: TransformerConfig, att_type: AttentionType) -> int:
    """Return the parameters of an attention.

    Queries and output have d_model^2 each, keys and values by their heads; frequency attention
    adds a complex number per mode and channel, norms a gain for each query's and key's channel.
    """
    keys_and_values = 2 * config.kv_heads * config.head_dim * config.d_model
    modes = 2 * config.freq_modes * config.d_model if att_type == "frequency" else 0
    gains = (config.nhead + config.kv_heads) * config.head_dim if config.qk_norm else 0
    return 2 * config.d_model**2 + keys_and_values + modes + gains


def attention_adapters(config: TransformerConfig, matrices: int) -> int:
    """Return the parameters of adapters of an attention's `matrices`, beside the output's.

    Queries, keys and values are one matrix in self-attention, and two in cross-attention.
    """
    d, keys_and_values = config.d_model, 2 * config.kv_heads * config.head_dim
    return config.lora_rank * ((3 + matrices) * d + keys_and_values)


def feed_forward(config: TransformerConfig) -> int:
    """Return the parameters of a feed-forward or of a mixture of experts."""
    matrices = 3 if config.use_swiglu else 2
    width, d = config.feedforward_width, config.d_model
    one = matrices * width * d
    one += config.lora_rank * (d + (matrices - 1) * width + width + d)
    if not config.use_moe:
        return one
    router = config.num_experts * config.d_model
    return router + (config.num_experts + config.shared_expert) * one


def norm(config: TransformerConfig) -> int:
    """Return the parameters of a norm: a gain, and a shift or the adaptive norm's `removed`."""
    if callable(config.use_adaptive_ln):
        raise ValueError("use_adaptive_ln: a callable's norms cannot be counted by formula")
    return config.d_model * (1 if config.use_adaptive_ln == "rms" else 2)


def output_size(config: ModelConfig) -> int:
    """Return how many numbers the head returns per forecast point."""
    return {"quantile": len(config.quantiles), "student_t": 3}.get(config.loss, 1)
