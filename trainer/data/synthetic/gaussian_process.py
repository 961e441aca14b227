"""Series from Gaussian processes whose kernels are composed at random (KernelSynth).

Ansari et al. 2024, "Chronos: Learning the Language of Time Series", algorithm 2: up to five kernels
of a bank, joined by sums and products, on inputs from 0 to 1. A sum of kernels is sampled as a sum
of paths, a linear factor as a factor of the path, and a product of stationary kernels, which is
stationary, by circulant embedding (Dietrich and Newsam 1997): n log n operations where a Cholesky
decomposition takes n^3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trainer.data.arrays import Doubles

Covariance = Callable[[Doubles], Doubles]
"""A function from distances to covariances."""

MOST_KERNELS = 5
EMBEDDING = 2
"""Lengths of a series over which its covariance is folded: more is more exact, and slower."""
PERIODS = (4, 6, 7, 12, 14, 24, 26, 30, 40, 48, 52, 60, 96, 168, 336, 365, 672, 730)
"""Periods in points."""


@dataclass(frozen=True)
class Stationary:
    """A kernel that is a function of the distance."""

    covariance: Covariance
    is_constant: bool = False


@dataclass(frozen=True)
class Linear:
    """The kernel offset^2 + x x'."""

    offset: float


@dataclass(frozen=True)
class Term:
    """A product of stationary kernels, times x x' to some power."""

    factors: tuple[Covariance, ...] = ()
    powers: int = 0
    variance: float = 1.0

    def times(self, kernel: Stationary | Linear) -> list[Term]:
        """Return the terms of a product."""
        if isinstance(kernel, Stationary):
            return [Term((*self.factors, kernel.covariance), self.powers, self.variance)]
        linear = Term(self.factors, self.powers + 1, self.variance)
        if kernel.offset == 0:
            return [linear]
        return [linear, Term(self.factors, self.powers, self.variance * kernel.offset**2)]


def bank(length: int) -> list[Stationary | Linear]:
    """Return the kernels that are composed, for series of some points."""
    kernels: list[Stationary | Linear] = [
        Stationary(np.ones_like, is_constant=True),
        white(0.1),
        white(1.0),
    ]
    kernels += [Linear(offset) for offset in (0.0, 1.0, 10.0)]
    kernels += [squared_exponential(scale) for scale in (0.1, 1.0, 10.0)]
    kernels += [rational_quadratic(mixture) for mixture in (0.1, 1.0, 10.0)]
    kernels += [periodic(period / length) for period in PERIODS if 2 * period <= length]
    return kernels


def white(variance: float) -> Stationary:
    """Return the kernel of white noise."""
    return Stationary(lambda distance: variance * (distance == 0))


def squared_exponential(scale: float) -> Stationary:
    """Return the kernel exp(-d^2 / (2 scale^2))."""
    return Stationary(lambda distance: np.exp(-0.5 * (distance / scale) ** 2))


def rational_quadratic(mixture: float) -> Stationary:
    """Return the kernel (1 + d^2 / (2 mixture))^-mixture."""
    return Stationary(lambda distance: (1 + distance**2 / (2 * mixture)) ** -mixture)


def periodic(period: float) -> Stationary:
    """Return the kernel exp(-2 sin^2(pi d / period))."""
    return Stationary(lambda distance: np.exp(-2 * np.sin(np.pi * distance / period) ** 2))


def compose(rng: np.random.Generator, length: int) -> list[Term]:
    """Return a random composition of kernels of the bank, as a sum of terms.

    One of constants alone, whose series do not vary, is drawn again.
    """
    kernels = bank(length)
    chosen = [kernels[0]]
    while all(isinstance(kernel, Stationary) and kernel.is_constant for kernel in chosen):
        numbers = rng.integers(len(kernels), size=rng.integers(1, MOST_KERNELS + 1))
        chosen = [kernels[number] for number in numbers.tolist()]
    terms: list[Term] = []
    for kernel in chosen:
        if not terms or rng.random() < 0.5:
            terms += Term().times(kernel)
        else:
            terms = [product for term in terms for product in term.times(kernel)]
    return terms


def sample_term(term: Term, rng: np.random.Generator, length: int) -> Doubles:
    """Return a path [T] of the process with a term's covariance."""
    inputs = np.linspace(0.0, 1.0, length)
    half = EMBEDDING * length
    distance = np.arange(half + 1) / max(1, length - 1)
    covariance = np.full(half + 1, term.variance)
    for factor in term.factors:
        covariance = covariance * factor(distance)
    spectrum = np.fft.rfft(np.concatenate([covariance, covariance[-2:0:-1]])).real
    # What is negative comes of the embedding's fold: it is cut off, and the variance kept.
    positive = np.maximum(spectrum, 0.0)
    weight = np.full(half + 1, 2.0)
    weight[[0, -1]] = 1.0
    positive *= (weight @ spectrum) / (weight @ positive)
    noise = np.fft.rfft(rng.standard_normal(2 * half))
    path = np.fft.irfft(np.sqrt(positive) * noise, 2 * half)[:length]
    return np.asarray(path * inputs**term.powers)


def gaussian_process(rng: np.random.Generator, length: int) -> Doubles:
    """Return a series [T] of a Gaussian process with a random kernel."""
    return np.sum([sample_term(term, rng, length) for term in compose(rng, length)], axis=0)
