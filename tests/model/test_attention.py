"""Attention against the formula in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.attention import CrossAttention, SelfAttention, merge_masks
from model.config import TransformerConfig
from model.init import initialise


def config(**changes: object) -> TransformerConfig:
    """Return the configuration of a small attention."""
    return TransformerConfig.model_validate({"d_model": 24, "nhead": 6, "num_layers": 1, **changes})


def formula(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v by its definition.

    q [B, T, H, D], k and v [B, S, H, D] -> [B, T, H, D].
    """
    scores = torch.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", weights, v)


def by_hand(
    attention: SelfAttention | CrossAttention, x: Tensor, memory: Tensor, allowed: Tensor
) -> Tensor:
    """Compute the attention head by head from its stored weights, in fp64."""
    x, memory = x.double(), memory.double()
    if isinstance(attention, SelfAttention):
        weight = attention.query_key_value.double()
        query_w, key_w, value_w = weight[:, :-2], weight[:, -2], weight[:, -1]
    else:
        query_w = attention.query.double()
        key_w, value_w = attention.key_value.double().unbind(1)
    query = torch.einsum("btc,kgdc->btkgd", x, query_w).flatten(2, 3)
    key = torch.einsum("bsc,kdc->bskd", memory, key_w).repeat_interleave(attention.group, 2)
    value = torch.einsum("bsc,kdc->bskd", memory, value_w).repeat_interleave(attention.group, 2)
    heads = formula(query, key, value, allowed)
    return torch.einsum("bthd,chd->btc", heads, attention.output.double().flatten(1, 2))


@pytest.mark.parametrize("kv_heads", [6, 3, 1])
@pytest.mark.parametrize("case", ["plain", "causal", "masked"])
def test_self_attention_is_the_formula(kv_heads: int, case: str) -> None:
    attention = SelfAttention(config(num_kv_heads=kv_heads))
    initialise(attention, 0)
    x = torch.randn(3, 7, 24)
    mask = None
    allowed = torch.ones(3, 1, 7, 7, dtype=torch.bool)
    if case == "causal":
        allowed = allowed.tril()
    if case == "masked":
        mask = torch.rand(3, 7) > 0.4
        mask[:, 0] = True
        allowed = mask[:, None, None, :].expand(3, 1, 7, 7)
    visible = None if mask is None else mask[:, None, None, :]
    result = attention(x, visible, is_causal=case == "causal").double()
    expected = by_hand(attention, x, x, allowed)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_cross_attention_is_the_formula() -> None:
    attention = CrossAttention(config(num_kv_heads=2))
    initialise(attention, 0)
    x, memory = torch.randn(2, 5, 24), torch.randn(2, 9, 24)
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    allowed = mask[:, None, None, :]
    result = attention(x, memory, allowed).double()
    expected = by_hand(attention, x, memory, allowed)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_causal_attention_has_no_gradient_from_the_future() -> None:
    attention = SelfAttention(config())
    initialise(attention, 0)
    x = torch.randn(1, 8, 24, requires_grad=True)
    attention(x, is_causal=True)[:, :5].sum().backward()
    assert x.grad is not None
    assert (x.grad[:, 5:] == 0).all() and (x.grad[:, :5] != 0).any()


def test_masked_keys_have_no_effect_and_a_row_of_padding_is_finite() -> None:
    attention = SelfAttention(config())
    initialise(attention, 0)
    x = torch.randn(2, 6, 24)
    mask = merge_masks(torch.tensor([[False] * 4 + [True] * 2, [True] * 6]))
    other = x.clone()
    other[0, 4:] = 100.0
    first, second = attention(x, mask), attention(other, mask)
    assert torch.equal(first[0, :4], second[0, :4])
    assert first.isfinite().all()


def over_root_mean_square(x: Tensor, gain: Tensor) -> Tensor:
    """Return heads [B, T, H, D] by the norm's definition, times gains [H, D]."""
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain


@pytest.mark.parametrize("kv_heads", [6, 2])
@pytest.mark.parametrize("kind", [SelfAttention, CrossAttention])
def test_queries_and_keys_are_normalised_head_by_head(
    kv_heads: int, kind: type[SelfAttention | CrossAttention]
) -> None:
    attention = kind(config(num_kv_heads=kv_heads, qk_norm=True))
    initialise(attention, 0)
    gain = attention.query_key_gain
    assert gain is not None and bool((gain == 1).all())
    gain.data.normal_()
    x, memory = torch.randn(3, 7, 24), torch.randn(3, 5, 24)
    group, of_group = 6 // kv_heads, gain.double().view(kv_heads, 6 // kv_heads + 1, 4)
    if isinstance(attention, SelfAttention):
        memory, weight = x, attention.query_key_value.double()
        query_w, key_w, value_w = weight[:, :-2], weight[:, -2], weight[:, -1]
    else:
        query_w = attention.query.double()
        key_w, value_w = attention.key_value.double().unbind(1)
    query = torch.einsum("btc,kgdc->btkgd", x.double(), query_w).flatten(2, 3)
    key = torch.einsum("bsc,kdc->bskd", memory.double(), key_w)
    value = torch.einsum("bsc,kdc->bskd", memory.double(), value_w)
    query = over_root_mean_square(query, of_group[:, :-1].flatten(0, 1))
    key = over_root_mean_square(key, of_group[:, -1]).repeat_interleave(group, 2)
    allowed = torch.ones(3, 1, 7, memory.shape[1], dtype=torch.bool)
    heads = formula(query, key, value.repeat_interleave(group, 2), allowed)
    expected = torch.einsum("bthd,chd->btc", heads, attention.output.double().flatten(1, 2))
    made = attention(x) if isinstance(attention, SelfAttention) else attention(x, memory)
    torch.testing.assert_close(made.double(), expected, rtol=1e-5, atol=1e-5)


def test_with_norms_scores_do_not_grow_with_weights() -> None:
    attention = SelfAttention(config(qk_norm=True, position="rotary"))
    initialise(attention, 0)
    x = torch.randn(2, 7, 24)
    before = attention(x)
    attention.query_key_value.data[:, :-1] *= 100.0
    torch.testing.assert_close(attention(x), before, rtol=1e-3, atol=1e-4)
