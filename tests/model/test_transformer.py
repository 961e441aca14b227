"""The library's encoder and decoder: the specification's calls, masks, causality, options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from forescale import TransformerDecoder, TransformerEncoder
from model.config import TransformerConfig
from model.errors import UserError
from tests.model.options import CAUSAL, OPTIONS, SMALL


def test_the_calls_of_the_specification() -> None:
    encoder = TransformerEncoder(
        input_size=7,
        d_model=512,
        nhead=8,
        num_layers=1,
        att_type="xformer",
        use_swiglu=True,
        norm_strategy="pre_norm",
        use_adaptive_ln="rms",
        use_gradient_checkpointing=True,
    )
    TransformerDecoder(
        input_size=7,
        output_size=1,
        d_model=1024,
        num_layers=1,
        nhead=16,
        dim_feedforward=256,
        use_gradient_checkpointing=True,
    )
    model = TransformerDecoder(
        input_size=10,
        output_size=5,
        share_layers=True,
        use_final_norm=False,
        use_gradient_checkpointing=False,
    )
    memory = encoder(torch.randn(2, 96, 7))
    assert memory.shape == (2, 96, 512)
    token, state = torch.randn(2, 1, 10), {}
    for _ in range(5):
        output, state = model.forward_one_step(tgt=token, memory=memory, incremental_state=state)
        assert output.shape == (2, 1, 5)
    assert state["layers"][0]["self_attn"]["key"].shape == (2, 5, 512)
    assert state["layers"][0]["cross_attn"]["value"].shape == (2, 96, 512)
    assert len(state["layers"]) == 6


@pytest.mark.parametrize("made", [TransformerEncoder, partial(TransformerDecoder, output_size=2)])
def test_every_argument_reaches_the_configuration(made: Callable[..., Any]) -> None:
    arguments = {
        "d_model": 24,
        "nhead": 4,
        "num_layers": 2,
        "dim_feedforward": 48,
        "dropout": 0.3,
        "activation": "relu",
        "att_type": "flash",
        "norm_strategy": "post_norm",
        "use_adaptive_ln": "rms",
        "use_swiglu": False,
        "share_layers": True,
        "use_final_norm": False,
        "use_moe": True,
        "num_experts": 5,
        "top_k": 3,
        "num_kv_heads": 2,
        "max_seq_len": 77,
        "freq_modes": 9,
        "z_loss": 0.5,
    }
    fields = TransformerConfig.model_fields
    assert set(inspect.signature(made).parameters) & set(fields) == set(arguments) - {"z_loss"}
    config = made(input_size=3, **arguments).config
    assert {name: getattr(config, name) for name in arguments} == arguments
    assert all(arguments[name] != fields[name].default for name in arguments)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_trains_and_is_deterministic_in_evaluation(options: dict[str, Any]) -> None:
    encoder = TransformerEncoder(3, **SMALL, **options)
    x, padding = torch.randn(3, 20, 3), torch.zeros(3, 20, dtype=torch.bool)
    padding[1, 12:], padding[2] = True, True
    loss = encoder(x, src_key_padding_mask=padding).square().mean() + encoder.aux_loss()
    loss.backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    encoder.eval()
    first = encoder(x, src_key_padding_mask=padding)
    assert first.isfinite().all()
    assert torch.equal(first, encoder(x, src_key_padding_mask=padding))
    other = x.clone()
    other[1, 12:] = 7.0
    torch.testing.assert_close(first[1, :12], encoder(other, None, padding)[1, :12])


@pytest.mark.parametrize("options", CAUSAL, ids=str)
def test_the_future_does_not_leak_into_the_past(options: dict[str, Any]) -> None:
    decoder = TransformerDecoder(3, 2, **SMALL, **options).eval()
    memory, x = torch.randn(2, 9, 24), torch.randn(2, 140, 3)
    left = torch.zeros(2, 140, dtype=torch.bool)
    left[1, :5] = True
    band = ~torch.ones(140, 140, dtype=torch.bool).triu(-20)
    for masks in ({}, {"tgt_key_padding_mask": left}, {"tgt_mask": band}):
        before = decoder(x, memory, **masks)
        other = x.clone()
        other[:, 130:] = 9.0
        after = decoder(other, memory, **masks)
        # An expert's product rounds differently with another number of rows.
        rounding = 1e-6 if options.get("use_moe") else 0.0
        assert (before[:, :130] - after[:, :130]).abs().max() <= rounding
        assert not torch.equal(before[:, 130:], after[:, 130:])


def test_gradient_checkpointing_changes_no_bit_of_the_gradients() -> None:
    random = {"dropout": 0.2, "attention_dropout": 0.1, "drop_path": 0.1}
    options = {**SMALL, **random, "use_moe": True}
    gradients: list[list[Tensor]] = []
    for checkpointed in (False, True):
        torch.manual_seed(5)
        encoder = TransformerEncoder(3, **options, use_gradient_checkpointing=checkpointed)
        torch.manual_seed(6)
        (encoder(torch.randn(4, 15, 3)).square().sum() + encoder.aux_loss()).backward()
        gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_time_features_are_embedded() -> None:
    encoder = TransformerEncoder(3, **SMALL, time_feature_sizes=(24, 7)).eval()
    x, hours = torch.randn(1, 5, 3), torch.tensor([[[0, 0], [1, 0], [2, 0], [3, 0], [4, 0]]])
    assert not torch.allclose(encoder(x, time_features=hours), encoder(x, time_features=0 * hours))
    with pytest.raises(UserError, match="name their sizes as time_feature_sizes first"):
        TransformerEncoder(3, **SMALL)(x, time_features=hours)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"att_type": "flsh"},
            r"att_type: expected one of .* \(did you mean flash\?\), got 'flsh'",
        ),
        ({"activation": "gulu", "use_swiglu": False}, r"did you mean gelu\?"),
        ({"use_adaptive_ln": "rmz"}, r"use_adaptive_ln: expected one of .*did you mean rms\?"),
        ({"activation": "relu"}, r"activation: relu needs use_swiglu: false"),
        ({"use_moe": True, "num_experts": 2, "top_k": 3}, "top_k: 3 exceeds num_experts=2"),
        ({"nhead": 5}, "nhead: 5 heads do not divide d_model=24"),
        ({"n_head": 5}, r"n_head: no such argument; did you mean nhead\?"),
        ({"zzz": 5}, "zzz: no such argument; there are d_model, nhead"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TransformerEncoder(3, **{**SMALL, **options})


def test_a_causal_decoder_refuses_frequency_attention_with_the_alternatives() -> None:
    with pytest.raises(UserError, match="use standard, xformer or flash, or decoder_att_type"):
        TransformerDecoder(3, 2, **SMALL, att_type="frequency")
    TransformerDecoder(3, 2, **SMALL, att_type="frequency", decoder_att_type="standard")
    free = TransformerDecoder(3, 2, **SMALL, att_type="frequency", is_causal=False)
    with pytest.raises(UserError, match="cannot go step by step"):
        free.forward_one_step(torch.randn(1, 1, 3), torch.randn(1, 5, 24))


def test_masks_of_the_wrong_shape_or_meaning_are_named() -> None:
    encoder, decoder = TransformerEncoder(3, **SMALL), TransformerDecoder(3, 2, **SMALL)
    x, memory = torch.randn(2, 8, 3), torch.randn(2, 5, 24)
    with pytest.raises(UserError, match=r"floats are 0, and -inf on padding; found 1 to 1"):
        encoder(x, src_key_padding_mask=torch.ones(2, 8))
    with pytest.raises(UserError, match=r"expected bool \[2, 8\], True on padding; got int64"):
        encoder(x, src_key_padding_mask=torch.ones(2, 8, dtype=torch.long))
    with pytest.raises(UserError, match=r"src_key_padding_mask: .*; got bool \[8, 2\]"):
        encoder(x, src_key_padding_mask=torch.ones(8, 2, dtype=torch.bool))
    with pytest.raises(UserError, match=r"got bool \[2, 8\]; a padding mask is src_key_padding_m"):
        encoder(x, torch.ones(2, 8, dtype=torch.bool))
    with pytest.raises(UserError, match=r"tgt_mask: expected \[8, 8\].* True where a query"):
        decoder(x, memory, tgt_mask=torch.ones(8, 5, dtype=torch.bool))
    with pytest.raises(UserError, match="a padding mask is tgt_key_padding_mask="):
        decoder(x, memory, torch.ones(2, 8, dtype=torch.bool))
    with pytest.raises(UserError, match=r"memory_mask: expected \[8, 5\]"):
        decoder(x, memory, memory_mask=torch.ones(8, 8, dtype=torch.bool))
    with pytest.raises(UserError, match="tgt_is_causal: this decoder was made with is_causal=True"):
        decoder(x, memory, tgt_is_causal=False)
    with pytest.raises(UserError, match="memory_is_causal: give the mask"):
        decoder(x, memory, memory_is_causal=True)
    with pytest.raises(UserError, match=r"memory: expected \[2, S, d_model=24\], got \[3, 5, 24\]"):
        decoder(x, torch.randn(3, 5, 24))
    with pytest.raises(UserError, match=r"memory_key_padding_mask: expected bool \[2, 5\]"):
        decoder(x, memory, memory_key_padding_mask=torch.ones(2, 6, dtype=torch.bool))
    with pytest.raises(UserError, match="one step takes one token"):
        decoder.forward_one_step(x, memory)


def test_inputs_are_of_the_weights_type() -> None:
    encoder = TransformerEncoder(3, **SMALL)
    for x in (torch.randn(2, 5, 3).double(), torch.ones(2, 5, 3, dtype=torch.int64)):
        with pytest.raises(
            UserError, match=r"src: expected torch.float32, as the weights are, got"
        ):
            encoder(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(torch.randn(2, 5, 3).bfloat16()).isfinite().all()
    encoder.double()
    assert encoder(torch.randn(2, 5, 3).double()).dtype == torch.float64


@pytest.mark.parametrize("position", ["sinusoidal", "learned", "rotary"])
def test_past_max_seq_len_there_is_a_clear_error(position: str) -> None:
    decoder = TransformerDecoder(3, 2, **SMALL, position=position, max_seq_len=4)
    memory, state = torch.randn(1, 5, 24), {}
    with pytest.raises(UserError, match="max_seq_len: a sequence of 5 tokens is longer than 4"):
        decoder(torch.randn(1, 5, 3), memory)
    for _ in range(4):
        _, state = decoder.forward_one_step(torch.randn(1, 1, 3), memory, state)
    with pytest.raises(UserError, match="max_seq_len: a sequence of 5 tokens is longer than 4"):
        decoder.forward_one_step(torch.randn(1, 1, 3), memory, state)


def test_two_modules_start_differently_and_a_seed_repeats_them() -> None:
    torch.manual_seed(1)
    a, b = TransformerEncoder(3, **SMALL), TransformerEncoder(3, **SMALL)
    torch.manual_seed(1)
    again = TransformerEncoder(3, **SMALL)
    weight = "layers.0.self_attention.query_key_value"
    assert not torch.equal(a.get_parameter(weight), b.get_parameter(weight))
    assert torch.equal(a.get_parameter(weight), again.get_parameter(weight))


@pytest.mark.parametrize("values", [[24.0, 0.0], [0.0, -1.0], [3.5, 0.0], [1.0]])
def test_wrong_time_features_are_named(values: list[float]) -> None:
    encoder = TransformerEncoder(3, **SMALL, time_feature_sizes=(24, 7))
    with pytest.raises(UserError, match="time_features: "):
        encoder(torch.randn(1, 1, 3), time_features=torch.tensor([[values]]))
    with pytest.raises(UserError, match="needs their values"):
        encoder(torch.randn(1, 1, 3))


@pytest.mark.parametrize("att_type", ["standard", "xformer", "flash", "frequency"])
def test_padding_may_hold_anything(att_type: str) -> None:
    encoder = TransformerEncoder(3, **SMALL, att_type=att_type).eval()
    x, padding = torch.randn(2, 9, 3), torch.arange(9).expand(2, 9) >= 6
    hidden = padding.unsqueeze(-1)
    fills = (0.0, float("nan"))
    outputs = [encoder(x.masked_fill(hidden, fill), None, padding)[:, :6] for fill in fills]
    assert torch.equal(*outputs)
    if att_type == "frequency":
        return
    decoder = TransformerDecoder(3, 1, **SMALL, att_type=att_type).eval()
    memory = torch.randn(2, 9, SMALL["d_model"])
    outputs = [
        decoder(x, memory.masked_fill(hidden, fill), memory_key_padding_mask=padding)
        for fill in fills
    ]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 5)])
def test_inputs_of_the_wrong_shape_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"src: expected \[B, T, input_size=3\]"):
        TransformerEncoder(3, **SMALL)(torch.randn(shape))
