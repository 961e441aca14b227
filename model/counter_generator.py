"""A counter-based random generator: each element of a tensor by its own number.

Any slice of a tensor can be drawn on any device without the rest of it, and no order of drawing
matters (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_LIMIT = 3.0
"""Standard deviations at which normal numbers are truncated."""


def random_bits(seed: int, counters: Tensor) -> Tensor:
    """Return 64 random bits for each of the counters, from 0: the outputs of SplitMix64.

    Counter i gives output number i of the generator that starts at `seed` (Steele et al. 2014).
    counters int64 of any shape -> int64 of the same shape.
    """
    # int64 wraps around as uint64 does, which torch has no arithmetic for.
    z = (counters + 1).mul_(_signed(_STEP)).add_(_signed(seed))
    z = _xor_shifted(z, 30).mul_(_signed(_FIRST))
    z = _xor_shifted(z, 27).mul_(_signed(_SECOND))
    return _xor_shifted(z, 31)


def normal(seed: int, counters: Tensor) -> Tensor:
    """Return a number for each counter from the standard normal distribution, in fp32.

    It is truncated at three deviations, and drawn by inversion of its distribution function.
    """
    bits = random_bits(seed, counters).bitwise_right_shift_(41).bitwise_and_(2**23 - 1)
    uniform = bits.to(torch.float32).mul_(2).add_(1).mul_(2.0**-23).sub_(1)  # exact, in (-1, 1)
    uniform.mul_(math.erf(_LIMIT / math.sqrt(2)))
    return uniform.erfinv_().mul_(math.sqrt(2)).clamp_(-_LIMIT, _LIMIT)


def _signed(value: int) -> int:
    """Return the int64 of the same 64 bits."""
    return (value + 2**63) % 2**64 - 2**63


def _xor_shifted(z: Tensor, bits: int) -> Tensor:
    """Return z ^ (z >> bits), where zeros are shifted in."""
    return z.bitwise_xor_((z >> bits).bitwise_and_(2 ** (64 - bits) - 1))
