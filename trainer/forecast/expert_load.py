"""Which expert serves which series: the load of experts by the series' interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.moe import MixtureOfExperts
from model.router import choice_counts
from trainer.data.arrays import Doubles, Indices
from trainer.data.dataset import Dataset
from trainer.data.windows import Split
from trainer.forecast.paths import Trained

MAX_INTERVALS = 8
WINDOWS = 64
"""Windows of each interval that are looked at, at most."""
BATCH = 16


@dataclass(frozen=True)
class ExpertLoad:
    """How the routers of a network distribute the tokens of series."""

    layers: list[str]
    intervals: list[str]
    """Intervals of series, those of most windows first."""
    share: Doubles
    """Share of the choices of an interval's tokens that fall on each expert [layers, intervals,
    experts]; padding is left out."""


def expert_load(forecaster: Trained, dataset: Dataset, split: Split) -> ExpertLoad | None:
    """Return the load of a network's experts on a split's windows; None where it has no experts."""
    mixtures = forecaster.network.mixtures()
    if not mixtures:
        return None
    chosen = _windows_by_interval(dataset, split)
    counts = []
    for windows in chosen.values():
        with _counted(mixtures) as found:
            parts = np.array_split(windows, -(-len(windows) // BATCH))
            for _ in forecaster.predict_windows(dataset.batch(split, part) for part in parts):
                pass
        counts.append(torch.stack([found[name] for name in mixtures]).double().cpu().numpy())
    load = np.stack(counts, axis=1)
    share = load / np.maximum(1, load.sum(-1, keepdims=True))
    return ExpertLoad(list(mixtures), list(chosen), share)


def _windows_by_interval(dataset: Dataset, split: Split) -> dict[str, Indices]:
    """Return up to WINDOWS windows of each of the commonest intervals, at even distances."""
    scored = dataset.scored(split)
    items, place = np.unique(dataset.items_of(split, scored), return_inverse=True)
    intervals = np.array([interval or "none" for interval in dataset.intervals(items)])[place]
    commonest = Counter(intervals.tolist()).most_common(MAX_INTERVALS)
    answer = {}
    for interval, _ in commonest:
        own = scored[intervals == interval]
        at = np.linspace(0, len(own) - 1, min(WINDOWS, len(own))).astype(np.int64)
        answer[interval] = own[at]
    return answer


@contextmanager
def _counted(mixtures: dict[str, MixtureOfExperts]) -> Iterator[dict[str, Tensor]]:
    """Within, count the choices of each layer's router [experts], by the layer's name."""
    counts = {name: torch.zeros(m.experts.count, dtype=torch.long) for name, m in mixtures.items()}

    def count(name: str) -> Any:
        def of_pass(module: MixtureOfExperts, arguments: tuple[Any, ...], _: Any) -> None:
            padding = arguments[1] if len(arguments) > 1 else None
            chosen = module.router(arguments[0]).chosen
            counts[name] += choice_counts(chosen, module.experts.count, padding).sum(0).cpu()

        return of_pass

    hooks = [module.register_forward_hook(count(name)) for name, module in mixtures.items()]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()
