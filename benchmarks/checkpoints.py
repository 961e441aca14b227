"""Times of saving and loading 200 M parameters, beside a raw write and DeepSpeed's checkpoints.

    .venv/bin/python -m benchmarks.checkpoints

Two ranks, ZeRO 1, fp32: weights and two moments, 12 bytes a parameter. Every round does each thing
once, in turn; medians are shown. A save is over when all bytes are on the disk (fsync; for
DeepSpeed, which does not call it, sync afterwards). Loads find the files in the page cache.
Universal checkpoints are how DeepSpeed changes the layout: save, ds_to_universal, load.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from benchmarks.timing import ROOT, arguments_of, print_header, print_table
from launch.cluster_environment import free_port
from parallel.layout import Layout
from parallel.mesh import Mesh
from trainer.checkpoint import tensor_files
from trainer.checkpoint.manifest import verify
from trainer.checkpoint.partitions import local_numel
from trainer.checkpoint.saver import Saver
from trainer.checkpoint.store import Store, name_of
from trainer.config import load
from trainer.data import Dataset, Split
from trainer.engine.engine import Engine
from trainer.run.lease import Attempt, acquire

WORLD = 2
LARGE = {
    "model.d_model": 1024,
    "model.nhead": 16,
    "model.num_layers": 16,
    "model.dim_feedforward": 4096,
}
SMALL = {"model.d_model": 64, "model.num_layers": 2, "model.dim_feedforward": 256}
COMMON = {
    "model.architecture": "encoder",
    "model.use_moe": False,
    "data.rows": 600,
    "train.global_batch_size": 4,
    "train.micro_batch_size": 2,
}

STEP = 1

SAVERS = {"synchronous": False, "asynchronous": True}
"""Our savers -> whether they are asynchronous."""

Work = Callable[[], object]


class Bench:
    """The benchmark on one rank."""

    def __init__(self, rank: int, folder: Path, quick: bool) -> None:
        self.rank, self.folder = rank, folder
        overrides = COMMON | (SMALL if quick else LARGE)
        settings = load(ROOT / "configs/tiny.yaml", overrides).settings
        self.dataset = Dataset(settings.data)
        mesh = Mesh(Layout(1, WORLD), rank, torch.device("cpu"))
        self.engine = Engine(settings, self.dataset.shape, mesh)
        self.step()
        self.times: dict[str, list[float]] = {}
        self.sizes: dict[str, int] = {}
        self.stack = ExitStack()
        lease = self.stack.enter_context(acquire(folder, Attempt("", ()))) if rank == 0 else None
        self.stores = {name: Store(folder / name) for name in SAVERS}
        self.savers = {
            name: Saver(
                self.stores[name],
                mesh,
                settings.checkpoint.model_copy(update={"asynchronous": asynchronous, "keep": 1}),
                self.engine.shapes,
                lease.is_held if lease is not None else lambda: False,
            )
            for name, asynchronous in SAVERS.items()
        }

    def step(self) -> None:
        """Make a training step."""
        batch = self.dataset.batch(Split.TRAIN, self.dataset.draw(0, 0, 2))
        self.engine.train_step(STEP, [batch])

    def time(self, name: str, work: Work) -> None:
        """Record the seconds that all ranks need together for `work`."""
        dist.barrier()
        began = time.perf_counter()
        work()
        dist.barrier()
        self.times.setdefault(name, []).append(time.perf_counter() - began)

    def round(self) -> None:
        """Do each thing once."""
        self.time("raw write", self.write_raw)
        self.save("synchronous")
        self.save("asynchronous")
        self.load()
        self.time("DeepSpeed save", self.save_deepspeed)
        self.time("DeepSpeed load", lambda: self.load_deepspeed("plain"))
        self.time("ds_to_universal", self.convert)
        self.time("universal load", lambda: self.load_deepspeed("universal"))
        dist.barrier()
        if self.rank == 0:
            self.sizes["DeepSpeed"] = size_of(self.folder / "deepspeed" / "plain")
            self.sizes["universal"] = size_of(self.folder / "deepspeed" / "universal")
            shutil.rmtree(self.folder / "deepspeed")

    def write_raw(self) -> None:
        """Write this rank's part of the state as bytes, synced."""
        path = self.folder / f"raw-{self.rank}"
        with open(path, "wb") as file:
            for tensor in self.engine.state().values():
                whole = getattr(tensor, "data_1d", tensor).contiguous()
                file.write(whole.view(-1).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        path.unlink()

    def save(self, name: str) -> None:
        """Save by one of the savers; with the asynchronous one, train while it writes."""
        saver = self.savers[name]

        def blocked() -> None:
            saver.save(STEP, self.engine.state(), {"settings": {}})

        self.time(f"{name} save, blocked", blocked)
        began = time.perf_counter()
        if SAVERS[name]:
            self.time("a step while it is written", self.step)
        saver.wait()
        dist.barrier()
        if SAVERS[name]:
            self.times.setdefault("asynchronous save, rest", []).append(time.perf_counter() - began)
        self.time("a step", self.step)

    def load(self) -> None:
        """Verify our checkpoint and load it."""
        path = self.stores["synchronous"].folder / name_of(STEP)
        self.time("our verification", lambda: check(verify(path, reader=self.rank, readers=WORLD)))

        def read() -> None:
            with self.engine.loading(STEP) as state:
                tensor_files.read(path, state)

        self.time("our load", read)
        self.sizes["ours"] = size_of(path)

    def save_deepspeed(self) -> None:
        """Save by DeepSpeed."""
        self.engine._engine.save_checkpoint(str(self.folder / "deepspeed"), tag="plain")
        os.sync()

    def load_deepspeed(self, tag: str) -> None:
        """Load DeepSpeed's checkpoint, `plain` or `universal`."""
        engine = self.engine._engine
        engine._config.load_universal_checkpoint = tag == "universal"
        path, _ = engine.load_checkpoint(str(self.folder / "deepspeed"), tag=tag)
        assert path is not None

    def convert(self) -> None:
        """Make a universal checkpoint of DeepSpeed's plain one."""
        if self.rank > 0:
            return
        folder = self.folder / "deepspeed"
        options = {
            "--input_folder": str(folder / "plain"),
            "--output_folder": str(folder / "universal"),
            "--num_extract_workers": "2",
            "--num_merge_workers": "2",
        }
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
        command += ["--inject_missing_state", *(word for pair in options.items() for word in pair)]
        subprocess.run(command, check=True, capture_output=True)
        os.sync()

    def local_bytes(self) -> int:
        """Return the size of what this rank must write."""
        state = self.engine.state()
        return sum(local_numel(tensor) * tensor.element_size() for tensor in state.values())


def check(wrong: str | None) -> None:
    """Fail where a checkpoint is not intact."""
    assert wrong is None, wrong


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def rank_main(rank: int, port: int, folder: Path, rounds: int, quick: bool) -> None:
    """Run the benchmark as one rank."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    bench = Bench(rank, folder, quick)
    for _ in range(rounds):
        bench.round()
    total = torch.tensor(float(bench.local_bytes()), dtype=torch.float64)
    dist.all_reduce(total)
    if rank == 0:
        report(bench, total.item())
    dist.barrier()
    os._exit(0)  # DeepSpeed's own end takes long


def report(bench: Bench, size: float) -> None:
    """Print all tables; `size` is that of the state in bytes."""
    median = {name: statistics.median(values) for name, values in bench.times.items()}
    print(f"{size / 12 / 1e6:.1f} M parameters, {size / 1e9:.3f} GB to keep\n")
    report_saves(median, bench.sizes, size)
    report_loads(median, size)
    report_asynchronous_save(median, bench.times["asynchronous save, blocked"][0])
    names = ("a step", "a step while it is written")
    print_table(["a training step", "s"], [[name, f"{median[name]:.2f}"] for name in names])


def report_saves(median: dict[str, float], sizes: dict[str, int], size: float) -> None:
    """Print seconds and sizes of all kinds of saves."""
    raw, plain = median["raw write"], median["DeepSpeed save"]
    saves = [
        ("raw write of as many bytes", raw, None),
        ("ours", median["synchronous save, blocked"], sizes["ours"]),
        ("DeepSpeed, its own layout only", plain, sizes["DeepSpeed"]),
        ("DeepSpeed + ds_to_universal", plain + median["ds_to_universal"], sizes["universal"]),
    ]
    rows = []
    for name, seconds, on_disk in saves:
        share = "" if on_disk is None else f"{on_disk / size:.4f}"
        rate, times = f"{size / seconds / 1e9:.2f}", f"x{seconds / raw:.2f}"
        rows.append([name, f"{seconds:.2f}", rate, times, share])
    print_table(["to disk", "s", "GB/s", "times the raw write", "on disk / to keep"], rows)


def report_loads(median: dict[str, float], size: float) -> None:
    """Print seconds of all kinds of loads."""
    ours = median["our load"]
    loads = {
        "ours": ours,
        "every byte verified, by one rank each": median["our verification"],
        "DeepSpeed, its own layout only": median["DeepSpeed load"],
        "DeepSpeed, universal": median["universal load"],
    }
    rows = []
    for name, seconds in loads.items():
        rate, times = f"{size / seconds / 1e9:.2f}", f"x{seconds / ours:.2f}"
        rows.append([name, f"{seconds:.2f}", rate, times])
    print_table(["from disk (page cache)", "s", "GB/s", "times ours"], rows)


def report_asynchronous_save(median: dict[str, float], first: float) -> None:
    """Print seconds of the asynchronous save; `first` are those that the first one blocked."""
    ours, blocked = median["synchronous save, blocked"], median["asynchronous save, blocked"]
    parts = {
        "training is blocked": blocked,
        "the first time, when its memory is made": first,
        "until it is committed": blocked + median["asynchronous save, rest"],
    }
    rows = [[name, f"{part:.2f}", f"{part / ours:.1%}"] for name, part in parts.items()]
    print_table(["asynchronous save", "s", "of the synchronous one"], rows)


def main() -> None:
    """Start the ranks."""
    rounds, quick = arguments_of(__doc__, rounds=5)
    print_header("Checkpoints")
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as folder:
        arguments: Any = (free_port(), Path(folder).resolve(), rounds, quick)
        torch.multiprocessing.spawn(rank_main, arguments, nprocs=WORLD)


if __name__ == "__main__":
    main()
