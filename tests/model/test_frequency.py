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
    basis = torch.exp(-2j * torch.pi * mode[:, None] * time / length) / length
    return torch.einsum("mt,bhtd->bhmd", basis, x.to(torch.complex128))


@pytest.mark.parametrize(("length", "keys", "modes"), [(24, 24, 6), (25, 40, 5), (8, 8, 50)])
def test_frequency_attention_is_its_definition(length: int, keys: int, modes: int) -> None:
    q = torch.randn(2, 4, length, 16)
    k, v = torch.randn(2, 4, keys, 16), torch.randn(2, 4, keys, 16)
    mix = torch.randn(4, modes, 16, 2) * 0.1
    result = frequency_attention(q, k, v, mix)
    m, n = min(modes, length // 2 + 1), min(modes, keys // 2 + 1)
    qf, kf, vf = dft(q, m), dft(k, n), dft(v, n)
    qf, kf = (x / x.abs().square().mean(-1, keepdim=True).sqrt() for x in (qf, kf))
    weights = ((qf @ kf.conj().transpose(-2, -1)).abs() / 4).softmax(-1)
    phases = torch.exp(1j * torch.pi * torch.arange(max(m, n)).double() ** 2 / modes)[:, None]
    mixed = phases[:m].conj() * (weights.to(vf.dtype) @ (phases[:n] * vf))
    mixed = mixed * (1 + torch.view_as_complex(mix[:, :m].double().contiguous()))
    mixed = mixed / mixed.abs().square().mean((-2, -1), keepdim=True).sqrt() / (2 * m) ** 0.5
    time, mode = torch.arange(length, dtype=torch.float64), torch.arange(m, dtype=torch.float64)
    back = torch.exp(2j * torch.pi * mode[:, None] * time / length)
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


@pytest.mark.parametrize("kind", ["noise", "level and season"])
def test_the_output_is_alike_for_every_length_and_place(kind: str) -> None:
    """Ordinary or structured, long or short, of the memory's length or another."""
    sizes = {}
    for length, keys in ((64, 64), (1024, 1024), (64, 1024), (1024, 64)):
        times = [torch.arange(n).view(1, 1, n, 1) / n for n in (length, keys, keys)]
        q, k, v = (torch.randn(8, 4, t.shape[2], 16) for t in times)
        if kind == "level and season":
            level, season = torch.randn(3, 8, 4, 1, 16), torch.randn(3, 8, 4, 1, 16)
            q, k, v = (
                0.1 * x + 2 * level[i] + season[i] * (6.283 * 3 * times[i]).sin()
                for i, x in enumerate((q, k, v))
            )
        y = frequency_attention(q, k, v, torch.zeros(4, 32, 16, 2))
        by_place = y.square().mean((0, 1, 3)).sqrt()
        sizes[length, keys] = float(y.square().mean().sqrt())
        assert float(by_place.max() / by_place.median()) < 2.5, (length, keys)
    assert max(sizes.values()) < 1.25 * min(sizes.values()), sizes


def test_a_batch_of_nothing() -> None:
    q = torch.randn(0, 4, 12, 16, requires_grad=True)
    y = frequency_attention(q, q, q, torch.zeros(4, 8, 16, 2))
    y.sum().backward()
    assert y.shape == q.shape
