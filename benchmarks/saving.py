"""Measures saving and loading beside torch.save and torch.load, one process.

    .venv/bin/python -m benchmarks.saving

100 M parameters in fp32 with two moments each, 1.2 GB. A save is over when all bytes are on the
disk, in new files that take the old ones' place; ours has a sum of every byte besides. Loads copy
into tensors that are there, and find the files in the page cache. Every round does each thing once,
in an order that is turned from one round to the next.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.timing import arguments_of, print_header, print_table
from parallel.layout import Layout
from parallel.mesh import Mesh
from trainer.checkpoint import tensor_files
from trainer.checkpoint.saver import Saver
from trainer.checkpoint.store import Store
from trainer.config.settings import CheckpointConfig


class Bench:
    """The files of both ways in one folder."""

    def __init__(self, folder: Path, layers: int, width: int) -> None:
        self.folder = folder
        self.state: dict[str, Tensor] = {
            f"{kind}/layers.{number}": torch.randn(width, width)
            for kind in ("weights", "exp_avg", "exp_avg_sq")
            for number in range(layers)
        }
        self.size = sum(t.numel() * t.element_size() for t in self.state.values())
        shapes = {key: tuple(tensor.shape) for key, tensor in self.state.items()}
        self.store = Store(folder / "ours")
        mesh = Mesh(Layout(1, 1), 0, torch.device("cpu"))
        config = CheckpointConfig(asynchronous=False, keep=1)
        self.saver = Saver(self.store, mesh, config, shapes, lambda: True)
        self.steps = 0

    def save_ours(self) -> None:
        """Save a checkpoint, which removes the one before."""
        self.steps += 1
        self.saver.save(self.steps, self.state, {"settings": {}})
        self.saver.wait()

    def save_theirs(self) -> None:
        """Save by torch into a new file, and put it in place of the one before."""
        with open(self.folder / "new.pt", "wb") as file:
            torch.save(self.state, file)
            file.flush()
            os.fsync(file.fileno())
        (self.folder / "new.pt").replace(self.folder / "theirs.pt")

    def write_raw(self) -> None:
        """Write as many bytes, in the same way."""
        with open(self.folder / "new.raw", "wb") as file:
            for tensor in self.state.values():
                file.write(tensor.view(-1).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        (self.folder / "new.raw").replace(self.folder / "raw")

    def load_ours(self) -> None:
        """Read our checkpoint into the tensors that are there."""
        newest = self.store.newest()
        assert newest is not None
        tensor_files.read(newest.path, self.state, alone=True)

    def load_theirs(self) -> None:
        """Read torch's file, and copy into the tensors that are there."""
        for key, tensor in torch.load(self.folder / "theirs.pt", weights_only=True).items():
            self.state[key].copy_(tensor)


def medians(works: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each work, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name in list(works)[:: -1 if number % 2 else 1]:
            began = time.perf_counter()
            works[name]()
            if number:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Measure saves, then loads."""
    rounds, quick = arguments_of(__doc__, rounds=7)
    print_header("Saving and loading")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    folder = Path(tempfile.mkdtemp(dir=os.environ.get("TMPDIR", ".")))
    try:
        bench = Bench(folder, *((2, 64) if quick else (25, 2000)))
        saves = {
            "torch.save": bench.save_theirs,
            "ours, sums included": bench.save_ours,
            "raw write": bench.write_raw,
        }
        loads = {"torch.load": bench.load_theirs, "ours": bench.load_ours}
        for title, works in (("save", saves), ("load", loads)):
            seconds = medians(works, rounds)
            first = next(iter(seconds.values()))
            print_table(
                [title, "s", "GB/s", f"of {next(iter(works))}'s time"],
                [
                    [
                        name,
                        f"{value:.2f}",
                        f"{bench.size / value / 1e9:.2f}",
                        f"{value / first:.2f}",
                    ]
                    for name, value in seconds.items()
                ],
            )
        bench.saver.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
