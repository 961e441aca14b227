"""Measures what training by Forescale costs beside a plain torch loop, step by step.

    .venv/bin/python -m benchmarks.engine

Before each step of a real run (configuration, ZeRO 1, metrics, TensorBoard, checks for signals) the
same process makes one step of a plain loop: the same network, first weights and windows, fused
AdamW, clipping; on two ranks by torch's DistributedDataParallel. Both take fp32. A step of ours is
all that passes between two steps of the plain loop. Medians; the losses of the first steps are
compared where there is no dropout.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.timing import ROOT, arguments_of, print_header, print_table
from launch.cluster_environment import free_port
from model.init import initialise
from model.network import TimeSeriesTransformer
from trainer.config import load
from trainer.data import Split
from trainer.job import Hooks, train
from trainer.logs.metrics import read_metrics
from trainer.prepare import Plan, prepare

DENSE: dict[str, Any] = {
    "model.architecture": "encoder",
    "model.use_moe": False,
    "data.context_length": 512,
    "data.prediction_length": 96,
    "data.rows": 4000,
    "train.global_batch_size": 16,
    "train.micro_batch_size": 8,
}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "demo, experts": ("configs/demo.yaml", {"parallel.pipeline": 1}),
    "dense, 12 M": (
        "configs/tiny.yaml",
        DENSE
        | {
            "model.d_model": 384,
            "model.nhead": 6,
            "model.num_layers": 6,
            "model.dim_feedforward": 1536,
        },
    ),
    "dense, 51 M": (
        "configs/tiny.yaml",
        DENSE
        | {
            "model.d_model": 640,
            "model.nhead": 10,
            "model.num_layers": 10,
            "model.dim_feedforward": 2560,
        },
    ),
}
"""Network -> the configuration it changes, and how."""

COMPARED = 3
"""First steps whose losses are compared."""


class PlainLoop:
    """Training as a user of torch alone writes it, on this rank's part of a run's samples."""

    def __init__(self, plan: Plan, rank: int, world: int) -> None:
        self.settings = settings = plan.configuration.settings
        self.dataset, self.rank, self.world = plan.dataset, rank, world
        self.network = TimeSeriesTransformer(settings.model, plan.dataset.shape)
        initialise(self.network, settings.train.seed)
        self.accumulation = settings.train.accumulation(world)
        for mixture in self.network.mixtures().values():
            mixture.attached_scale = 1.0 / self.accumulation
        self.model: nn.Module = self.network
        if world > 1:
            self.model = DistributedDataParallel(self.network)
        parameters = list(self.network.parameters())
        matrices = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        rate, decay = settings.train.learning_rate, settings.train.weight_decay
        self.optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=True)
        self.parameters = parameters

    def step(self, step: int) -> float:
        """Make a step; return its mean loss over this rank's samples."""
        train = self.settings.train
        size, total = train.micro_batch_size, 0.0
        begin = (step - 1) * train.global_batch_size + self.rank * size
        for number in range(self.accumulation):
            first = begin + number * size * self.world
            samples = self.dataset.draw(train.seed, first, first + size)
            batch = self.dataset.batch(Split.TRAIN, samples)
            context, covariates, target = (
                torch.from_numpy(a) for a in (batch.context, batch.covariates, batch.target)
            )
            outputs = self.model(self.network.inputs(context, covariates, target))
            loss = self.network.loss(outputs, (target, context)) / self.accumulation
            loss.backward()
            total += float(loss)
        for mixture in self.network.mixtures().values():
            mixture.take_statistics()
        nn.utils.clip_grad_norm_(self.parameters, train.gradient_clipping, foreach=True)
        # From the same rate as the run: its schedule is not the loop's business.
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total


class Alternating:
    """Makes a step of the plain loop before each step of the run, and times both."""

    def __init__(self, plan: Plan, rank: int, world: int) -> None:
        self.make: Callable[[], PlainLoop] = lambda: PlainLoop(plan, rank, world)
        self.loop: PlainLoop | None = None
        self.plain: list[float] = []
        self.ours: list[float] = []
        self.losses: list[float] = []
        self.left = 0.0

    def __call__(self, step: int) -> None:
        """Take the place of Hooks.on_step."""
        came = time.perf_counter()
        if self.loop is None:
            self.loop = self.make()
        else:
            self.ours.append(came - self.left)
        began = time.perf_counter()
        self.losses.append(self.loop.step(step))
        self.left = time.perf_counter()
        self.plain.append(self.left - began)


def rank_main(rank: int, world: int, port: int, name: str, steps: int, folder: Path) -> None:
    """Run the benchmark as one rank, which leaves its times in a file."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    file, changes = NETWORKS[name]
    fixed = {
        "train.steps": steps,
        "train.warmup_steps": 0,
        "checkpoint.every": 10**6,
        "data.split": [0.9, 0.1, 0.0],
    }
    plan = prepare(load(ROOT / file, changes | fixed), run_dir=folder / "run", world=world)
    alternating = Alternating(plan, rank, world)
    with redirect_stdout(sys.stderr):
        train(plan, rank, rank, hooks=Hooks(on_step=alternating))
    if rank == 0:
        rows = read_metrics(folder / "run" / "metrics.jsonl")
        assert alternating.loop is not None
        result = {
            "parameters": sum(p.numel() for p in alternating.loop.parameters),
            "accumulation": alternating.loop.accumulation,
            "plain": statistics.median(alternating.plain[2:-1]),
            "ours": statistics.median(alternating.ours[2:]),
            "losses": [alternating.losses[:COMPARED], [row["loss"] for row in rows[:COMPARED]]],
        }
        (folder / "result.json").write_text(json.dumps(result))
    dist.barrier()
    os._exit(0)  # DeepSpeed's own end takes long


def measured(name: str, world: int, steps: int) -> dict[str, Any]:
    """Return what the ranks of one run found."""
    folder = Path(tempfile.mkdtemp(dir=os.environ.get("TMPDIR")))
    try:
        arguments: Any = (world, free_port(), name, steps, folder)
        torch.multiprocessing.spawn(rank_main, arguments, nprocs=world)
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    finally:
        shutil.rmtree(folder)
    return result


def main() -> None:
    """Measure each network on one rank and on two."""
    rounds, quick = arguments_of(__doc__, rounds=20)
    print_header("The engine beside a plain loop")
    rows = []
    for name in ["demo, experts"] if quick else NETWORKS:
        for world in (1, 2):
            found = measured(name, world, rounds + 3)
            rows.append(
                [
                    name,
                    f"{found['parameters'] / 1e6:.1f} M",
                    str(world),
                    str(found["accumulation"]),
                    f"{1e3 * found['plain']:.1f}",
                    f"{1e3 * found['ours']:.1f}",
                    f"x{found['ours'] / found['plain']:.3f}",
                ]
            )
            print(name, world, found["losses"], file=sys.stderr)
    head = ["network", "parameters", "ranks", "accumulation", "plain loop, ms", "ours, ms", "ratio"]
    print_table(head, rows)


if __name__ == "__main__":
    main()
