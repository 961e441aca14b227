"""A random order of the numbers below n, computed for any of them without a table."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainer.data.arrays import Words

ROUNDS = 6


def permuted(positions: npt.NDArray[np.int64], size: int, key: int) -> npt.NDArray[np.int64]:
    """Return the numbers at `positions` of the order of 0..size-1 that `key` names.

    It is a Feistel network (Luby and Rackoff 1988) over the least even number of bits that hold
    `size`; numbers that fall outside are permuted again until they fall inside (cycle walking,
    Black and Rogaway 2002), four times at most on average.
    """
    half = max(1, (max(1, size - 1).bit_length() + 1) // 2)
    keys = np.random.Philox(key=key).random_raw(ROUNDS)
    numbers = _rounds(positions.astype(np.uint64), half, keys)
    outside = np.flatnonzero(numbers >= size)
    while len(outside):
        numbers[outside] = _rounds(numbers[outside], half, keys)
        outside = outside[numbers[outside] >= size]
    return numbers.astype(np.int64)


def _rounds(numbers: Words, half: int, keys: Words) -> Words:
    """Return a permutation of numbers of 2 * `half` bits."""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = numbers >> shift, numbers & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << shift) | right


def _mixed(words: Words) -> Words:
    """Return words of which each bit depends on all bits (SplitMix64, Steele et al. 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
