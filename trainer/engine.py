"""The adapter to DeepSpeed: one face for all layouts.

Everything that knows DeepSpeed's engines is here, in `optimizer_state` and in
`parallel.pipeline`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor

from model.config import SeriesShape
from model.network import TimeSeriesTransformer
from parallel.groups import Place, sum_over_ranks
from parallel.pipeline import build_stage, pipeline_module
from trainer import optimizer_state
from trainer.checkpoint.fragments import Fragment
from trainer.config.settings import Settings
from trainer.data.dataset import WindowBatch
from trainer.optimizer import learning_rate, make_optimizer

MicroBatch = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
"""The network's inputs (context, covariates) and labels (target, context)."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, equal on all ranks."""

    loss: float
    """Mean over the global batch."""
    aux_loss: float
    """Weighted balance losses, summed over layers, mean over the global batch."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float


class Engine:
    """Trains and runs one stage of a network on one rank."""

    def __init__(self, settings: Settings, shape: SeriesShape, place: Place) -> None:
        deepspeed = _import_deepspeed(place.device)
        self.settings, self.place = settings, place
        layout, here = place.layout, place.coordinates
        train = settings.train
        self.accumulation = train.global_batch_size // (train.micro_batch_size * layout.data)
        with torch.device("meta"):
            self.network = TimeSeriesTransformer(settings.model, shape)
        self.tokens_per_sample = self.network.tokens_per_sample
        self._mixtures = list(self.network.mixtures())
        self.network.checkpoint_blocks = settings.parallel.activation_checkpointing == "block"
        stage = build_stage(self.network, layout, here.pipeline, train.seed, str(place.device))
        for mixture in self.network.mixtures().values():
            mixture.loss_scale = 1.0 / self.accumulation
        self._optimizer = make_optimizer(self.network, train)
        module = (
            pipeline_module(stage, here.pipeline, layout, self.network.loss)
            if layout.pipeline > 1
            else self.network
        )
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=self._optimizer, config=self._config()
        )

    def _config(self) -> dict[str, Any]:
        train = self.settings.train
        own: dict[str, Any] = {
            "train_batch_size": train.global_batch_size,
            "train_micro_batch_size_per_gpu": train.micro_batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": train.gradient_clipping,
            "steps_per_print": sys.maxsize,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": self.settings.parallel.zero_stage},
            # One tensor travels whole: DeepSpeed's partitioned way asserts on the mask beside it.
            "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
        }
        if train.precision == "bf16":
            own["bf16"] = {"enabled": True}
            own["data_types"] = {"grad_accum_dtype": "fp32"}
        return _merged(own, self.settings.deepspeed)

    # Training

    def train_step(self, step: int, batches: Iterable[WindowBatch]) -> StepResult:
        """Optimizer step number `step`, from 1, over this replica's micro-batches of it."""
        rate = learning_rate(self.settings.train, step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._seed(step)
        micro_batches = (self._micro_batch(batch) for batch in batches)
        loss = (
            self._pipeline_step(micro_batches)
            if self.place.layout.pipeline > 1
            else self._plain_step(micro_batches)
        )
        return StepResult(loss, self._aux_loss(), float(self._engine.get_global_grad_norm()), rate)

    def _pipeline_step(self, micro_batches: Iterator[MicroBatch]) -> float:
        return float(self._engine.train_batch(micro_batches))

    def _plain_step(self, micro_batches: Iterator[MicroBatch]) -> float:
        self._engine.train()
        total = torch.zeros((), dtype=torch.float64, device=self.place.device)
        for inputs, labels in micro_batches:
            loss = self.network.loss(self._engine(inputs), labels)
            self._engine.backward(loss)
            self._engine.step()
            total += loss.detach()
        layout = self.place.layout
        mean = sum_over_ranks(self.place, total) / (self.accumulation * layout.data * layout.tensor)
        return float(mean)

    def _seed(self, step: int) -> None:
        """Dropout depends on (seed, step, stage, data rank): there is no state to restore."""
        here = self.place.coordinates
        text = f"{self.settings.train.seed}/{step}/{here.pipeline}/{here.data}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest, "little") >> 1)

    def _aux_loss(self) -> float:
        if not self._mixtures:
            return 0.0
        local = self.network.mixtures()
        sums = torch.zeros(len(self._mixtures), 2, dtype=torch.float64)
        for index, name in enumerate(self._mixtures):
            statistics = local[name].take_statistics() if name in local else None
            if statistics is not None:
                sums[index] = torch.cat([statistics.balance, statistics.rows]).cpu()
        totals = sum_over_ranks(self.place, sums)
        return float((totals[:, 0] / totals[:, 1]).sum())

    # Forecasting

    @torch.no_grad()
    def predict(self, batches: Iterable[WindowBatch]) -> Iterator[tuple[WindowBatch, Tensor]]:
        """Batches with their forecasts [B, H, C], in standardised units and on the CPU, where
        `place.sees_output`; nothing elsewhere.

        All replicas must bring equally many batches, each of the training micro-batch's shape.
        """
        self._engine.eval()
        batches = iter(batches)
        while chunk := list(islice(batches, 32)):
            micro_batches = [self._micro_batch(batch) for batch in chunk]
            outputs = self._outputs(micro_batches)
            for batch, (_, labels), output in zip(chunk, micro_batches, outputs, strict=False):
                yield batch, self.network.forecast(output, labels[1]).cpu()

    def _outputs(self, micro_batches: Sequence[MicroBatch]) -> list[Tensor]:
        """The network's outputs; [] on a rank that does not see them."""
        if self.place.layout.pipeline == 1:
            return [self._engine(inputs) for inputs, _ in micro_batches]
        self._engine.total_loss = None  # the last step's: eval_batch adds outputs to it
        outputs = self._engine.eval_batch(
            iter(micro_batches), compute_loss=False, reduce_output=None, bcast_loss=False,
            num_micro_batches=len(micro_batches),
        )  # fmt: skip
        return outputs if outputs is not None else []

    def _micro_batch(self, batch: WindowBatch) -> MicroBatch:
        context, target, covariates = (
            torch.from_numpy(array).to(self.place.device)
            for array in (batch.context, batch.target, batch.covariates)
        )
        return (context, covariates), (target, context)

    # State

    def fragments(self) -> dict[str, Fragment]:
        """What this rank holds of weights and moments, by `kind/global.name`."""
        return optimizer_state.fragments(self.network, self._engine.optimizer)

    def begin_load(self, steps_done: int) -> dict[str, Fragment]:
        """Fragments for a checkpoint's contents; `end_load` puts them in force."""
        optimizer_state.allocate(self._engine.optimizer, steps_done)
        return self.fragments()

    def end_load(self) -> None:
        optimizer_state.refresh_weights(self._engine.optimizer)


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, quiet and without its builds of native code for the CPU."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(os.environ.get("FORESCALE_DEEPSPEED_LOG", "ERROR"))
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo",
        auto_mpi_discovery=False, verbose=False,
    )  # fmt: skip
    return deepspeed


def _merged(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`base` with `extra` laid over it, section by section."""
    result = dict(base)
    for key, value in extra.items():
        below = result.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        result[key] = _merged(cast(dict[str, Any], below), value) if both else value
    return result
