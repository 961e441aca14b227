"""The choice of an attention kernel, and its reasons."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from model.attention_backends import KERNELS, choose, choose_for
from model.attention_kernels import Call
from model.errors import UserError

PLAIN = Call(
    device="cpu",
    dtype=torch.float32,
    head_dim=16,
    grouped=False,
    mask="none",
    is_causal=False,
    dropout=False,
)


def test_a_choice_says_why_better_kernels_were_not_chosen() -> None:
    choice = choose("flash", PLAIN)
    refusals = "flash-attn: CUDA only, not cpu; torch cuDNN: CUDA only, not cpu"
    assert str(choice) == f"torch flash ({refusals})"
    assert choose("xformer", PLAIN).kernel.name == "torch flash"
    dropped = choose("flash", replace(PLAIN, dropout=True))
    assert dropped.kernel.name == "blockwise"
    assert "torch flash: the CPU kernel has no dropout" in dropped.refusals


def test_linear_memory_is_never_given_up() -> None:
    """Flash and xformer never fall back to the quadratic formula."""
    either = [False, True]
    values = {
        "device": ["cpu", "cuda", "mps"],
        "mask": ["none", "keys", "full"],
        "is_causal": either,
        "dropout": either,
        "grouped": either,
        "dtype": [torch.float32, torch.bfloat16, torch.float64],
    }
    for combination in itertools.product(*values.values()):
        call = replace(PLAIN, **dict(zip(values, combination, strict=True)))
        for att_type in ("flash", "xformer"):
            assert choose(att_type, call).kernel.name != "formula"


def test_strict_lists_every_reason() -> None:
    query, key = torch.randn(2, 2, 4, 8, 16).unbind(0)
    with pytest.raises(UserError) as caught:
        choose_for(query, key, att_type="flash", strict=True)
    message = str(caught.value)
    assert message.startswith("strict_attention: att_type flash: flash-attn: CUDA only, not cpu; ")
    for kernel in KERNELS["flash"]:
        assert f"{kernel.name}: " in message
