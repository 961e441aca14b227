"""What users pass to the library's classes: sizes, masks and features, checked and in one form."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from model.config import TransformerConfig
from model.errors import UserError
from model.sentences import nearest
from model.tracing import is_traced
from model.validation import mistake


def configuration(arguments: dict[str, Any], unused: Sequence[str] = ()) -> TransformerConfig:
    """Return the configuration that the `arguments` of a constructor give, its locals().

    Those that are fields count, and all in its `options`. Warns of those that differ from their
    defaults and have no effect; `unused` are others of this kind. Raises UserError for a wrong one,
    with its name and what it can be.
    """
    defaults = TransformerConfig.model_fields
    fields = {name: value for name, value in arguments.items() if name in defaults}
    fields |= arguments["options"]
    given = {
        name: value
        for name, value in fields.items()
        if name not in defaults or value != defaults[name].default
    }
    try:
        config = TransformerConfig(**given)
    except ValidationError as error:
        path, sentence = mistake(error)
        if sentence is None:
            near = nearest(path[-1], defaults)
            sentence = "no such argument; "
            sentence += f"did you mean {near}?" if near else f"there are {', '.join(defaults)}"
        raise UserError(f"{'.'.join(path)}: {sentence}") from None
    here = [f"{name} has no effect in this class" for name in unused if name in given]
    for note in [*config.unused(), *here]:
        warnings.warn(note, UserWarning, stacklevel=3)
    return config


def check_sequence(x: Tensor, name: str, size: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return batch size and length of x; raise UserError if it is not [B, T, size] of `dtype`.

    That is the weights', which autocast changes.
    """
    if x.ndim != 3 or x.shape[2] != size:
        raise UserError(f"{name}: expected [B, T, input_size={size}], got {list(x.shape)}")
    if x.dtype != dtype and not (
        x.is_floating_point() and torch.is_autocast_enabled(x.device.type)
    ):
        raise UserError(f"{name}: expected {dtype}, as the weights are, got {x.dtype}; convert it")
    return x.shape[0], x.shape[1]


def padding_mask(mask: Tensor | None, name: str, batch: int, length: int) -> Tensor | None:
    """Return a padding mask as bool [B, T], True on padding; None where there is none.

    Floats are 0, and -inf on padding, as torch's modules take them. Raises UserError for others.
    """
    if mask is None:
        return None
    is_mask = mask.dtype == torch.bool or mask.is_floating_point()
    if not is_mask or tuple(mask.shape) != (batch, length):
        raise UserError(
            f"{name}: expected bool {[batch, length]}, True on padding; got {_described(mask)}"
        )
    if mask.dtype == torch.bool:
        return mask
    hidden = mask == float("-inf")
    if not is_traced() and bool(((mask != 0) & ~hidden).any()):
        raise UserError(
            f"{name}: floats are 0, and -inf on padding; found {float(mask[~hidden].min()):g} to "
            f"{float(mask[~hidden].max()):g}; a bool mask is True on padding"
        )
    return hidden


def attention_mask(
    mask: Tensor | None, name: str, batch: int, heads: int, queries: int, keys: int
) -> Tensor | None:
    """Return an attention mask as [T, S], [B, T, S], or [B, heads, T, S]; None where there is none.

    It is bool, True where a query may not look, or floats that are added to the scores. Raises
    UserError for others.
    """
    if mask is None:
        return None
    is_mask = mask.dtype == torch.bool or mask.is_floating_point()
    shape = tuple(mask.shape)
    if is_mask and shape in ((queries, keys), (batch, queries, keys)):
        return mask
    if is_mask and shape == (batch * heads, queries, keys):
        return mask.unflatten(0, (batch, heads))
    of = name.removesuffix("mask") or "src_"
    padding = f"; a padding mask is {of}key_padding_mask=" if shape == (batch, keys) else ""
    raise UserError(
        f"{name}: expected {[queries, keys]}, {[batch, queries, keys]} or "
        f"{[batch * heads, queries, keys]} (by sequence and head), bool, True where a query may "
        f"not look, or floats that are added to the scores; got {_described(mask)}{padding}"
    )


def _described(mask: Tensor) -> str:
    """Return type and shape of a mask, in a sentence."""
    return f"{str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}"


def check_calendar(values: Tensor, sizes: Sequence[int], shape: tuple[int, int]) -> None:
    """Raise UserError if `values` are no calendar features of these sizes."""
    if tuple(values.shape) != (*shape, len(sizes)):
        raise UserError(
            f"time_features: expected [B, T, features] = {[*shape, len(sizes)]}, "
            f"got {list(values.shape)}"
        )
    if is_traced():
        return
    for feature, size in zip(values.unbind(-1), sizes, strict=True):
        if bool(((feature < 0) | (feature >= size) | (feature != feature.floor())).any()):
            raise UserError(
                f"time_features: a feature of size {size} takes whole numbers 0 to {size - 1}; "
                f"found {float(feature.min()):g} to {float(feature.max()):g}"
            )


def without_padding(x: Tensor, padding: Tensor | None) -> Tensor:
    """Return x with zeros under the padding, where users may have anything, even NaN."""
    return x if padding is None else x.masked_fill(padding.unsqueeze(-1), 0.0)
