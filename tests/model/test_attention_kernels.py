"""Every attention kernel against the formula in fp64."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from model import attention_backends, attention_kernels, fused_attention
from model.attention_backends import KERNELS, choose_for
from model.frequency import frequency_attention
from tests.formulas import attention

TYPES = ["standard", "xformer", "flash"]


def attend(q: Tensor, k: Tensor, v: Tensor, *, att_type: str, **options: Any) -> Tensor:
    """Compute attention by the kernel that is chosen for the call."""
    choice = choose_for(q, k, att_type=att_type, **options)
    return attention_backends.attend(choice.kernel, q, k, v, **options)


def tensors(
    length: int = 200, kv_heads: int = 4, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Return query [2, 4, length, 16], key and value [2, kv_heads, length, 16]."""
    q = torch.randn(2, 4, length, 16, dtype=dtype)
    k, v = (torch.randn(2, kv_heads, length, 16, dtype=dtype) for _ in range(2))
    return q, k, v


def masks(length: int) -> dict[str, Tensor | None]:
    """Return masks of two sequences by name: True where a key is visible."""
    padded = torch.ones(2, 1, 1, length, dtype=torch.bool)
    padded[0, ..., length // 2 :] = False
    left = torch.ones(2, 1, 1, length, dtype=torch.bool)
    left[1, ..., : length // 3] = False
    nothing = padded.clone()
    nothing[1] = False
    full = torch.rand(2, 1, length, length) > 0.5
    return {"none": None, "padded": padded, "left": left, "nothing": nothing, "full": full}


MASKS = ["none", "padded", "left", "nothing", "full"]
CASES = list(itertools.product(TYPES, MASKS, [False, True], [4, 2, 1]))


@pytest.mark.parametrize(("att_type", "mask", "is_causal", "kv_heads"), CASES)
def test_each_type_is_the_formula_forwards_and_backwards(
    att_type: str, mask: str, is_causal: bool, kv_heads: int
) -> None:
    q, k, v = (t.requires_grad_() for t in tensors(kv_heads=kv_heads))
    visible = masks(200)[mask]
    result = attend(q, k, v, att_type=att_type, mask=visible, is_causal=is_causal)
    expected = attention(q, k, v, visible, is_causal)
    assert (result - expected).abs().max() < 1e-5
    weight = torch.randn_like(result)
    ours = torch.autograd.grad((result * weight).sum(), (q, k, v))
    theirs = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    for gradient, reference in zip(ours, theirs, strict=True):
        assert gradient.isfinite().all()
        assert (gradient - reference).abs().max() < 1e-4


@pytest.mark.parametrize("att_type", TYPES)
def test_bf16_is_near_the_formula(att_type: str) -> None:
    q, k, v = tensors(dtype=torch.bfloat16)
    result = attend(q, k, v, att_type=att_type, is_causal=True)
    expected = attention(q, k, v, None, True)
    assert result.dtype == torch.bfloat16
    assert (result - expected).norm() / expected.norm() < 1e-2


@pytest.mark.parametrize("att_type", TYPES)
@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients_by_finite_differences(att_type: str, is_causal: bool) -> None:
    q, k, v = (t[:1, :2, :5, :4].detach().requires_grad_() for t in tensors(dtype=torch.float64))
    torch.autograd.gradcheck(
        lambda *t: attend(*t, att_type=att_type, is_causal=is_causal), (q, k, v)
    )


@pytest.mark.parametrize("att_type", [*TYPES, "frequency"])
def test_dropout_keeps_the_mean_and_repeats_with_its_seed(att_type: str) -> None:
    q, k, v = tensors(length=40)
    mix = torch.zeros(4, 8, 16, 2)

    def once(dropout: float) -> Tensor:
        if att_type == "frequency":
            return frequency_attention(q, k, v, mix, dropout=dropout)
        return attend(q, k, v, att_type=att_type, dropout=dropout)

    torch.manual_seed(1)
    first = once(0.3)
    torch.manual_seed(1)
    assert torch.equal(first, once(0.3))
    assert not torch.allclose(first, once(0.0))
    mean = torch.stack([once(0.3) for _ in range(400)]).mean(0)
    assert (mean - once(0.0)).abs().mean() < 0.05


def test_blockwise_gradients_are_exact_with_dropout() -> None:
    """The backward pass drops the same weights when it recomputes them."""
    kernel = KERNELS["flash"][-1]
    assert kernel.name == "blockwise"
    q, k, v = (t.requires_grad_() for t in tensors(length=300))
    torch.manual_seed(3)
    result = kernel(q, k, v, None, True, 0.2)
    (gradient,) = torch.autograd.grad(result.sum(), v, retain_graph=True)
    step = torch.zeros_like(v)
    step[0, 1, 150, 3] = 1.0
    torch.manual_seed(3)
    moved = kernel(q, k, v + step, None, True, 0.2)
    assert (moved - result).sum().item() == pytest.approx(gradient[0, 1, 150, 3].item(), rel=1e-3)


@pytest.mark.parametrize("att_type", TYPES)
def test_the_future_does_not_reach_the_past(att_type: str) -> None:
    q, k, v = tensors(length=150)
    for mask in (None, masks(150)["left"]):
        before = attend(q, k, v, att_type=att_type, mask=mask, is_causal=True)
        k2, v2 = k.clone(), v.clone()
        k2[:, :, 100:], v2[:, :, 100:] = 9.0, -9.0
        after = attend(q, k2, v2, att_type=att_type, mask=mask, is_causal=True)
        assert torch.equal(before[:, :, :100], after[:, :, :100])
        assert not torch.equal(before[:, :, 100:], after[:, :, 100:])


def test_a_package_that_does_not_load_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    call = attention_kernels.Call("cpu", torch.float32, 8, False, "none", False, False)
    reason = fused_attention._failure(fused_attention.FlashAttnPackage(), call)
    assert reason is not None and reason.startswith("not usable: import of flash_attn halted")


def test_a_package_without_this_card_s_kernels_is_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Unbuilt(attention_kernels.Formula):
        def __call__(self, *_: object) -> torch.Tensor:
            raise NotImplementedError("no operator for this card\nand a long list")

    monkeypatch.setattr(fused_attention, "Unbuilt", Unbuilt, raising=False)
    call = attention_kernels.Call("cpu", torch.float32, 8, False, "none", True, True)
    assert fused_attention._failure(Unbuilt(), call) == "not usable: no operator for this card"
    monkeypatch.setattr(fused_attention, "Formula", attention_kernels.Formula, raising=False)
    before = torch.get_rng_state()
    assert fused_attention._failure(attention_kernels.Formula(), call) is None
    assert torch.equal(torch.get_rng_state(), before)  # a resumed run draws what it drew before


@pytest.mark.parametrize("mask", ["none", "keys", "full", "heads", "floats"])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_memory_efficient_kernel_takes_every_mask(
    mask: str, kv_heads: int, dtype: torch.dtype
) -> None:
    """On the meta device, which checks shapes and types as CUDA does; 16 does not divide 200."""
    with torch.device("meta"):
        q, k, v = (t.requires_grad_() for t in tensors(kv_heads=kv_heads, dtype=dtype))
        shapes = {"keys": (2, 1, 1, 200), "full": (1, 1, 200, 200)}
        shape = shapes.get(mask, (2, 4, 200, 200))
        values = torch.ones(shape, dtype=torch.float32 if mask == "floats" else torch.bool)
        kernel = fused_attention.TorchEfficient()
        y = kernel(q, k, v, None if mask == "none" else values, False, 0.1)
        gradients = torch.autograd.grad(y.sum(), (q, k, v))
    assert y.shape == q.shape and y.dtype == dtype
    assert [g.shape for g in gradients] == [t.shape for t in (q, k, v)]
