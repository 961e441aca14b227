"""How benchmarks measure: time by interleaved medians, memory by the peak RSS of a child.

Time. Every round runs each variant once, in an order that is reversed from one round to the next,
so that other load on the machine affects all variants equally; the median over rounds is reported.
glibc is set to keep freed memory, as jemalloc and tcmalloc do: otherwise it depends on the history
of the process whether large blocks are returned to the kernel, and page faults, which are a third
of some times, affect one variant and not the next.

Memory. torch does not count bytes on a CPU, so the kernel does. Two children are forked from a
clean server that has never computed: both build the inputs and warm up, only one runs the work, and
the difference of their `ru_maxrss` is the work's peak beyond its inputs. A forked child starts from
the RSS of its parent; an exec'ed one would inherit its parent's *peak*, which hides smaller ones.
Blocks above 64 KiB are mapped one by one and unmapped when freed, so that only live ones count.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4

Work = Callable[[], object]
Build = Callable[[], Work]
"""A function that makes inputs and returns the work on them; for `peak_mib` it must pickle."""


def medians(
    variants: Mapping[str, Work], *, rounds: int = 9, warm_ups: int = 3, at_least: float = 0.01
) -> dict[str, float]:
    """Return the median seconds of one call of each variant.

    A sample is as many calls as take about `at_least` seconds, so that short calls are not noise.
    """
    _keep_freed_memory()
    calls = {}
    for name, work in variants.items():
        fastest = min(_seconds(work, 1) for _ in range(warm_ups))
        calls[name] = max(1, round(at_least / max(fastest, 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in list(variants)[:: -1 if number % 2 else 1]:
            samples[name].append(_seconds(variants[name], calls[name]))
    return {name: statistics.median(values) for name, values in samples.items()}


def _keep_freed_memory() -> None:
    """Set glibc's malloc to keep freed memory in the process."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(M_TOP_PAD, 64 * 2**20)


def _seconds(work: Work, calls: int) -> float:
    """Return the mean seconds of one call."""
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls


def peak_mib(build: Build, warm_up: Build) -> float:
    """Return the MiB that the work of `build` needs at its peak beyond its inputs.

    `warm_up` builds the same work on tiny inputs: it loads code and starts threads in both
    children, which would be counted otherwise. Its own memory must be less than the inputs'.
    """
    unused, busy = (_peak_of_child(build, warm_up, works) for works in (False, True))
    return (busy - unused) / 1024


def _peak_of_child(build: Build, warm_up: Build, works: bool) -> int:
    """Return the peak RSS, in KiB, of a child that builds inputs, and runs the work if `works`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_report_peak, args=(sender, build, warm_up, works))
    child.start()
    sender.close()
    try:
        peak: int = receiver.recv()
    except EOFError:
        child.join()
        raise RuntimeError(f"the measured child ended with code {child.exitcode}") from None
    child.join()
    return peak


def _report_peak(sender: Connection, build: Build, warm_up: Build, works: bool) -> None:
    """Run in the child, and send its peak RSS in KiB."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 64 * 1024)
    warm_up()()
    work = build()
    result = work() if works else None
    sender.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    del result


def arguments_of(description: str | None, rounds: int) -> tuple[int, bool]:
    """Parse the command line; return the rounds, and whether to use tiny sizes only."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=raw)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    arguments = parser.parse_args()
    return (2 if arguments.quick else arguments.rounds), arguments.quick


def print_header(title: str) -> None:
    """Print what is measured and on which machine; the load shows whether it was free."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(
        f"## {title}\n\ncommit {commit.stdout.strip() or 'unknown'}, {_processor()}, "
        f"{os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f} before the start\n",
        flush=True,
    )


def _processor() -> str:
    """Return the processor's name, and its family and model numbers: clouds hide the name."""
    facts: dict[str, str] = {}
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name") or platform.processor() or platform.machine()
    known = "model" in facts and "cpu family" in facts
    return f"{name} (family {facts['cpu family']}, model {facts['model']})" if known else name


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table in Markdown, each row as soon as it is known."""
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)
    print(flush=True)
