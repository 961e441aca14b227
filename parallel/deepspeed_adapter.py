"""How DeepSpeed is imported, and what it must know of a parallelized network.

Its ZeRO optimizers read marks on parameters: those that are sharded over tensor ranks count on each
of them in the gradient norm, where a replicated one counts once; those of experts are reduced over
the ranks that hold the same experts alone.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from parallel.groups import Groups
from parallel.layout import Layout
from parallel.mesh import Mesh
from parallel.sharding import is_expert, is_sharded


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed, without what costs each rank a second at its start and is not used here."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    # DeepSpeed calls collectives by names that torch has renamed.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    import deepspeed
    from deepspeed.runtime import compiler

    # Without its own native code for the CPU; to find out what could be built it runs a compiler.
    deepspeed.ops.__compatible_ops__ = {}
    # Its ZeRO imports its Muon, whose functions are compiled: that loads torch's compiler.
    compile_, compiler.compile = compiler.compile, lambda: compiler.dummy_decorator
    import deepspeed.runtime.zero.muon.original_muon

    compiler.compile = compile_
    # Its engine would load the compiler on CUDA, to list passes that are not used here.
    deepspeed.runtime.engine.is_deepcompile_supported = lambda: False
    logging.getLogger("DeepSpeed").setLevel(os.environ.get("FORESCALE_DEEPSPEED_LOG", "ERROR"))
    return deepspeed


@contextmanager
def own_device(device: torch.device) -> Iterator[None]:
    """Within, DeepSpeed's engines take `device`, whose index they read off LOCAL_RANK.

    A rank may see its own GPU alone, as number 0, or share one with other ranks.
    """
    if device.type != "cuda":
        yield
        return
    names = [name for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK") if name in os.environ]
    before = {name: os.environ[name] for name in names}
    os.environ.update(dict.fromkeys(["LOCAL_RANK", *names], str(device.index)))
    try:
        yield
    finally:
        os.environ.pop("LOCAL_RANK")
        os.environ.update(before)


def mark_parameters(prefix: str, module: nn.Module, layout: Layout) -> None:
    """Set the marks that DeepSpeed reads on a module's own parameters; `prefix` is its name."""
    for leaf, parameter in module.named_parameters(recurse=False):
        name = f"{prefix}.{leaf}"
        if is_sharded(name, layout):
            parameter.model_parallel = True  # type: ignore[attr-defined]
            parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
        if layout.expert > 1 and is_expert(name):
            parameter.allreduce = False  # type: ignore[attr-defined]
            parameter.group_name = expert_group_name(layout)  # type: ignore[attr-defined]


class Partitioner:
    """ZeRO 3: leaves a rank its partition of a module's parameters as soon as they are drawn.

    So no rank ever holds more than one module's parameters whole.
    """

    def __init__(
        self, config: Mapping[str, Any], dtype: torch.dtype, unit: ModelParallelUnit | None
    ) -> None:
        self._config, self._dtype, self._unit = dict(config), dtype, unit
        self._convert: Callable[..., None] | None = None

    def __call__(self, module: nn.Module) -> None:
        """Partition the module's own parameters, in place: a collective."""
        own = list(module.parameters(recurse=False))
        for parameter in own:
            parameter.data = parameter.data.to(self._dtype)
        if not own:
            return
        if self._convert is not None:
            self._convert(param_list=own)
            return
        from deepspeed.runtime.zero.partition_parameters import Init

        holder = nn.ParameterList(own)
        group = None if self._unit is None else self._unit.get_data_parallel_group()
        options = {"config_dict_or_path": self._config, "mpu": self._unit, "dtype": self._dtype}
        Init(module=holder, data_parallel_group=group, **options)
        self._convert = own[0].convert_to_zero_parameters  # type: ignore[attr-defined]


def expert_group_name(layout: Layout) -> str:
    """Return DeepSpeed's name of the process group of experts."""
    return f"ep_size_{layout.expert}"


def announce_experts(layout: Layout, experts: int) -> nn.Module:
    """Return a module without parameters, for which DeepSpeed makes its groups of experts."""
    from deepspeed.moe.layer import MoE

    class Announcement(MoE):  # type: ignore[misc]
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.ep_size, self.num_experts = layout.expert, experts
            self.num_local_experts = experts // layout.expert
            self.expert_group_name = expert_group_name(layout)
            self.enable_expert_tensor_parallelism = self.use_residual = False
            self.deepspeed_moe = _NoLayer()

    return Announcement()


class _NoLayer(nn.Module):
    """Stands where DeepSpeed's own mixture-of-experts layer would be."""

    def _set_ep_group(self, group: dist.ProcessGroup) -> None:
        """Ignore the group: `parallel.groups` has made it already."""


class ModelParallelUnit:
    """The tensor and data groups under DeepSpeed's names, where no pipeline's grid has them."""

    def __init__(self, mesh: Mesh, groups: Groups) -> None:
        self._mesh, self._groups = mesh, groups

    def get_model_parallel_rank(self) -> int:
        return self._mesh.coordinates.tensor

    def get_model_parallel_world_size(self) -> int:
        return self._mesh.layout.tensor

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self._groups.tensor

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group

    def get_data_parallel_rank(self) -> int:
        return self._mesh.coordinates.data

    def get_data_parallel_world_size(self) -> int:
        return self._mesh.layout.data

    def get_data_parallel_group(self) -> Any:
        return self._groups.data
