"""`train --profile`: a trace of some steps, and a table of where each rank's time went."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch._C._autograd import DeviceType

from parallel.collectives import sum_over_ranks
from parallel.mesh import Mesh
from trainer.files import replace
from trainer.logs.log import log

DATA, OPTIMIZER, COLLECTIVE = "forescale: data", "forescale: optimizer", "forescale: collective"
"""Names of spans in a trace."""

COLLECTIVES = (
    "all_gather_into_tensor",
    "all_reduce",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "gather",
    "recv",
    "reduce",
    "reduce_scatter_tensor",
    "send",
)
"""Functions of torch.distributed by which ranks wait for each other."""

Spans = list[tuple[float, float]]
"""Beginnings and ends, in microseconds."""


@dataclass(frozen=True)
class Shares:
    """Milliseconds of a step, by what the rank did; on a GPU, by what the GPU did."""

    compute: float
    communication: float
    """What no computation hides."""
    data: float
    """Making batches; on a GPU, copies between it and the host that nothing hides."""
    optimizer: float
    idle: float


class StepProfiler:
    """Profiles the steps from `first` to `last`; call it with the number of each step before it.

    Leaves rank-N.trace.json, for Perfetto or chrome://tracing, and summary.json in `folder`.
    """

    def __init__(self, first: int, last: int, folder: Path, mesh: Mesh) -> None:
        self.first, self.last, self.folder, self.mesh = first, last, folder, mesh
        self._running: ExitStack | None = None

    def __call__(self, step: int) -> None:
        if step == self.first:
            self._start()
        elif step == self.last + 1 and self._running is not None:
            self._finish()

    def close(self) -> None:
        """Stop without a table, where the run ends early."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def _start(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU]
        if self.mesh.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with ExitStack() as stack:
            if self.mesh.layout.world > 1:
                stack.enter_context(_marked_collectives())
            self._profile = stack.enter_context(profile(activities=activities))
            self._running = stack.pop_all()
        self._began = time.perf_counter()

    def _finish(self) -> None:
        if self.mesh.device.type == "cuda":
            torch.cuda.synchronize()
        taken = 1e6 * (time.perf_counter() - self._began)
        self.close()
        steps = self.last - self.first + 1
        self.folder.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self.folder / f"rank-{self.mesh.rank}.trace.json"))
        shares = shares_of(self._profile.events(), taken, steps, self.mesh.device.type)
        each = torch.zeros(self.mesh.layout.world, len(fields(Shares)))
        each[self.mesh.rank] = torch.tensor(list(asdict(shares).values()))
        ranks = [Shares(*values) for values in sum_over_ranks(self.mesh, each).tolist()]
        if self.mesh.is_main:
            summary = {"first": self.first, "last": self.last, "ranks": [asdict(r) for r in ranks]}
            replace(self.folder / "summary.json", json.dumps(summary, indent=1))
            log.info("steps %s to %s, ms a step:\n%s", self.first, self.last, as_table(ranks))
            log.info("traces: %s, for ui.perfetto.dev", self.folder)


def shares_of(events: Iterable[Any], taken: float, steps: int, device: str) -> Shares:
    """Return where `taken` microseconds went, as milliseconds of each of `steps` steps."""
    spans = _of_gpu(events) if device == "cuda" else _of_cpu(events)
    communication, data, optimizer, compute = spans
    hidden = _union(optimizer + compute)
    exposed = _without(_union(communication), hidden)
    waiting = _without(_union(data), _union(hidden + exposed))
    optimizer = _union(optimizer)
    alone = _without(_union(compute), optimizer)
    parts = [_length(one) for one in (alone, exposed, waiting, optimizer)]
    return Shares(*(one / steps / 1e3 for one in (*parts, max(0.0, taken - sum(parts)))))


def _of_gpu(events: Iterable[Any]) -> tuple[Spans, Spans, Spans, Spans]:
    """Return the spans of a GPU's communication, copies, optimizer and other kernels."""
    found: tuple[Spans, Spans, Spans, Spans] = ([], [], [], [])
    for event in events:
        if event.device_type != DeviceType.CUDA or event.is_user_annotation:
            continue
        name = event.name.lower()
        kinds = ("nccl" in name, name.startswith("memcpy h") or " dtoh" in name, "adam" in name)
        found[next((i for i, holds in enumerate(kinds) if holds), 3)].append(_span(event))
    return found


def _of_cpu(events: Iterable[Any]) -> tuple[Spans, Spans, Spans, Spans]:
    """Return the spans of a rank's collectives, batches, optimizer and other operators.

    What runs within one of the first three counts as that.
    """
    named: dict[str, Spans] = {COLLECTIVE: [], DATA: [], OPTIMIZER: []}
    others: Spans = []
    for event in events:
        if event.name in named:
            named[event.name].append(_span(event))
        elif event.name.startswith("aten::"):
            others.append(_span(event))
    collectives = _union(named[COLLECTIVE])
    within = _union([one for spans in named.values() for one in spans])
    optimizer = _without(_union(named[OPTIMIZER]), collectives)
    return collectives, named[DATA], optimizer, _without(_union(others), within)


def _span(event: Any) -> tuple[float, float]:
    return event.time_range.start, event.time_range.end


def _union(spans: Spans) -> Spans:
    """Return spans that do not overlap, in order, and cover the same."""
    joined: Spans = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _without(spans: Spans, others: Spans) -> Spans:
    """Return what of `spans` no one of `others` covers; neither overlaps itself."""
    left: Spans = []
    remaining = iter(others)
    other = next(remaining, None)
    for start, end in spans:
        while other is not None and other[1] <= start:
            other = next(remaining, None)
        while other is not None and other[0] < end:
            if other[0] > start:
                left.append((start, other[0]))
            start = max(start, other[1])
            if other[1] >= end:
                break
            other = next(remaining, None)
        if start < end:
            left.append((start, end))
    return left


def _length(spans: Spans) -> float:
    return sum(end - start for start, end in spans)


def as_table(ranks: Sequence[Shares]) -> str:
    """Return a table with a row for each rank."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    names = [field.name for field in fields(Shares)]
    for name in ("rank", *names):
        table.add_column(name, justify="right")
    for rank, shares in enumerate(ranks):
        values = asdict(shares).values()
        whole = max(sum(values), 1e-9)
        cells = [f"{value:.1f} ({value / whole:.0%})" for value in values]
        table.add_row(str(rank), *cells)
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue().rstrip()  # type: ignore[attr-defined]


@contextmanager
def _marked_collectives() -> Iterator[None]:
    """Have collectives leave spans in a trace: gloo's do not, however long a rank waits."""

    def marked(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            with torch.profiler.record_function(COLLECTIVE):
                return function(*arguments, **options)

        return call

    plain = {name: getattr(dist, name) for name in COLLECTIVES}
    for name, function in plain.items():
        setattr(dist, name, marked(function))
    try:
        yield
    finally:
        for name, function in plain.items():
            setattr(dist, name, function)
