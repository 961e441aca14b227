"""The least memory that a run takes, by formula, and the refusal of what no machine could hold.

What this machine cannot hold is refused where a rank starts: launch/capacity.py.
"""

from __future__ import annotations

from model.network_config import ModelConfig, SeriesShape
from model.size import network_parameters
from parallel.layout import Layout
from trainer.config.load import Configuration
from trainer.config.settings import Settings

LARGEST_RANK = 2**44
"""Bytes that no rank has, on its device and in its host's memory together: 16 TiB."""

OPTIMIZER_BYTES = 4 + 12
"""Bytes of a parameter's gradient, master weight and two moments, in fp32."""

_SIZES = (
    "d_model",
    "num_layers",
    "num_decoder_layers",
    "dim_feedforward",
    "num_experts",
    "max_seq_len",
    "freq_modes",
    "patch_length",
)
"""Keys of the section `model` that the number of parameters grows with."""


def check_sizes(configuration: Configuration, layout: Layout, shape: SeriesShape) -> None:
    """Raise UserError for a network or a micro-batch that no machine could hold."""
    settings = configuration.settings
    if callable(settings.model.use_adaptive_ln):
        raise configuration.error(
            "model.use_adaptive_ln",
            "a run keeps its settings in a file, which cannot hold a function; use layer, rms or "
            "adaptive",
        )
    parameters = network_parameters(settings.model, shape)
    each = parameters * (weight_bytes(settings) + OPTIMIZER_BYTES) // layout.world
    if each > LARGEST_RANK:
        key = _largest_size(settings.model, shape)
        ranks = f"each of {layout.world} ranks" if layout.world > 1 else "one rank"
        raise configuration.error(
            key,
            f"the network would have {parameters:.3g} parameters; with gradients and optimizer "
            f"{ranks} would hold at least {each / 2**40:.3g} TiB, more than any machine has; use "
            "a smaller one",
        )
    batch = micro_batch_bytes(settings, shape)
    if batch > LARGEST_RANK:
        raise configuration.error(
            "train.micro_batch_size",
            f"{settings.train.micro_batch_size} windows take at least {batch / 2**40:.3g} TiB, "
            "more than any machine has; use a smaller one: accumulation makes up for it",
        )


def weight_bytes(settings: Settings) -> int:
    """Return the bytes of one weight or activation as it is computed with."""
    return 2 if settings.train.precision == "bf16" else 4


def micro_batch_bytes(settings: Settings, shape: SeriesShape) -> int:
    """Return the fewest bytes of a micro-batch on a rank: its windows, and its tokens once."""
    model = settings.model
    points = shape.context_length + shape.prediction_length
    memory, _ = model.patches(shape.context_length, shape.prediction_length)
    variates = model.variates(shape)
    rows = 1 if model.channels == "mixed" else variates
    tokens = rows * memory * model.d_model
    window = 4 * points * variates + weight_bytes(settings) * tokens
    return settings.train.micro_batch_size * window


def _largest_size(model: ModelConfig, shape: SeriesShape) -> str:
    """Return the key whose default would make the network smallest."""

    def without(name: str) -> int:
        default = type(model).model_fields[name].default
        return network_parameters(model.model_copy(update={name: default}), shape)

    given = [name for name in _SIZES if name in model.model_fields_set]
    return f"model.{min(given, key=without)}" if given else "model"
