"""What a rank's device held when it had no more room, and which setting would have fitted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.errors import DeviceMemoryError
from parallel.mesh import Mesh
from trainer.config.settings import Settings
from trainer.logs.utilisation import GIB

UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": GIB, "TiB": 2**40}

ROOM = 0.95
"""Share of a device's memory that a setting may fill and still be advised: some is lost in gaps."""


@dataclass(frozen=True)
class Held:
    """Bytes on a device by kind, at the most in the step that failed."""

    weights: int
    gradients: int
    optimizer: int
    rest: int
    """Activations above all, and buffers."""
    total: int
    """What the device has."""

    @property
    def fixed(self) -> int:
        """What does not depend on the micro-batch."""
        return self.weights + self.gradients + self.optimizer


def held_on(
    device: torch.device, parameters: Sequence[Tensor], states: Sequence[Tensor]
) -> Held | None:
    """Return what a CUDA device held for a network and its optimizer; None for another device."""
    if device.type != "cuda":
        return None
    weights = _bytes_on(device, parameters)
    gradients = _bytes_on(device, (p.grad for p in parameters if p.grad is not None))
    optimizer = _bytes_on(device, states)
    rest = max(0, torch.cuda.max_memory_allocated(device) - weights - gradients - optimizer)
    return Held(weights, gradients, optimizer, rest, torch.cuda.mem_get_info(device)[1])


def _bytes_on(device: torch.device, tensors: Iterable[Tensor]) -> int:
    storages = (t.untyped_storage() for t in tensors if t.device.type == device.type)
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return sum(sizes.values())


def explained(
    error: torch.OutOfMemoryError, step: int, mesh: Mesh, settings: Settings, held: Held | None
) -> DeviceMemoryError:
    """Return the error that says what was asked for, what was held, and the way out."""
    where = f"step {step}: {mesh.device} of rank {mesh.rank}"
    found = re.search(r"allocate ([\d.]+) (bytes|[KMGT]iB)", str(error))
    asked = int(float(found[1]) * UNITS[found[2]]) if found else 0
    more = f" for {found[1]} {found[2]} more" if found else ""
    kinds = "" if held is None else f": of {held.total / GIB:.1f} GiB {_kinds(held)} were held"
    advice = _advice(settings, held, asked)
    return DeviceMemoryError(f"{where} has no room{more}{kinds}; {advice}")


def _kinds(held: Held) -> str:
    kinds = {
        "weights": held.weights,
        "gradients": held.gradients,
        "optimizer": held.optimizer,
        "activations and the rest": held.rest,
    }
    return ", ".join(f"{name} {size / GIB:.1f}" for name, size in kinds.items())


def _advice(settings: Settings, held: Held | None, asked: int) -> str:
    """Return the mildest setting that would have fitted; results stay as they are with each."""
    parallel, size = settings.parallel, settings.train.micro_batch_size
    smaller = [n for n in range(size - 1, 0, -1) if size % n == 0]
    if held is not None:
        smaller = [
            n for n in smaller if held.fixed + (held.rest + asked) * n / size <= ROOM * held.total
        ]
    if smaller:
        return (
            f"train.micro_batch_size={smaller[0]} instead of {size} should fit, with equal results"
        )
    if held is None or held.rest > held.fixed / 4:
        levels = {"none": "selective", "selective": "block"}
        if parallel.activation_checkpointing in levels:
            level = levels[parallel.activation_checkpointing]
            return f"set parallel.activation_checkpointing={level}, which keeps less of each layer"
    if parallel.pipeline == 1 and parallel.zero_stage < 3:
        return (
            f"set parallel.zero_stage={parallel.zero_stage + 1}, or divide the model with "
            "parallel.tensor or parallel.pipeline"
        )
    return "divide the model further with parallel.tensor or parallel.pipeline"
