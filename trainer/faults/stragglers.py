"""Stragglers: ranks that are slow, so that the others wait for them at each step.

Ranks differ only in the time that they compute alone. Attention is in each layer of each
architecture, costs the ranks of a stage the same, and no collective interrupts it: tensor
parallelism's sums come after it, ZeRO 3 gathers its weights before. So each rank times its
attention in forward passes, and a rank is slow that takes much longer than its stage's median.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median_low
from typing import Any

import torch
from torch import Tensor, nn

from model.attention import Attention
from model.sentences import ranges
from parallel.collectives import from_each, join_records
from parallel.layout import Layout
from parallel.mesh import Mesh

MIN_COMPARISONS = 3
"""Comparisons in a row in which a rank must be slow to be named."""

MIN_SECONDS = 0.01
"""Smallest median of a stage, in seconds a step, at which ranks can be compared.

Below it the operating system's own pauses make any rank slow now and then."""


class AttentionClock:
    """Times one rank's attention in the forward passes of training."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._timed: list[tuple[Any, Any]] = []
        """Begin and end of each attention since the last `take`."""

    def attach(self, network: nn.Module) -> None:
        """Time the attention of `network`, before tensor parallelism wraps its modules."""
        for module in network.modules():
            if isinstance(module, Attention):
                module.forward = self._clocked(module, module.forward)

    def _clocked(self, module: nn.Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return `forward` with its time taken where the module is in training."""

        def clocked(*inputs: Any, **options: Any) -> Tensor:
            if not module.training:
                return forward(*inputs, **options)
            began = self._now()
            output = forward(*inputs, **options)
            self._timed.append((began, self._now()))
            return output

        return clocked

    def _now(self) -> Any:
        """Return this moment: seconds on a CPU, an event on a GPU."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def take(self) -> float:
        """Return the seconds spent in attention since the last call."""
        timed, self._timed = self._timed, []
        if self._device.type != "cuda" or not timed:
            return float(sum(ended - began for began, ended in timed))
        timed[-1][1].synchronize()
        return sum(began.elapsed_time(ended) for began, ended in timed) / 1000


class Stragglers:
    """Compares the ranks of a run every `every` steps. All ranks make theirs together."""

    def __init__(self, mesh: Mesh, factor: float, every: int) -> None:
        self._mesh, self._factor, self._every = mesh, factor, every
        self._hosts = join_records(mesh, {str(mesh.rank): os.uname().nodename})
        self._seconds, self._steps = 0.0, 0
        self._slow_for: dict[int, int] = {}
        """Rank -> comparisons in a row in which it was slow."""
        self._named: set[int] = set()

    def compare(self, step: int, seconds_here: float) -> tuple[list[float] | None, list[str]]:
        """Add this rank's seconds of a step; all ranks call it after each step.

        Every so many steps it returns each rank's seconds a step, and sentences about the ranks
        that are slow, or no longer are; otherwise None, and no sentence.
        """
        self._seconds += seconds_here
        self._steps += 1
        if step % self._every:
            return None, []
        seconds: list[float] = from_each(self._mesh, self._seconds / self._steps).tolist()
        first, self._seconds, self._steps = step - self._steps + 1, 0.0, 0
        return seconds, list(self._sentences(seconds, f"steps {first}-{step}"))

    def _sentences(self, seconds: list[float], when: str) -> list[str]:
        """Return sentences about the ranks that are slow from now on, or no longer are."""
        slow = slow_ranks(seconds, self._mesh.layout, self._factor)
        self._slow_for = {rank: self._slow_for.get(rank, 0) + 1 for rank in slow}
        lasting = {rank for rank, times in self._slow_for.items() if times >= MIN_COMPARISONS}
        sentences = [
            f"{when}: rank {rank} ({self._hosts[str(rank)]}) is slow, and the others wait for it: "
            f"its attention takes {slow[rank]:.1f} times as long as the median of its stage "
            f"({seconds[rank]:.3g} s a step)"
            for rank in sorted(lasting - self._named)
        ]
        recovered = sorted(self._named - slow.keys())
        if recovered:
            sentences.append(f"{when}: rank {ranges(recovered)} is slow no longer")
        self._named = (self._named | lasting) & slow.keys()
        return sentences


def slow_ranks(seconds: list[float], layout: Layout, factor: float) -> dict[int, float]:
    """Return the ranks that take more than `factor` times their stage's median, and how many times.

    Where the median is under MIN_SECONDS, no rank is slow.
    """
    slow = {}
    for first in range(0, layout.world, layout.stage):
        usual = median_low(seconds[first : first + layout.stage])
        for rank in range(first, first + layout.stage):
            if usual >= MIN_SECONDS and seconds[rank] > factor * usual:
                slow[rank] = seconds[rank] / usual
    return slow
