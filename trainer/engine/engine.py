"""The adapter to DeepSpeed: one face for all layouts.

Everything that knows DeepSpeed's engines is here, in `zero_state`, and in
`parallel.pipeline` and `parallel.deepspeed_view`.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.config import SeriesShape
from model.network import Inputs, TimeSeriesTransformer
from model.router import RouterStatistics
from parallel.deepspeed_adapter import ModelParallelUnit, announce_experts
from parallel.groups import Mesh, make_groups, sum_over_ranks
from parallel.parallelize import spread
from parallel.pipeline_parallel import pipeline_module, tied_modules
from parallel.rendezvous import agree
from parallel.sharding import is_sharded
from trainer.checkpoint.partitions import bare, elements
from trainer.config.settings import Settings
from trainer.data.dataset import WindowBatch
from trainer.engine import routing, zero_state
from trainer.engine.optimizer import learning_rate, make_optimizer
from trainer.engine.routing import LayerRouting
from trainer.faults.stragglers import AttentionClock

MicroBatch = tuple[Inputs, tuple[Tensor, Tensor]]
"""The network's inputs, and labels: target and context."""


CHUNK = 32
"""Micro-batches that `predict` takes through the network at once."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, equal on all ranks but for the last number."""

    loss: float
    """Mean over the global batch."""
    aux_loss: float
    """Weighted auxiliary losses, summed over layers, mean over the global batch."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    applied: bool
    """Whether the weights have taken the step: not where the norm is no number or too large."""
    routing: dict[str, LayerRouting]
    """Of each mixture-of-experts layer, by its global name."""
    attention_seconds: float
    """Of this rank alone: how long its attention computed forward."""


class Engine:
    """Trains and runs one stage of a network on one rank."""

    def __init__(self, settings: Settings, shape: SeriesShape, mesh: Mesh) -> None:
        deepspeed = _import_deepspeed(mesh.device)
        self.settings, self.mesh = settings, mesh
        layout, train = mesh.layout, settings.train
        self.accumulation = train.global_batch_size // (train.micro_batch_size * layout.data)
        with torch.device("meta"):
            self.network = TimeSeriesTransformer(settings.model, shape)
        self.tokens_per_sample = self.network.tokens_per_sample
        self.shapes = zero_state.shapes(self.network)
        """Of all tensors that the ranks' states hold between them."""
        self._mixtures = list(self.network.mixtures())
        self.network.recompute = settings.parallel.activation_checkpointing
        self._clock = AttentionClock(self.network, mesh.device)
        self._groups = make_groups(mesh)
        self._spread = spread(self.network, mesh, self._groups, train.seed)
        for mixture in self.network.mixtures().values():
            mixture.loss_scale = 1.0 / self.accumulation
        self._optimizer = make_optimizer(self.network, train, layout)
        self._agree()
        self._engine, *_ = deepspeed.initialize(
            model=self._module(), optimizer=self._optimizer, config=self._config(), mpu=self._unit()
        )
        self._optimizer.norm = lambda: float(self._engine.optimizer._global_grad_norm)

    def _agree(self) -> None:
        """DeepSpeed's collectives are started group by group and parameter by parameter: ranks
        that have others would wait for ever."""
        stage = self.mesh.coordinates.pipeline * self.mesh.layout.stage
        agree(self.mesh, {"parameter groups": [g["name"] for g in self._optimizer.param_groups]})
        shapes = {name: str(shard.whole) for name, shard in self._spread.shards.items()}
        mates = list(range(stage, stage + self.mesh.layout.stage))
        agree(self.mesh, {"parameters": len(shapes), **shapes}, mates)

    def _module(self) -> nn.Module:
        """What DeepSpeed runs: the whole network, or this rank's stage."""
        layout = self.mesh.layout
        module: nn.Module = self.network
        if layout.pipeline > 1:
            module = pipeline_module(
                self._spread.stages, self._spread.stage, self.mesh, self.network.loss
            )
        if layout.expert > 1:
            module.add_module(
                "experts_announced", announce_experts(layout, self.settings.model.num_experts)
            )
        return module

    def _unit(self) -> ModelParallelUnit | None:
        layout = self.mesh.layout
        if layout.pipeline > 1 or layout.tensor == 1:
            return None
        return ModelParallelUnit(self.mesh, self._groups)

    def _config(self) -> dict[str, Any]:
        train, parallel = self.settings.train, self.settings.parallel
        own: dict[str, Any] = {
            "train_batch_size": train.global_batch_size,
            "train_micro_batch_size_per_gpu": train.micro_batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": train.gradient_clipping,
            "steps_per_print": sys.maxsize,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": parallel.zero_stage},
            # One tensor travels whole: DeepSpeed's partitioned way asserts on the mask beside it.
            "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
        }
        if train.precision == "bf16":
            own["bf16"] = {"enabled": True}
            own["data_types"] = {"grad_accum_dtype": "fp32"}
            own["communication_data_type"] = "fp32"  # of gradients
        if parallel.offload_optimizer == "cpu":
            own["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
            own["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW needs no build
        return _merged(own, self.settings.deepspeed)

    # Training

    def train_step(
        self, step: int, batches: Iterable[WindowBatch], limit: float = math.inf
    ) -> StepResult:
        """Optimizer step number `step`, from 1, over this replica's micro-batches of it. The
        weights stay as they are where the gradient's norm is above `limit` or no number."""
        self._optimizer.limit = limit
        rate = learning_rate(self.settings.train, step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._seed(step)
        micro_batches = (self._micro_batch(batch) for batch in batches)
        loss = (
            self._pipeline_step(micro_batches)
            if self.mesh.layout.pipeline > 1
            else self._plain_step(micro_batches)
        )
        norm = float(self._engine.get_global_grad_norm())
        applied = norm <= limit and math.isfinite(norm)
        statistics = self._route(rebalance=applied)
        rows = self.settings.train.global_batch_size * self.network.rows_per_sample
        return StepResult(
            loss,
            routing.auxiliary_loss(statistics, rows),
            norm,
            rate,
            applied,
            routing.describe(statistics),
            self._clock.take(),
        )

    def _pipeline_step(self, micro_batches: Iterator[MicroBatch]) -> float:
        return float(self._engine.train_batch(micro_batches))

    def _plain_step(self, micro_batches: Iterator[MicroBatch]) -> float:
        self._engine.train()
        total = torch.zeros((), dtype=torch.float64, device=self.mesh.device)
        for inputs, labels in micro_batches:
            loss = self.network.loss(self._engine(inputs), labels)
            self._engine.backward(loss)
            self._engine.step()
            total += loss.detach()
        layout = self.mesh.layout
        mean = sum_over_ranks(self.mesh, total) / (self.accumulation * layout.data * layout.tensor)
        return float(mean)

    def _seed(self, step: int) -> None:
        """Dropout depends on (seed, step, stage, data rank): there is no state to restore."""
        here = self.mesh.coordinates
        text = f"{self.settings.train.seed}/{step}/{here.pipeline}/{here.data}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest, "little") >> 1)

    def _route(self, *, rebalance: bool) -> dict[str, RouterStatistics]:
        """The step's statistics of all routers, after which biases take their step."""
        if not self._mixtures:
            return {}
        local = self.network.mixtures()
        experts = self.settings.model.num_experts
        statistics = routing.take_statistics(local, self._mixtures, experts, self.mesh)
        if rebalance:
            routing.rebalance(local, statistics)
        return statistics

    # Forecasting

    @torch.no_grad()
    def predict(self, batches: Iterable[WindowBatch]) -> Iterator[tuple[WindowBatch, Tensor]]:
        """Batches with their forecasts [B, H, C], in standardised units and on the CPU, where
        `mesh.sees_output`; nothing elsewhere.

        All replicas must bring equally many batches, each of the training micro-batch's shape.
        """
        self._engine.eval()
        batches = iter(batches)
        while chunk := list(islice(batches, CHUNK)):
            for batch, forecast in zip(chunk, self._forecasts(chunk), strict=False):
                yield batch, forecast.cpu()

    def _forecasts(self, chunk: Sequence[WindowBatch]) -> list[Tensor]:
        """As many passes as the architecture takes; each fills in a patch of the future."""
        network, passes = self.network, self.network.passes
        device = self.mesh.device
        future = [torch.full(batch.target.shape, math.nan, device=device) for batch in chunk]
        forecasts: list[Tensor] = []
        for number in range(passes):
            micro_batches = [self._micro_batch(*pair) for pair in zip(chunk, future, strict=True)]
            outputs = self._outputs(micro_batches)
            forecasts = [
                network.forecast(output, labels[1])
                for output, (_, labels) in zip(outputs, micro_batches, strict=False)
            ]
            if number + 1 < passes:
                told = self._tell(forecasts, torch.stack(future))
                future = [
                    network.with_patch(known, forecast, number)
                    for known, forecast in zip(future, told, strict=True)
                ]
        return forecasts

    def _tell(self, forecasts: list[Tensor], like: Tensor) -> Tensor:
        """The forecasts of this replica's last stage, on all of its ranks."""
        told = torch.stack(forecasts) if self.mesh.sees_output else torch.zeros_like(like)
        dist.all_reduce(told, group=self._groups.replica)
        return told

    def _outputs(self, micro_batches: Sequence[MicroBatch]) -> list[Tensor]:
        """The network's outputs; [] on a rank that does not see them."""
        if self.mesh.layout.pipeline == 1:
            return [self._engine(inputs) for inputs, _ in micro_batches]
        self._engine.total_loss = None  # the last step's: eval_batch adds outputs to it
        outputs = self._engine.eval_batch(
            iter(micro_batches),
            compute_loss=False,
            reduce_output=None,
            bcast_loss=False,
            num_micro_batches=len(micro_batches),
        )
        return outputs if outputs is not None else []

    def _micro_batch(self, batch: WindowBatch, future: Tensor | None = None) -> MicroBatch:
        """`future`: what is known of it; in training all, which a decoder may look back at."""
        context, covariates, target = (
            torch.from_numpy(array).to(self.mesh.device)
            for array in (batch.context, batch.covariates, batch.target)
        )
        inputs = self.network.inputs(context, covariates, target if future is None else future)
        return inputs, (target, context)

    # State

    def state(self) -> dict[str, Tensor]:
        """What this rank writes of weights, moments and buffers, by `kind/global.name`.

        What several ranks hold alike is written by one of them.
        """
        layout, here = self.mesh.layout, self.mesh.coordinates
        copies = self._held_by_an_earlier_stage()
        written = {
            name: partition
            for name, partition in self._partitions().items()
            if here.tensor == 0 or is_sharded(bare(name), layout)
        }
        if here.data == 0 and here.tensor == 0:
            written |= self._buffers()
        return {k: v for k, v in written.items() if bare(k) not in copies}

    def begin_load(self, steps_applied: int) -> dict[str, Tensor]:
        """Tensors for a checkpoint's contents; `end_load` puts them in force."""
        zero_state.allocate(self._engine.optimizer, steps_applied)
        self._check_coverage()
        return {**self._partitions(), **self._buffers()}

    def _check_coverage(self) -> None:
        """What is not held by any rank would keep its first value, silently."""
        state = self.state()
        held = [elements(state[name]) if name in state else 0 for name in self.shapes]
        counts = sum_over_ranks(self.mesh, torch.tensor(held, dtype=torch.float64)).tolist()
        for (name, shape), count in zip(self.shapes.items(), counts, strict=True):
            if count != math.prod(shape):
                raise RuntimeError(f"{name} of {shape}: {count:.0f} elements are held by the ranks")

    def _partitions(self) -> dict[str, Tensor]:
        return dict(
            zero_state.partitions(
                self.network,
                self._engine.optimizer,
                self._spread.shards,
                self.mesh.coordinates.data,
            )
        )

    def _buffers(self) -> dict[str, Tensor]:
        return {f"buffers/{name}": buffer for name, buffer in self.network.named_buffers()}

    def _held_by_an_earlier_stage(self) -> set[str]:
        here = self.mesh.coordinates.pipeline
        tied = [
            name for name, stages in tied_modules(self._spread.stages).items() if here in stages[1:]
        ]
        own = [*self._spread.shards, *dict(self.network.named_buffers())]
        return {name for name in own if name.startswith(tuple(f"{t}." for t in tied))}

    def end_load(self) -> None:
        zero_state.refresh_weights(self._engine.optimizer)


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, quiet and without its builds of native code for the CPU."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    # DeepSpeed calls collectives by names that torch has renamed.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(os.environ.get("FORESCALE_DEEPSPEED_LOG", "ERROR"))
    deepspeed.init_distributed(
        dist_backend=dist.get_backend(),
        auto_mpi_discovery=False,
        verbose=False,
    )
    return deepspeed


def _merged(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`base` with `extra` laid over it, section by section."""
    result = dict(base)
    for key, value in extra.items():
        below = result.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        result[key] = _merged(cast(dict[str, Any], below), value) if both else value
    return result
