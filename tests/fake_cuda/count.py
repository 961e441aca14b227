"""Counts what one layer launches, and lists where a whole step waits for the device.

    python -m tests.fake_cuda.count LIBRARY < CASES > RESULTS

CASES and RESULTS are JSON. A network of two layers runs forward and backward in bf16 on fake
tensors. A launch is an operator that is no view, which is at least one kernel; each of
model.triton_kernels counts as one. Only shapes are real: no time, no NCCL, and experts get equally
many rows each.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fake_cuda.device import install

install(Path(sys.argv[1]))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.distributed._tools.fake_collectives  # noqa: E402
from torch import Tensor  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from model import constants, experts, feedforward, fused_attention, rotary  # noqa: E402
from model.network import TimeSeriesTransformer  # noqa: E402
from model.network_config import SeriesShape  # noqa: E402
from model.recompute import is_recomputing  # noqa: E402
from parallel.expert_parallel import apply_expert_parallel  # noqa: E402
from parallel.layout import Layout  # noqa: E402
from parallel.sharding import shard_of  # noqa: E402
from trainer.config.load import load  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent.parent
aten = torch.ops.aten

NO_LAUNCH = frozenset(
    {"_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "empty"}
    | {"empty_like", "empty_strided", "expand", "is_same_size", "lift_fresh", "narrow"}
    | {"new_empty", "new_empty_strided", "permute", "reshape", "select", "slice", "split"}
    | {"split_with_sizes", "squeeze", "t", "transpose", "unbind", "unflatten", "unfold"}
    | {"unsqueeze", "view"}
)
"""Operators that start no kernel."""

WAITS = frozenset(
    {"_local_scalar_dense", "_unique2", "bincount", "equal", "is_nonzero", "item"}
    | {"masked_select", "nonzero", "unique_dim"}
)
"""Operators whose result, or its size, the host waits for at all times."""


class Counting(TorchDispatchMode):
    """Counts launches by phase, and waits by place."""

    def __init__(self, rows: int) -> None:
        """Take the number of rows that all experts of this rank get."""
        super().__init__()
        self.rows, self.phase = rows, "forward"
        self.launches: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace not in ("aten", "c10d"):
            return func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        full = f"{name}.{func._overloadname}".removesuffix(".default")
        tensors = list(_tensors([*args, *kwargs.values()]))
        target = str(kwargs.get("device", tensors[0].device if tensors else "cpu"))
        on_device = any(t.is_cuda for t in tensors) or target.startswith("cuda")
        if on_device and name.rstrip("_") not in NO_LAUNCH:
            phase = self.phase
            if phase == "backward" and is_recomputing():
                phase = "again"
            self.launches[phase] += 1
            self.operators[f"{phase}: {full} at {place()}"] += 1
        if on_device and self._waits(name, full, args, kwargs, tensors, target):
            self.waits[place()] += 1
        return self._answer(full, args) if full in self._answers else func(*args, **kwargs)

    def _waits(
        self,
        name: str,
        full: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        target: str,
    ) -> bool:
        if full == "repeat_interleave.Tensor":  # the size of whose result may be known
            return kwargs.get("output_size") is None
        if name in WAITS:
            return True
        if name in ("index", "index_put", "index_put_"):  # a mask's size is that of the result
            return any(t is not None and t.dtype == torch.bool for t in args[1])
        if name in ("_to_copy", "copy_") and not kwargs.get("non_blocking"):
            return tensors[-1].device.type != target.partition(":")[0]
        return False

    _answers = ("_local_scalar_dense", "repeat_interleave.Tensor")

    def _answer(self, full: str, args: tuple[Any, ...]) -> Any:
        """Return what depends on data, as if experts got equally many rows."""
        if full == "_local_scalar_dense":
            return self.rows
        return torch.empty(self.rows, device="cuda", dtype=torch.int64)


def _tensors(values: Any) -> Any:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def place() -> str:
    """Return file and function of the innermost line of the project that runs."""
    for frame in reversed(traceback.extract_stack(limit=80)):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "tests"):
            relative = path.relative_to(ROOT)
            if ".venv" not in relative.parts and relative.name != "recompute.py":
                return f"{relative} {frame.name}"
    return "torch"


class OneLaunchEach:
    """Stands for model.triton_kernels: shapes as theirs, and one launch each."""

    @staticmethod
    def rotate(x: Tensor, *_: Any) -> Tensor:
        return x.clone()

    @staticmethod
    def swiglu(x: Tensor) -> Tensor:
        return x[..., : x.shape[-1] // 2].clone()

    @staticmethod
    def swiglu_backward(gradient: Tensor, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def gathered_sum(rows: Tensor, index_NK: Tensor, gates_NK: Tensor | None) -> Tensor:
        return rows[: len(index_NK)].clone()

    @staticmethod
    def scattered_product(
        gradient: Tensor, rows: Tensor, choice_of_row: Tensor, gates_NK: Tensor
    ) -> tuple[Tensor, Tensor]:
        return rows.clone(), torch.empty_like(gates_NK)


class _RmsNorm(torch.autograd.Function):
    """RMSNorm as a CUDA build has it: one kernel each way. A CPU build takes it apart."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: Any, weight: Tensor, eps: float) -> Tensor:
        y, _, deviation = aten.native_layer_norm(x, shape, weight, None, eps)
        ctx.save_for_backward(x, weight, deviation)
        ctx.shape = shape
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, deviation = ctx.saved_tensors
        wanted = [True, True, False]
        both = aten.native_layer_norm_backward(
            gradients[0], x, ctx.shape, deviation, deviation, weight, None, wanted
        )
        return both[0], None, both[1], None


def as_on_a_gpu(fused: bool) -> None:
    """Have the model take the paths of a CUDA build of torch, with Triton's kernels if `fused`."""
    F.rms_norm = _RmsNorm.apply  # type: ignore[assignment]
    for module in (rotary, constants):
        module.is_plain = lambda x: True  # type: ignore[attr-defined]
    for module in (rotary, experts, feedforward):
        module.fused_for = lambda x: OneLaunchEach if fused else None  # type: ignore[attr-defined]
    torch.nn.init.trunc_normal_ = lambda tensor, *_: tensor  # it looks at what it has drawn
    fused_attention._failure = _failure  # type: ignore[assignment]
    FakeTensor.tolist = _even_splits  # type: ignore[method-assign]


def _failure(kernel: Any, call: Any) -> str | None:
    """Say what a trial would: torch's kernels work, and no package is installed."""
    return None if isinstance(kernel, fused_attention.TorchCudnn) else "not installed"


def _even_splits(splits: FakeTensor) -> list[list[int]]:
    """Return the rows that the ranks of a group exchange, as if all got equally many."""
    splits.cpu()  # for which the host waits
    return [[splits.rows_of_a_rank] * splits.shape[-1]] * len(splits)  # type: ignore[attr-defined]


def counted(case: dict[str, Any]) -> dict[str, Any]:
    """Return the launches of one layer and the waits of a whole step."""
    settings = load(
        ROOT / case["file"], {"model.num_layers": 2, "parallel.pipeline": 1} | case["changes"]
    ).settings
    shape = SeriesShape(4096, 256, channels=2, covariates=0, calendar=(48, 7), missing=case["gaps"])
    as_on_a_gpu(case["fused"])
    batch, config, ranks = settings.train.micro_batch_size, settings.model, case["expert"]
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)  # fake parameters cannot be cast in place
        network = TimeSeriesTransformer(config, shape)
        torch.set_default_dtype(torch.float32)
        network.recompute = case["recompute"]
        for mixture in network.mixtures().values():
            mixture.attached_scale = 1.0
        rows, tokens = batch * 2, network.memory_patches + network.future_patches - 1
        if ranks > 1:
            cut_experts(network, Layout(1, ranks, 1, ranks))
            apply_expert_parallel(network, dist.group.WORLD)
        choices = rows * tokens * config.top_k
        FakeTensor.rows_of_a_rank = choices // ranks  # type: ignore[attr-defined]
        context, future = torch.zeros(batch, 4096, 2), torch.zeros(batch, 256, 2)
        inputs = network.inputs(context, torch.zeros(batch, 4352, 2), future)
        with Counting(choices) as first:  # what is copied to the device once
            network.loss(network(inputs), (future, context))
        with Counting(choices) as step:
            network.loss(network(inputs), (future, context)).backward()
        x = torch.zeros(rows, tokens, config.d_model, dtype=torch.bfloat16, requires_grad=True)
        entry, padding = x * 1, torch.zeros(rows, tokens, dtype=torch.bool)
        with Counting(choices) as layer:
            states, _ = network._encode(network.decoder.layers[1], (entry, padding))
            gradient = torch.ones_like(states)
            layer.phase = "backward"
            states.backward(gradient)
    return {
        "launches": dict(layer.launches),
        "waits": dict(step.waits),
        "once": sorted(set(first.waits) - set(step.waits)),
        "kernels": network.kernels(),
        "operators": dict(layer.operators.most_common()),
    }


def cut_experts(network: TimeSeriesTransformer, layout: Layout) -> None:
    """Leave the first rank's shards of the experts' parameters."""
    here = layout.coordinates(0)
    for prefix, module in network.named_modules():
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            shard = shard_of(f"{prefix}.{leaf}", parameter.shape, layout, here)
            if shard.shape != parameter.shape:
                smaller = torch.zeros(shard.shape, dtype=parameter.dtype)
                setattr(module, leaf, torch.nn.Parameter(smaller))


def main() -> None:
    """Count each case of the standard input."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    results = [counted(case) for case in json.load(sys.stdin)]
    print(json.dumps(results), flush=True)
    os._exit(0)  # autograd's thread of a device that is not there cannot be joined


if __name__ == "__main__":
    main()
