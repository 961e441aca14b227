"""Every attention kernel against the formula in fp64, and why which one is chosen."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from model import backends, kernels
from model.backends import KERNELS, choose, choose_for
from model.errors import UserError
from model.frequency import frequency_attention
from model.kernels import Call
from tests.formulas import attention

TYPES = ["standard", "xformer", "flash"]


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, att_type: str, strict: bool = False, **how: Any
) -> Tensor:
    choice = choose_for(q, k, att_type=att_type, strict=strict, **how)
    return backends.attend(choice.kernel, q, k, v, **how)


def tensors(
    length: int = 200,
    kv_heads: int = 4,
    dtype: torch.dtype = torch.float32,
    keys: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(2, 4, length, 16, dtype=dtype)
    k, v = (torch.randn(2, kv_heads, keys or length, 16, dtype=dtype) for _ in range(2))
    return q, k, v


def masks(length: int) -> dict[str, Tensor | None]:
    padded = torch.ones(2, 1, 1, length, dtype=torch.bool)
    padded[0, ..., length // 2 :] = False
    left = torch.ones(2, 1, 1, length, dtype=torch.bool)
    left[1, ..., : length // 3] = False
    nothing = padded.clone()
    nothing[1] = False
    full = torch.rand(2, 1, length, length) > 0.5
    return {"none": None, "padded": padded, "left": left, "nothing": nothing, "full": full}


CASES = list(
    itertools.product(
        TYPES, ["none", "padded", "left", "nothing", "full"], [False, True], [4, 2, 1]
    )
)


@pytest.mark.parametrize(("att_type", "mask", "is_causal", "kv_heads"), CASES)
def test_each_type_is_the_formula_forwards_and_backwards(
    att_type: str, mask: str, is_causal: bool, kv_heads: int
) -> None:
    q, k, v = (t.requires_grad_() for t in tensors(kv_heads=kv_heads))
    seen = masks(200)[mask]
    result = attend(q, k, v, att_type=att_type, mask=seen, is_causal=is_causal)
    expected = attention(q, k, v, seen, is_causal)
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
    """What is recomputed in the backward pass drops the same weights."""
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


def call(**changes: object) -> Call:
    plain = {
        "device": "cpu",
        "dtype": torch.float32,
        "head_dim": 16,
        "grouped": False,
        "mask": "none",
        "is_causal": False,
        "dropout": False,
    }
    return Call(**{**plain, **changes})  # type: ignore[arg-type]


def test_a_choice_tells_why_the_better_kernels_were_not_taken() -> None:
    choice = choose("flash", call())
    assert str(choice) == "torch flash (flash-attn: CUDA only, not cpu)"
    assert choose("xformer", call()).kernel.name == "torch flash"
    dropped = choose("flash", call(dropout=True))
    assert dropped.kernel.name == "blockwise"
    assert "torch flash: the CPU kernel has no dropout" in dropped.refusals


def test_linear_memory_is_never_given_up() -> None:
    """No call makes flash or xformer fall back to the quadratic formula."""
    for device, mask, causal, dropout, grouped, dtype in itertools.product(
        ["cpu", "cuda", "mps"],
        ["none", "keys", "full"],
        [False, True],
        [False, True],
        [False, True],
        [torch.float32, torch.bfloat16, torch.float64],
    ):
        asked = call(
            device=device,
            mask=mask,
            is_causal=causal,
            dropout=dropout,
            grouped=grouped,
            dtype=dtype,
        )
        for att_type in ("flash", "xformer"):
            assert choose(att_type, asked).kernel.name != "formula"


def test_strict_lists_every_reason() -> None:
    q, k, v = tensors(length=8)
    with pytest.raises(UserError) as caught:
        attend(q, k, v, att_type="flash", strict=True)
    message = str(caught.value)
    assert message.startswith("strict_attention: att_type flash: flash-attn: CUDA only, not cpu; ")
    for kernel in KERNELS["flash"]:
        assert f"{kernel.name}: " in message


def test_a_package_that_does_not_work_is_a_reason() -> None:
    function, reason = kernels._package("no_such_package_at_all", "attention")
    assert function is None and reason == "not usable: No module named 'no_such_package_at_all'"


def dft(x: Tensor, modes: int) -> Tensor:
    """The lowest modes along time by the definition, unitary."""
    length = x.shape[2]
    time, mode = torch.arange(length, dtype=torch.float64), torch.arange(modes, dtype=torch.float64)
    basis = torch.exp(-2j * torch.pi * mode[:, None] * time / length) / length**0.5
    return torch.einsum("mt,bhtd->bhmd", basis, x.to(torch.complex128))


@pytest.mark.parametrize(("length", "keys", "modes"), [(24, 24, 6), (25, 40, 5), (8, 8, 50)])
def test_frequency_attention_is_its_definition(length: int, keys: int, modes: int) -> None:
    q, k, v = tensors(length=length, keys=keys)
    mix = torch.randn(4, modes, 16, 2) * 0.1
    result = frequency_attention(q, k, v, mix)
    m, n = min(modes, length // 2 + 1), min(modes, keys // 2 + 1)
    qf, kf, vf = dft(q, m), dft(k, n), dft(v, n)
    weights = ((qf @ kf.conj().transpose(-2, -1)).abs() / 4).softmax(-1)
    answer = weights.to(vf.dtype) @ vf
    answer = answer * (1 + torch.view_as_complex(mix[:, :m].double().contiguous()))
    time, mode = torch.arange(length, dtype=torch.float64), torch.arange(m, dtype=torch.float64)
    back = torch.exp(2j * torch.pi * mode[:, None] * time / length) / length**0.5
    twice = torch.where((mode == 0) | (2 * mode == length), 1.0, 2.0)
    expected = torch.einsum("mt,bhmd->bhtd", back * twice[:, None], answer).real
    assert (result - expected).abs().max() < 1e-5


def test_frequency_attention_ignores_padding_and_has_true_gradients() -> None:
    q, k, v = tensors(length=12)
    mix = torch.zeros(4, 4, 16, 2)
    mask = (torch.arange(12) < 9).view(1, 1, 1, 12)
    other_k, other_v = k.clone(), v.clone()
    other_k[:, :, 9:], other_v[:, :, 9:] = 5.0, 5.0
    first = frequency_attention(q, k, v, mix, mask=mask)
    assert torch.equal(first, frequency_attention(q, other_k, other_v, mix, mask=mask))
    nothing = frequency_attention(q, k, v, mix, mask=torch.zeros_like(mask))
    assert nothing.isfinite().all()
    small = [t[:1, :1, :7, :3].double().detach().requires_grad_() for t in (q, k, v)]
    learned = torch.randn(1, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda *t: frequency_attention(*t), (*small, learned))
    with pytest.raises(ValueError, match="takes no mask per query"):
        frequency_attention(q, k, v, mix, mask=torch.ones(2, 1, 12, 12, dtype=torch.bool))
