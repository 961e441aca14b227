"""Routers' statistics of a step, over all ranks, and the bias that balances without a loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model.moe import MixtureOfExperts
from model.router import RouterStatistics
from parallel.collectives import sum_over_ranks
from parallel.mesh import Mesh


@dataclass(frozen=True)
class LayerRouting:
    """How one layer's router distributed the global batch."""

    load: list[float]
    """Fraction of the choices that fell on each expert."""
    entropy: float
    """Mean entropy of a token's scores, in nats; ln(experts) when undecided."""
    drop_rate: float
    """Fraction of the choices that found their expert full."""


def take_statistics(
    local: Mapping[str, MixtureOfExperts], names: list[str], experts: int, mesh: Mesh
) -> dict[str, RouterStatistics]:
    """Return the step's sums of every layer of the network, equal on all ranks.

    `local` holds the layers of this rank's stage. Tensor ranks have seen the same tokens, of which
    the first one's count.
    """
    flat = torch.zeros(len(names), experts + 5, dtype=torch.float64)
    for row, name in zip(flat, names, strict=True):
        statistics = local[name].take_statistics() if name in local else None
        if statistics is not None and mesh.coordinates.tensor == 0:
            row.copy_(statistics.flat())
    totals = sum_over_ranks(mesh, flat).cpu()
    return {
        name: RouterStatistics.of_flat(row)
        for name, row in zip(names, totals.unbind(), strict=True)
    }


def rebalance(
    local: Mapping[str, MixtureOfExperts], statistics: Mapping[str, RouterStatistics]
) -> None:
    """Move the biases that balance the layers of this rank's stage by the step's counts."""
    for name, mixture in local.items():
        mixture.router.rebalance(statistics[name].counts_E)


def auxiliary_loss(statistics: Mapping[str, RouterStatistics], rows: int) -> float:
    """Return the auxiliary losses, summed over layers, as the mean over the batch's rows."""
    return sum(float(seen.loss) for seen in statistics.values()) / rows


def describe(statistics: Mapping[str, RouterStatistics]) -> dict[str, LayerRouting]:
    """Return each layer's routing as the metrics show it."""
    return {
        name: LayerRouting(
            load=_fractions(seen.counts_E),
            entropy=float(seen.entropy / seen.tokens.clamp(min=1)),
            drop_rate=float(seen.dropped / seen.counts_E.sum().clamp(min=1)),
        )
        for name, seen in statistics.items()
    }


def _fractions(counts_E: Tensor) -> list[float]:
    fractions: list[float] = (counts_E / counts_E.sum().clamp(min=1)).tolist()
    return fractions
