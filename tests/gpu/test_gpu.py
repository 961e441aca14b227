"""The CPU tests' promises on a GPU: kernels by name, memory by length, a run in bf16."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.attention_backends import KERNELS, attend, choose_for
from model.attention_kernels import Call, Kernel, MaskKind
from model.config import TransformerConfig
from model.experts import grouped_linear, looped_linear
from model.feedforward import SwiGLU, gated_swish
from model.frequency import frequency_attention
from model.fused import fused_for
from model.init import initialise
from model.moe import MixtureOfExperts
from model.norm import normalise
from model.rotary import rotate
from model.transformer import TransformerEncoder
from tests.conftest import ROOT
from tests.formulas import attention, normalised, rotated
from trainer.logs.metrics import read_metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

BY_NAME = {kernel.name: kernel for kernels in KERNELS.values() for kernel in kernels}
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Largest relative error of a kernel."""


def relative(ours: Tensor, exact: Tensor) -> float:
    """Return the relative error of `ours`."""
    return float((ours.detach().double() - exact.detach()).norm() / exact.detach().norm())


def heads(dtype: torch.dtype, kv_heads: int, length: int = 256) -> list[Tensor]:
    """Return query [2, 8, length, 64], key and value [2, kv_heads, length, 64]."""
    shapes = [(2, 8, length, 64), *[(2, kv_heads, length, 64)] * 2]
    return [torch.randn(s, device="cuda", dtype=dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize(
    ("name", "dtype", "kv_heads", "mask", "is_causal"),
    list(itertools.product(BY_NAME, LIMITS, [8, 2], ["none", "keys", "full"], [False, True])),
)
def test_each_kernel_is_the_formula(
    name: str, dtype: torch.dtype, kv_heads: int, mask: MaskKind, is_causal: bool
) -> None:
    kernel: Kernel = BY_NAME[name]
    refusal = kernel.refusal(Call("cuda", dtype, 64, kv_heads != 8, mask, is_causal, False))
    if refusal:
        pytest.skip(f"{name}: {refusal}")
    q, k, v = heads(dtype, kv_heads)
    visible = None
    if mask != "none":
        visible = torch.rand(2, 1, 256 if mask == "full" else 1, 256, device="cuda") > 0.3
    output = attend(kernel, q, k, v, mask=visible, is_causal=is_causal)
    exact = attention(q, k, v, visible, is_causal)
    assert relative(output, exact) < LIMITS[dtype]
    upstream = torch.randn_like(output)
    ours = torch.autograd.grad(output, (q, k, v), upstream)
    theirs = torch.autograd.grad(exact, (q, k, v), upstream.double())
    for gradient, reference in zip(ours, theirs, strict=True):
        assert relative(gradient, reference.double()) < 2 * LIMITS[dtype]


@pytest.mark.parametrize("kind", ["left", "right", "all", "gaps", "full"])
@pytest.mark.parametrize("dtype", LIMITS)
def test_causal_attention_takes_hidden_keys(dtype: torch.dtype, kind: str) -> None:
    """A query may have no visible key at its position or before: it gets zeros, not NaN."""
    q, k, v = heads(dtype, 2, 200)
    visible = torch.rand(2, 1, 200 if kind == "full" else 1, 200, device="cuda") > 0.5
    if kind in ("left", "right", "all"):
        visible[:] = True
        visible[0, ..., slice(120) if kind == "left" else slice(120, None)] = False
        visible[1] = kind != "all"
    kernel = choose_for(q, k, att_type="flash", mask=visible, is_causal=True).kernel
    assert kernel.name == ("torch memory-efficient")
    output = attend(kernel, q, k, v, mask=visible, is_causal=True)
    exact = attention(q, k, v, visible, True)
    assert relative(output, exact) < LIMITS[dtype]
    upstream = torch.randn_like(output)
    ours = torch.autograd.grad(output, (q, k, v), upstream)
    theirs = torch.autograd.grad(exact, (q, k, v), upstream.double())
    for gradient, reference in zip(ours, theirs, strict=True):
        assert relative(gradient, reference.double()) < 2 * LIMITS[dtype]


FUSED_LIMITS = {torch.float32: 1e-6, torch.bfloat16: 3e-3}


@pytest.mark.parametrize("shape", [(1, 1, 1, 3, 8), (2, 37, 2, 6, 24), (3, 128, 4, 3, 128)])
@pytest.mark.parametrize("dtype", FUSED_LIMITS)
@pytest.mark.parametrize("start", [0, 5])
def test_rotary_positions_are_the_formula(
    dtype: torch.dtype, shape: tuple[int, ...], start: int
) -> None:
    x = torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    y = rotate(x, start, shape[3] - 1)
    expected = rotated(exact, start, shape[3] - 1)
    upstream = torch.randn_like(y)
    assert relative(y, expected) < FUSED_LIMITS[dtype]
    assert torch.equal(y[..., -1, :], x[..., -1, :])
    (ours,) = torch.autograd.grad(y, x, upstream)
    (theirs,) = torch.autograd.grad(expected, exact, upstream.double())
    assert relative(ours, theirs) < FUSED_LIMITS[dtype]


@pytest.mark.parametrize("shape", [(1, 2), (3, 5, 194), (4096, 1408), (0, 64)])
@pytest.mark.parametrize("dtype", FUSED_LIMITS)
def test_gated_swish_is_the_formula(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = (3 * torch.randn(shape, device="cuda", dtype=dtype)).requires_grad_()
    exact = x.detach().double().requires_grad_()
    y = gated_swish(x)
    gate, value = exact.chunk(2, -1)
    expected = torch.nn.functional.silu(gate) * value
    upstream = torch.randn_like(y)
    (ours,) = torch.autograd.grad(y, x, upstream)
    (theirs,) = torch.autograd.grad(expected, exact, upstream.double())
    if x.numel():
        assert relative(y, expected) < FUSED_LIMITS[dtype]
        assert relative(ours, theirs) < FUSED_LIMITS[dtype]


def test_the_fused_kernels_are_used() -> None:
    assert fused_for(torch.ones(4, 4, device="cuda")) is not None
    assert fused_for(torch.ones(4, 4, device="cuda").t()[:2]) is None
    assert fused_for(torch.ones(4, 4, device="cuda", dtype=torch.float64)) is None


def test_weights_start_as_they_do_on_a_cpu() -> None:
    config = TransformerConfig(d_model=64, dim_feedforward=192, use_moe=True, num_experts=8)
    here, there = MixtureOfExperts(config), MixtureOfExperts(config).cuda()
    initialise(here, 3)
    initialise(there, 3)
    for ours, theirs in zip(there.parameters(), here.parameters(), strict=True):
        assert torch.allclose(ours.cpu(), theirs, rtol=1e-5, atol=1e-9)


def test_a_module_can_be_made_on_the_gpu() -> None:
    with torch.device("cuda"):
        encoder = TransformerEncoder(3, d_model=32, nhead=4, num_layers=1)
    assert encoder(torch.randn(2, 5, 3, device="cuda")).isfinite().all()


@pytest.mark.parametrize("dtype", LIMITS)
def test_frequency_attention_equals_that_on_the_cpu(dtype: torch.dtype) -> None:
    q, k, v = (t.detach() for t in heads(dtype, 8))
    mix = torch.randn(8, 16, 64, 2, device="cuda")
    expected = frequency_attention(*(t.double().cpu() for t in (q, k, v, mix)))
    assert relative(frequency_attention(q, k, v, mix).cpu(), expected) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("removes", [False, True])
def test_norms_are_the_formula(dtype: torch.dtype, removes: bool) -> None:
    x, gain = torch.randn(512, 256) + 3, torch.randn(256)
    given = [x, gain, torch.rand(256)] if removes else [x, gain]
    ours = [t.to("cuda", dtype).requires_grad_() for t in given]
    exact = [t.detach().double().requires_grad_() for t in ours]
    y = normalise(*ours)
    expected = normalised(*exact, *[] if removes else [None])
    upstream = torch.randn_like(y)
    pairs = zip(
        (y, *torch.autograd.grad(y, ours, upstream)),
        (expected, *torch.autograd.grad(expected, exact, upstream.double())),
        strict=True,
    )
    assert all(relative(actual, right) < 2 * LIMITS[dtype] for actual, right in pairs)


@pytest.mark.parametrize("dtype", LIMITS)
def test_the_grouped_product_is_the_loop(dtype: torch.dtype) -> None:
    counts = torch.tensor([5, 0, 700, 1, 318], device="cuda")
    x = torch.randn(1024, 64, device="cuda", dtype=dtype, requires_grad=True)
    weight = torch.randn(5, 96, 64, device="cuda", dtype=dtype, requires_grad=True)
    upstream = torch.randn(1024, 96, device="cuda", dtype=dtype)

    def output_and_gradients(product: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        y = product(x, weight, counts)
        return (y, *torch.autograd.grad(y, (x, weight), upstream))

    ours, loop = output_and_gradients(grouped_linear), output_and_gradients(looped_linear)
    for actual, right in zip(ours, loop, strict=True):
        assert relative(actual, right.double()) < LIMITS[dtype]


def test_a_mixture_repeats_bit_for_bit() -> None:
    config = TransformerConfig(d_model=64, dim_feedforward=192, use_moe=True, num_experts=8)
    layer = MixtureOfExperts(config)
    initialise(layer, 0)
    layer = layer.cuda()
    x = torch.randn(4, 128, 64, device="cuda", requires_grad=True)

    def once() -> tuple[Tensor, ...]:
        y = layer(x)
        return (y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]))

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


def peak_bytes(att_type: str, length: int, masked: bool) -> int:
    """Return the memory that forward and backward of one attention take at their peak."""
    q, k, v = heads(torch.bfloat16, 8, length)
    mask = torch.rand(2, 1, 1, length, device="cuda") > 0.3 if masked else None
    call = Call("cuda", torch.bfloat16, 64, False, "keys" if masked else "none", not masked, False)
    kernel = next(kernel for kernel in KERNELS[att_type] if not kernel.refusal(call))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attend(kernel, q, k, v, mask=mask, is_causal=not masked).sum().backward()
    return torch.cuda.max_memory_allocated() - before


QUADRATIC, LINEAR = (3.0, 4.5), (1.5, 2.5)
"""Bounds on the growth of memory where the length doubles."""


@pytest.mark.parametrize(
    ("att_type", "bounds"),
    [("standard", QUADRATIC), ("xformer", LINEAR), ("flash", LINEAR)],
)
@pytest.mark.parametrize("masked", [False, True])
def test_memory_by_length(att_type: str, bounds: tuple[float, float], masked: bool) -> None:
    peak_bytes(att_type, 512, masked)
    peaks = [peak_bytes(att_type, length, masked) for length in (1024, 2048, 4096, 8192)]
    growth = [later / earlier for earlier, later in itertools.pairwise(peaks)]
    assert all(bounds[0] < ratio < bounds[1] for ratio in growth), (peaks, growth)


def test_swiglu_is_the_formula_in_bf16() -> None:
    layer = SwiGLU(TransformerConfig(d_model=128, dim_feedforward=384))
    initialise(layer, 0)
    layer = layer.to("cuda", torch.bfloat16)
    x = torch.randn(64, 128, device="cuda", dtype=torch.bfloat16)
    gate, value = layer.gate_value.double().unbind(0)
    exact = torch.nn.functional.silu(x.double() @ gate.T) * (x.double() @ value.T)
    assert relative(layer(x), exact @ layer.output.double().T) < 1e-2


def run(command: Sequence[str | Path]) -> None:
    """Run `command` in the repository; fail with what it printed."""
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.timeout(600)
def test_the_demo_learns_in_bf16(tmp_path: Path) -> None:
    settings = ["parallel.pipeline=1", "train.precision=bf16"]
    train = [sys.executable, "-m", "launch", "train", "configs/demo.yaml"]
    run([*train, "--run-dir", tmp_path, *settings])
    scores = json.loads((tmp_path / "evaluation.json").read_text())["scores"]
    assert scores["Forescale"]["mse"] < 0.2


@pytest.mark.timeout(300)
@pytest.mark.parametrize("layout", [["train.micro_batch_size=8"], ["parallel.tensor=2"]])
def test_two_ranks_share_the_gpu(tmp_path: Path, layout: list[str]) -> None:
    """Two ranks train over gloo, since NCCL needs a GPU for each rank."""
    torchrun = Path(sys.executable).with_name("torchrun")
    losses = []
    for ranks, changes in ((1, []), (2, layout)):
        folder = tmp_path / str(ranks)
        start = [torchrun, "--standalone", "--nproc-per-node", str(ranks), "launch/train.py"]
        run([*start, "configs/tiny.yaml", "--run-dir", folder, *changes])
        losses.append([row["loss"] for row in read_metrics(folder / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
