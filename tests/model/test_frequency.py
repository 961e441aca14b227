"""Attention between Fourier modes against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.frequency import frequency_attention


def dft(x: Tensor, modes: int) -> Tensor:
    """Return the lowest modes along time by the definition of the unitary transform."""
    length = x.shape[2]
    time, mode = torch.arange(length, dtype=torch.float64), torch.arange(modes, dtype=torch.float64)
    basis = torch.exp(-2j * torch.pi * mode[:, None] * time / length) / length**0.5
    return torch.einsum("mt,bhtd->bhmd", basis, x.to(torch.complex128))


@pytest.mark.parametrize(("length", "keys", "modes"), [(24, 24, 6), (25, 40, 5), (8, 8, 50)])
def test_frequency_attention_is_its_definition(length: int, keys: int, modes: int) -> None:
    q = torch.randn(2, 4, length, 16)
    k, v = torch.randn(2, 4, keys, 16), torch.randn(2, 4, keys, 16)
    mix = torch.randn(4, modes, 16, 2) * 0.1
    result = frequency_attention(q, k, v, mix)
    m, n = min(modes, length // 2 + 1), min(modes, keys // 2 + 1)
    qf, kf, vf = dft(q, m), dft(k, n), dft(v, n)
    weights = ((qf @ kf.conj().transpose(-2, -1)).abs() / 4).softmax(-1)
    mixed = weights.to(vf.dtype) @ vf
    mixed = mixed * (1 + torch.view_as_complex(mix[:, :m].double().contiguous()))
    time, mode = torch.arange(length, dtype=torch.float64), torch.arange(m, dtype=torch.float64)
    back = torch.exp(2j * torch.pi * mode[:, None] * time / length) / length**0.5
    twice = torch.where((mode == 0) | (2 * mode == length), 1.0, 2.0)
    expected = torch.einsum("mt,bhmd->bhtd", back * twice[:, None], mixed).real
    assert (result - expected).abs().max() < 1e-5


def test_frequency_attention_ignores_padding_and_has_true_gradients() -> None:
    q, k, v = (torch.randn(2, 4, 12, 16) for _ in range(3))
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
