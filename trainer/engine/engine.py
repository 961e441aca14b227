"""The adapter to DeepSpeed: one interface for all layouts.

What knows DeepSpeed's engines is here, in `zero_state`, and in `parallel`'s `parallelize`,
`pipeline_parallel`, `flat_gradients` and `deepspeed_adapter`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor

from model import rollout
from model.init import seed_of
from model.network import TimeSeriesTransformer
from model.network_config import SeriesShape
from model.router import RouterStatistics
from model.tokens import Inputs
from parallel.collectives import sum_over_ranks
from parallel.consistency import agree
from parallel.deepspeed_adapter import import_deepspeed, own_device
from parallel.flat_gradients import FlatGradients
from parallel.gloo import use_broadcasts
from parallel.mesh import Mesh
from parallel.parallelize import parallelize
from parallel.sharding import is_sharded
from trainer.checkpoint.keys import buffers_of, global_name
from trainer.checkpoint.partitions import Partition, local_numel
from trainer.config.deepspeed_config import deepspeed_config, keeps_flat_gradients
from trainer.config.settings import Settings
from trainer.data.windows import WindowBatch
from trainer.engine import frozen, routing, zero_state
from trainer.engine.optimizer import make_optimizer
from trainer.engine.routing import LayerRouting
from trainer.engine.schedule import learning_rate
from trainer.engine.work import Works

MicroBatch = tuple[Inputs, tuple[Tensor, Tensor]]
"""The network's inputs, and its labels: target and context."""

CHUNK = 32
"""Micro-batches that `predict` takes through the network at once."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, equal on all ranks."""

    loss: float
    """Mean over the global batch."""
    aux_loss: float
    """Weighted auxiliary losses, summed over layers, mean over the global batch."""
    grad_norm: float
    """Norm of the global gradient before clipping."""
    learning_rate: float
    applied: bool
    """Whether the weights were updated: not where the norm is no number or too large."""
    routing: dict[str, LayerRouting]
    """Mixture-of-experts layer, by its global name -> its routing."""


class Engine:
    """Trains and runs one stage of a network on one rank.

    `instrument` is called with the whole network, on the meta device, before it is parallelized.
    """

    def __init__(
        self,
        settings: Settings,
        shape: SeriesShape,
        mesh: Mesh,
        instrument: Callable[[TimeSeriesTransformer], None] | None = None,
    ) -> None:
        deepspeed = import_deepspeed(mesh.device)
        deepspeed.init_distributed(dist.get_backend(), auto_mpi_discovery=False, verbose=False)
        use_broadcasts()
        self.settings, self.mesh = settings, mesh
        layout, train = mesh.layout, settings.train
        self.accumulation = train.accumulation(layout.data)
        with torch.device("meta"):
            self.network = TimeSeriesTransformer(settings.model, shape)
        self.work = Works(settings, shape)
        self._longest = self._context_length = shape.context_length
        self.shapes = zero_state.shapes(self.network, averages=train.ema_decay > 0)
        """Shapes of all tensors that the ranks' states hold between them, by key."""
        self._mixtures = list(self.network.mixtures())
        self.network.recompute = settings.parallel.activation_checkpointing
        if instrument is not None:
            instrument(self.network)
        config = deepspeed_config(settings, self.accumulation)
        dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
        zero_3 = (config, dtype) if settings.parallel.zero_stage == 3 else None
        with own_device(mesh.device):
            self._parallel = parallelize(self.network, mesh, train.seed, zero_3)
        for mixture in self.network.mixtures().values():
            mixture.attached_scale = 1.0 / self.accumulation
        self._optimizer = make_optimizer(self.network, train, layout, self._parallel.shards)
        # DeepSpeed starts its collectives group by group: ranks that have others would wait.
        groups = [group["name"] for group in self._optimizer.param_groups]
        agree(mesh, {"parameter groups": groups})
        with own_device(mesh.device):
            self._engine, *_ = deepspeed.initialize(
                model=self._parallel.module,
                optimizer=self._optimizer,
                config=config,
                mpu=self._parallel.unit,
            )
        if keeps_flat_gradients(settings):
            FlatGradients(self._engine.optimizer)
        self._optimizer.norm = lambda: float(self._engine.optimizer._global_grad_norm)

    # Training

    def train_step(
        self,
        step: int,
        batches: Iterable[WindowBatch],
        limit: float = math.inf,
        *,
        context_length: int | None = None,
    ) -> StepResult:
        """Make optimizer step number `step`, from 1, over this replica's micro-batches of it.

        Their contexts have `context_length` points, by default the longest. The weights stay as
        they are where the gradient's norm is above `limit` or no number.
        """
        self._optimizer.limit = limit
        self._expect(context_length or self._longest)
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
        )

    def _expect(self, context_length: int) -> None:
        """Have the stages exchange tensors of contexts of this length."""
        if context_length != self._context_length and self.mesh.layout.pipeline > 1:
            self._engine.reset_activation_shape()
        self._context_length = context_length

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
        """Seed dropout by (seed, step, stage, data rank): there is no state to restore."""
        here = self.mesh.coordinates
        torch.manual_seed(seed_of(self.settings.train.seed, step, here.pipeline, here.data))

    def _route(self, *, rebalance: bool) -> dict[str, RouterStatistics]:
        """Return the step's statistics of all routers, and move the biases that balance."""
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
        """Yield batches with their forecasts, in standardised units and on the CPU.

        They are points and quantiles [B, H, C, 1 + levels].

        They come where `mesh.sees_output`, and nothing elsewhere. All replicas must bring equally
        many batches, each of the training micro-batch's shape.
        """
        self._engine.eval()
        self._expect(self._longest)
        batches = iter(batches)
        while chunk := list(islice(batches, CHUNK)):
            tensors = [self._tensors(batch) for batch in chunk]
            windows = [(context, covariates) for context, covariates, *_ in tensors]
            forecasts = rollout.forecast(self.network, windows, self._outputs, self._share)
            for batch, predicted in zip(chunk, forecasts, strict=False):
                yield batch, predicted.cpu()

    def _share(self, forecasts: list[Tensor], like: list[Tensor]) -> Sequence[Tensor]:
        """Bring the forecasts of this replica's last stage to all of its ranks."""
        shared = torch.stack(forecasts if self.mesh.sees_output else like)
        if not self.mesh.sees_output:
            shared = torch.zeros_like(shared)
        dist.all_reduce(shared, group=self._parallel.groups.replica)
        return shared.unbind(0)

    def _outputs(self, inputs: Sequence[Inputs]) -> list[Tensor]:
        """Return the network's outputs; none on a rank that does not see them."""
        if self.mesh.layout.pipeline == 1:
            return [self._engine(one) for one in inputs]
        self._engine.total_loss = None  # the last step's: eval_batch adds outputs to it
        outputs = self._engine.eval_batch(
            iter([(one, one[:1]) for one in inputs]),  # it wants labels, and does not use them
            compute_loss=False,
            reduce_output=None,
            bcast_loss=False,
            num_micro_batches=len(inputs),
        )
        return outputs if outputs is not None else []

    def _tensors(self, batch: WindowBatch) -> list[Tensor]:
        """Return context, covariates, target, and what is asked for, on this rank's device.

        The context has the past columns, too. What is asked for is left out where that is all.
        """
        arrays = [batch.variates, batch.covariates, batch.target]
        arrays += [] if batch.asked is None else [batch.asked]
        tensors = [torch.from_numpy(array) for array in arrays]
        if self.mesh.device.type != "cuda":
            return tensors
        # From pinned memory the host waits neither for the copy nor for what is computed before.
        return [t.pin_memory().to(self.mesh.device, non_blocking=True) for t in tensors]

    def pinned(self, batch: WindowBatch) -> WindowBatch:
        """Return the batch in pinned memory where there is a GPU; in any thread."""
        if self.mesh.device.type != "cuda":
            return batch
        given = {name: array for name, array in vars(batch).items() if array is not None}
        with torch.cuda.device(self.mesh.device):  # a new thread's is the first one
            return replace(
                batch, **{k: torch.from_numpy(a).pin_memory().numpy() for k, a in given.items()}
            )

    def _micro_batch(self, batch: WindowBatch) -> MicroBatch:
        """Return inputs and labels of training, where a decoder may look back at all the future."""
        context, covariates, target, *asked = self._tensors(batch)
        inputs = self.network.inputs(context, covariates, target, *asked)
        return inputs, (target, context)

    # State

    def memory(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tensors of this rank's network, and those of its optimizer."""
        moments = [one for state in self._optimizer.state.values() for one in state.values()]
        masters = [one for group in self._optimizer.param_groups for one in group["params"]]
        return list(self.network.parameters()), [*masters, *moments]

    def state(self) -> dict[str, Tensor]:
        """Return what this rank writes of weights, moments and buffers, by key.

        What several ranks hold alike is written by one of them.
        """
        layout, here = self.mesh.layout, self.mesh.coordinates
        written = {
            key: partition
            for key, partition in self._partitions().items()
            if here.tensor == 0 or is_sharded(global_name(key), layout)
        }
        is_partitioned = self.settings.parallel.zero_stage == 3
        written |= frozen.written(self._frozen(), self.mesh, is_partitioned=is_partitioned)
        if here.data == 0 and here.tensor == 0:
            written |= buffers_of(self.network)
        copied = tuple(f"{module}." for module in self._parallel.copies_on(here.pipeline))
        return {k: v for k, v in written.items() if not global_name(k).startswith(copied)}

    @contextmanager
    def loading(self, steps_applied: int) -> Iterator[dict[str, Tensor]]:
        """Yield tensors by key for a checkpoint's contents, which are in force afterwards.

        `steps_applied` counts the optimizer steps that have moved the weights so far.
        """
        zero_state.allocate(self._engine.optimizer, steps_applied)
        self._check_coverage()
        yield {**self._partitions(), **self._frozen(), **buffers_of(self.network)}
        if steps_applied == 0:
            zero_state.begin_average(self._engine.optimizer)
        zero_state.refresh_weights(self._engine.optimizer)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the network has the average of its weights, where one is kept. Collective."""
        if not self._optimizer.averages:
            yield
            return
        zero_state.swap_average(self._engine.optimizer)
        try:
            yield
        finally:
            zero_state.swap_average(self._engine.optimizer)

    def _check_coverage(self) -> None:
        """Raise RuntimeError for an element that no rank holds: it would keep its first value."""
        state = self.state()
        held = [local_numel(state[key]) if key in state else 0 for key in self.shapes]
        counts = sum_over_ranks(self.mesh, torch.tensor(held, dtype=torch.float64)).tolist()
        for (key, shape), count in zip(self.shapes.items(), counts, strict=True):
            if count != math.prod(shape):
                raise RuntimeError(f"{key} of {shape}: {count:.0f} elements are held by the ranks")

    def _frozen(self) -> dict[str, Partition]:
        return frozen.held(self.network, self._parallel.shards, self.mesh.coordinates.data)

    def _partitions(self) -> dict[str, Tensor]:
        """Return this rank's ZeRO partitions by key, as views."""
        return dict(
            zero_state.partitions(
                self.network,
                self._engine.optimizer,
                self._parallel.shards,
                self.mesh.coordinates.data,
            )
        )
