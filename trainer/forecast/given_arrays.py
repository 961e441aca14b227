"""Arrays as users give them, checked before anything is computed from them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.errors import UserError
from model.sentences import first_line


def checked_array(
    name: str, given: npt.ArrayLike, lengths: range, width: int
) -> npt.NDArray[np.float64]:
    """Return what a user gave as an array [B, one of `lengths`, width].

    Raises UserError where it is none.
    """
    longest = lengths[-1]
    if hasattr(given, "columns"):
        raise UserError(
            f"{name}: a table's columns are not known here; pass an array [B, {longest}, {width}], "
            f"such as table[[columns]].to_numpy()[None, -{longest}:]"
        )
    try:
        values = np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: not an array of numbers: {first_line(error)}") from None
    if values.ndim != 3 or values.shape[1] not in lengths or values.shape[2] != width:
        wanted = str(longest) if len(lengths) == 1 else f"{lengths[0]} to {longest}"
        raise UserError(f"{name}: expected [B, {wanted}, {width}], got {list(values.shape)}")
    return values


def check_values(
    context: npt.NDArray[np.float64],
    covariates: npt.NDArray[np.float64],
    past: npt.NDArray[np.float64],
) -> None:
    """Raise UserError where values cannot be forecast from, naming the first of them."""
    for name, values, wrong, sentence in (
        ("context", context, np.isinf(context), "set it to NaN if it is missing"),
        ("past", past, np.isinf(past), "set it to NaN if it is missing"),
        ("covariates", covariates, ~np.isfinite(covariates), "all covariates must be known"),
    ):
        if wrong.any():
            place = [int(i) for i in np.argwhere(wrong)[0]]
            raise UserError(f"{name}: found {values[tuple(place)]} at {place}; {sentence}")
    empty = np.isnan(context).all(axis=1)
    if empty.any():
        row, channel = (int(i) for i in np.argwhere(empty)[0])
        raise UserError(
            f"context: channel {channel} of context {row} has no value at all; leave it out, or "
            "begin where it has one"
        )
