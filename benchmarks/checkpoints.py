"""Saving and loading 200 M parameters, beside a raw write of as many bytes and DeepSpeed's ways.

    .venv/bin/python benchmarks/checkpoints.py

Two ranks, ZeRO 1, fp32: weights and two moments, 12 bytes a parameter. Every round does each thing
once, in turn; medians are shown. A save is over when all bytes are on the disk (fsync; for
DeepSpeed, which does not ask for it, sync afterwards). Loads find the files in the page cache. The
universal way is DeepSpeed's to another layout: save, ds_to_universal, load.
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
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from timing import ROOT, arguments_of, print_header, print_table

from launch.cluster_environment import free_port
from parallel.layout import Layout
from parallel.mesh import Mesh
from trainer.checkpoint import storage
from trainer.checkpoint.manifest import verify
from trainer.checkpoint.partitions import elements
from trainer.checkpoint.saver import Saver
from trainer.checkpoint.store import Store
from trainer.config import Settings, load
from trainer.data import Dataset, Split
from trainer.engine.engine import Engine
from trainer.run.lease import Attempt, own

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

Work = Callable[[], object]


class Bench:
    """One rank."""

    def __init__(self, rank: int, folder: Path, quick: bool) -> None:
        self.rank, self.folder = rank, folder
        self.settings = load(
            ROOT / "configs/tiny.yaml", COMMON | (SMALL if quick else LARGE)
        ).settings
        self.dataset = Dataset(self.settings.data)
        mesh = Mesh(Layout(1, WORLD), rank, torch.device("cpu"))
        self.engine = Engine(self.settings, self.dataset.shape, mesh)
        self.step()
        self.times: dict[str, list[float]] = {}
        self.sizes: dict[str, int] = {}
        self.owner = own(folder, Attempt("", ()))
        lease = self.owner.__enter__() if rank == 0 else None
        self.savers = {
            asynchronous: Saver(
                Store(folder / f"ours-{asynchronous}"),
                mesh,
                self.settings.checkpoint.model_copy(
                    update={"asynchronous": asynchronous, "keep": 1}
                ),
                self.engine.shapes,
                lease,
            )
            for asynchronous in (False, True)
        }

    def step(self) -> None:
        batch = self.dataset.batch(Split.TRAIN, self.dataset.draw(0, 0, 2))
        self.engine.train_step(STEP, [batch])

    def time(self, name: str, work: Work) -> None:
        """Of all ranks together."""
        dist.barrier()
        began = time.perf_counter()
        work()
        dist.barrier()
        self.times.setdefault(name, []).append(time.perf_counter() - began)

    def round(self) -> None:
        self.time("raw write", self.write_raw)
        self.save(asynchronous=False)
        self.save(asynchronous=True)
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
        path = self.folder / f"raw-{self.rank}"
        with open(path, "wb") as file:
            for tensor in self.engine.state().values():
                whole = getattr(tensor, "data_1d", tensor).contiguous()
                file.write(whole.view(-1).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        path.unlink()

    def save(self, *, asynchronous: bool) -> None:
        saver = self.savers[asynchronous]
        name = "asynchronous" if asynchronous else "synchronous"
        self.time(
            f"{name} save, blocked", lambda: saver.save(STEP, self.engine.state(), {"settings": {}})
        )
        began = time.perf_counter()
        if asynchronous:
            self.time("a step while it is written", self.step)
        saver.wait()
        dist.barrier()
        if asynchronous:
            self.times.setdefault("asynchronous save, rest", []).append(time.perf_counter() - began)
        self.time("a step", self.step)

    def load(self) -> None:
        path = self.folder / "ours-False" / f"step-{STEP:08d}"
        self.time("our verification", lambda: check(verify(path, reader=self.rank, readers=WORLD)))

        def read() -> None:
            storage.read(path, self.engine.begin_load(STEP))
            self.engine.end_load()

        self.time("our load", read)
        self.sizes["ours"] = size_of(path)

    def save_deepspeed(self) -> None:
        self.engine._engine.save_checkpoint(str(self.folder / "deepspeed"), tag="plain")
        os.sync()

    def load_deepspeed(self, tag: str) -> None:
        engine = self.engine._engine
        engine._config.load_universal_checkpoint = tag == "universal"
        path, _ = engine.load_checkpoint(str(self.folder / "deepspeed"), tag=tag)
        assert path is not None

    def convert(self) -> None:
        if self.rank > 0:
            return
        folder = self.folder / "deepspeed"
        subprocess.run(
            [
                sys.executable,
                "-m",
                "deepspeed.checkpoint.ds_to_universal",
                "--inject_missing_state",
                "--input_folder",
                folder / "plain",
                "--output_folder",
                folder / "universal",
                "--num_extract_workers",
                "2",
                "--num_merge_workers",
                "2",
            ],
            check=True,
            capture_output=True,
        )
        os.sync()

    def kept_bytes(self) -> int:
        """That this rank must write."""
        return sum(
            elements(tensor) * tensor.element_size() for tensor in self.engine.state().values()
        )


def check(wrong: str | None) -> None:
    assert wrong is None, wrong


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def rank_main(rank: int, port: int, folder: Path, rounds: int, quick: bool) -> None:
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
    total = torch.tensor(float(bench.kept_bytes()), dtype=torch.float64)
    dist.all_reduce(total)
    if rank == 0:
        report(bench, bench.settings, total.item())
    dist.barrier()
    os._exit(0)  # DeepSpeed's farewell takes long


def report(bench: Bench, settings: Settings, kept: float) -> None:
    middle = {name: statistics.median(values) for name, values in bench.times.items()}
    parameters = kept / 12
    print(f"{parameters / 1e6:.1f} M parameters, {kept / 1e9:.3f} GB to keep\n")
    raw = middle["raw write"]
    ours = middle["synchronous save, blocked"]
    whole = middle["DeepSpeed save"] + middle["ds_to_universal"]
    blocked = middle["asynchronous save, blocked"]
    print_table(
        ["to disk", "s", "GB/s", "times the raw write", "on disk / to keep"],
        [
            [name, f"{seconds:.2f}", f"{kept / seconds / 1e9:.2f}", f"x{seconds / raw:.2f}", size]
            for name, seconds, size in (
                ("raw write of as many bytes", raw, ""),
                ("ours", ours, share(bench, "ours", kept)),
                (
                    "DeepSpeed, its own layout only",
                    middle["DeepSpeed save"],
                    share(bench, "DeepSpeed", kept),
                ),
                ("DeepSpeed + ds_to_universal", whole, share(bench, "universal", kept)),
            )
        ],
    )
    print_table(
        ["from disk (page cache)", "s", "GB/s", "times ours"],
        [
            [
                name,
                f"{seconds:.2f}",
                f"{kept / seconds / 1e9:.2f}",
                f"x{seconds / middle['our load']:.2f}",
            ]
            for name, seconds in (
                ("ours", middle["our load"]),
                ("every byte verified, by one rank each", middle["our verification"]),
                ("DeepSpeed, its own layout only", middle["DeepSpeed load"]),
                ("DeepSpeed, universal", middle["universal load"]),
            )
        ],
    )
    first = bench.times["asynchronous save, blocked"][0]
    print_table(
        ["asynchronous save", "s", "of the synchronous one"],
        [
            [name, f"{seconds:.2f}", f"{seconds / ours:.1%}"]
            for name, seconds in (
                ("training is blocked", blocked),
                ("the first time, when its memory is made", first),
                ("until it is committed", blocked + middle["asynchronous save, rest"]),
            )
        ],
    )
    print_table(
        ["a training step", "s"],
        [[name, f"{middle[name]:.2f}"] for name in ("a step", "a step while it is written")],
    )


def share(bench: Bench, name: str, kept: float) -> str:
    return f"{bench.sizes[name] / kept:.4f}"


def main() -> None:
    rounds, quick = arguments_of(__doc__, rounds=5)
    print_header("Checkpoints")
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as folder:
        arguments: Any = (free_port(), Path(folder).resolve(), rounds, quick)
        torch.multiprocessing.spawn(rank_main, arguments, nprocs=WORLD)


if __name__ == "__main__":
    main()
