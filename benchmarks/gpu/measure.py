"""How GPU benchmarks measure: device time by events, interleaved rounds, peaks by the allocator.

On a CPU the same code runs with a clock and without peaks, so that a benchmark can be rehearsed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import print_table

Work = Callable[[], object]
Rows = list[dict[str, Any]]

IS_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if IS_CUDA else "cpu")


@dataclass
class Part:
    """What one part of the benchmarks measures, and its results."""

    name: str
    quick: bool
    """Whether sizes are tiny: does it run?"""
    profile: bool = False
    """Whether tables of where a step's time goes are kept too."""
    results: dict[str, Rows] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    """Tables of the profiler, by the name of what was profiled."""

    def add(self, title: str, rows: Rows) -> None:
        """Keep rows under `title` and print them as a table."""
        self.results[title] = rows
        head = list(dict.fromkeys(key for row in rows for key in row))
        print(f"### {title}\n")
        print_table(head, [[_shown(row.get(key)) for key in head] for row in rows])

    @property
    def rounds(self) -> int:
        """Rounds of each measurement."""
        return 2 if self.quick else 12


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def synchronise() -> None:
    """Wait until the device has computed all that was started."""
    if IS_CUDA:
        torch.cuda.synchronize()


def milliseconds(works: Mapping[str, Work], rounds: int, warm_ups: int = 3) -> dict[str, float]:
    """Return the median milliseconds of one call of each work.

    Every round calls each work in an order that is reversed from one round to the next. A sample is
    as many calls as take about 20 ms, between two events: launches of one call hide behind another.
    """
    calls = {}
    for name, work in works.items():
        fastest = min(_sample(work, 1) for _ in range(warm_ups))
        calls[name] = max(1, min(100, round(20 / max(fastest, 1e-3))))
    samples: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name in list(works)[:: -1 if number % 2 else 1]:
            samples[name].append(_sample(works[name], calls[name]))
    return {name: statistics.median(values) for name, values in samples.items()}


def _sample(work: Work, calls: int) -> float:
    """Return the mean milliseconds of one call."""
    synchronise()
    if not IS_CUDA:
        started = time.perf_counter()
        for _ in range(calls):
            work()
        return 1e3 * (time.perf_counter() - started) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / calls


def peak_gib(work: Work) -> float | None:
    """Return the GiB that are allocated at the peak of one call; None on a CPU."""
    if not IS_CUDA:
        return None
    synchronise()
    torch.cuda.reset_peak_memory_stats()
    work()
    synchronise()
    return torch.cuda.max_memory_allocated() / 2**30


def product_ceiling(quick: bool) -> float:
    """Return the TFLOP/s of a bf16 product of random 8192 x 8192 matrices."""
    size = 256 if quick else 8192
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    taken = milliseconds({"product": lambda: a @ b}, rounds=3 if quick else 15)["product"]
    return 2 * size**3 / taken / 1e9


def random(*shape: int, dtype: torch.dtype = torch.bfloat16, grad: bool = False) -> Tensor:
    """Return normal numbers on the device."""
    return torch.randn(*shape, device=DEVICE, dtype=dtype).requires_grad_(grad)


def backward_of(forward: Callable[[], Tensor], inputs: Sequence[Tensor], upstream: Tensor) -> Work:
    """Return the work of a forward and a backward pass to all `inputs`."""
    return lambda: torch.autograd.grad(forward(), inputs, upstream, allow_unused=True)


def profiled(work: Work, rows: int = 40) -> str:
    """Return a table of the operators of one call, by their own time on the device."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if IS_CUDA else [])]
    work()
    synchronise()
    with profile(activities=activities) as recorded:
        work()
        synchronise()
    key = "self_device_time_total" if IS_CUDA else "self_cpu_time_total"
    return str(recorded.key_averages().table(sort_by=key, row_limit=rows, max_name_column_width=70))
