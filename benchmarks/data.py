"""Windows a second out of a set, beside a raw gather and other loaders; memory and start.

    .venv/bin/python -m benchmarks.data [--quick] [--peers PYTHON]

A set of random walks is written for it. Windows have 512 + 96 points; the raw gather copies the
same windows out of a numpy memmap, one slice after another. Peers are measured in the environment
of PYTHON, if one is named: pip install datasets gluonts.

Memory is what a process has above its base after 100 batches of 64 windows: of its own, and all
that is resident; the difference are pages of the mapped files, which all processes share.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.timing import ROOT, print_header, print_table
from trainer.config.data_settings import DataConfig
from trainer.data import Dataset, Split
from trainer.data.series_set import SeriesSet
from trainer.data.set_format import Columns, Item
from trainer.data.set_writer import SetWriter

CONTEXT, HORIZON = 512, 96
LENGTH = CONTEXT + HORIZON
BATCH = 64
ROUNDS = 9

Rate = dict[str, float]


def write(folder: Path, items: int, points: int) -> Path:
    """Write a set of random walks, and return its folder."""
    rng = np.random.default_rng(0)
    empty = np.empty((0, points), np.float32)
    walk = rng.normal(size=points).cumsum().astype(np.float32)
    start = np.datetime64("2000-01-01", "us")
    with SetWriter(folder, Columns(("value",)), "float32") as writer:
        for number in range(items):
            values = np.roll(walk, int(rng.integers(points)))[None] + np.float32(number)
            writer.add(Item(f"walk {number}", start, "h", values, empty, empty))
        writer.finish()
    return folder


def open_dataset(folder: Path, scaling: str = "none") -> Dataset:
    """Return the dataset of a set."""
    config = {"source": str(folder), "scaling": scaling}
    return Dataset(DataConfig(context_length=CONTEXT, prediction_length=HORIZON, **config))


def rates(folder: Path, seconds: float) -> Rate:
    """Return windows a second by way; medians of rounds that take turns."""
    series = SeriesSet(folder)
    plain, scaled = open_dataset(folder), open_dataset(folder, "train")
    rng = np.random.default_rng(1)
    items = rng.integers(len(series), size=BATCH)
    first = np.array([rng.integers(series.lengths[item] - LENGTH) for item in items])
    index = plain.draw(0, 0, BATCH)
    memory = [series.target(int(item))[0] for item in range(len(series))]

    def gather() -> object:
        batch = np.empty((BATCH, LENGTH), np.float32)
        for row, (item, at) in enumerate(zip(items.tolist(), first.tolist(), strict=True)):
            batch[row] = memory[item][at : at + LENGTH]
        return batch

    ways: dict[str, Callable[[], object]] = {
        "numpy memmap, slice by slice": gather,
        "SeriesSet.windows": lambda: series.windows(items, first, LENGTH),
        "Dataset.batch, unscaled": lambda: plain.batch(Split.TRAIN, index),
        "Dataset.batch, standardised": lambda: scaled.batch(Split.TRAIN, index),
        "Dataset.draw": lambda: plain.draw(0, 0, BATCH),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began, count = time.perf_counter(), 0
            while time.perf_counter() - began < seconds / ROUNDS:
                way()
                count += BATCH
            found[name].append(count / (time.perf_counter() - began))
    return {name: float(np.median(values)) for name, values in found.items()}


def peers(folder: Path, python: str, seconds: float) -> Rate:
    """Return windows a second of the loaders that another environment has."""
    shard = folder / SeriesSet(folder).info.shards[0].name
    command = [python, str(ROOT / "benchmarks/data_peers.py"), str(shard), str(seconds)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    rates: Rate = json.loads(ended.stdout)
    return rates


def start_and_memory(folder: Path) -> tuple[float, float, float, float]:
    """Return what a new process needs: seconds to open a set and for a batch, MiB of memory.

    The latter are its own, and all that are resident.
    """
    here, there = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_start_and_memory, args=(folder, there))
    process.start()
    found: tuple[float, float, float, float] = here.recv()
    process.join()
    return found


def _start_and_memory(folder: Path, pipe: Connection) -> None:
    base = psutil.Process().memory_info()
    began = time.perf_counter()
    dataset = open_dataset(folder)
    opened = time.perf_counter() - began
    took = []
    for step in range(100):
        index = dataset.draw(0, step * BATCH, (step + 1) * BATCH)
        began = time.perf_counter()
        dataset.batch(Split.TRAIN, index)
        took.append(time.perf_counter() - began)
    now = psutil.Process().memory_info()
    own, resident = (now.rss - now.shared) - (base.rss - base.shared), now.rss - base.rss
    pipe.send((opened, float(np.median(took)), own / 2**20, resident / 2**20))


def shared(folder: Path, processes: int) -> tuple[float, float]:
    """Return MiB of a set, and those of it that processes hold together that all have read it.

    A page of several processes counts as a share in each (Pss_File of the kernel).
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(processes)]
    readers = [
        context.Process(target=_read_all, args=(folder, barrier, there)) for _, there in pipes
    ]
    for reader in readers:
        reader.start()
    held = sum(here.recv() for here, _ in pipes)
    for reader in readers:
        reader.join()
    return sum(file.bytes for file in SeriesSet(folder).info.shards) / 2**20, held


def _read_all(folder: Path, barrier: Any, pipe: Connection) -> None:
    series = SeriesSet(folder)
    barrier.wait()
    base = _mapped_mib()
    barrier.wait()
    total = sum(float(series.target(item).sum()) for item in range(len(series)))
    barrier.wait()
    pipe.send(_mapped_mib() - base + 0 * total)
    barrier.wait()


def _mapped_mib() -> float:
    """Return this process's share of files' pages, in MiB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("Pss_File")) / 1024


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser("benchmarks.data", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--peers", metavar="PYTHON", help="of an environment with the peers")
    arguments = parser.parse_args()
    seconds = 0.2 if arguments.quick else 5.0
    with tempfile.TemporaryDirectory() as folder:
        print_header("Windows out of a set")
        corpus = write(Path(folder) / "corpus", 20 if arguments.quick else 1000, 10_000)
        found = rates(corpus, seconds)
        if arguments.peers:
            found |= peers(corpus, arguments.peers, seconds)
        raw = found["numpy memmap, slice by slice"]
        rows = [[name, f"{rate:,.0f}", f"{rate / raw:.2f}"] for name, rate in found.items()]
        print_table(["by", "windows a second", "of the raw gather"], rows)
        sizes = [(10, 10_000), (1, 100_000)]
        if not arguments.quick:
            sizes = [(100, 10_000), (1, 10**7), (1000, 10**5), (10, 10**8)]
        rows = []
        for items, points in sizes:
            made = write(Path(folder) / f"{items}-{points}", items, points)
            opened, batch, own, resident = start_and_memory(made)
            rows.append(
                [
                    f"{items:,} x {points:,}",
                    f"{1000 * opened:.0f}",
                    f"{1000 * batch:.2f}",
                    f"{own:.0f}",
                    f"{resident:.0f}",
                ]
            )
        head = ["series x points", "ms to open", "ms for 64 windows", "MiB of its own", "resident"]
        print_table(head, rows)
        whole, held = shared(corpus, 8)
        print(f"\n8 processes that have read a set of {whole:.0f} MiB hold {held:.0f} MiB of it")


if __name__ == "__main__":
    main()
