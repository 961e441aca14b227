"""Names of scores in a row of metrics."""

from __future__ import annotations

from collections.abc import Iterable

VALIDATION = "validation_mse"
"""The MSE on the validation part of what is trained on."""

ZERO_SHOT = "zero_shot/"
"""Beginning of the scores of series that are not trained on: zero_shot/SET/SCORE."""


def has_validation(names: Iterable[str]) -> bool:
    """Return whether a row of these names has scores of a validation."""
    return any(name == VALIDATION or name.startswith(ZERO_SHOT) for name in names)
