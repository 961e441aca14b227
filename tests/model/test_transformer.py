"""The library's encoder and decoder: the specification's calls, masks, causality, options."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forescale import TransformerDecoder, TransformerEncoder
from model.config import TransformerConfig
from model.decoding import KeyValueCache
from model.errors import UserError
from model.init import initialise
from model.layers import DropPath, EncoderLayer
from model.norm import AdaptiveNorm

SMALL: dict[str, Any] = {"d_model": 24, "nhead": 4, "num_layers": 2, "dim_feedforward": 48}


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


OPTIONS = [
    {},
    {"att_type": "flash"},
    {"att_type": "xformer", "num_kv_heads": 2},
    {"att_type": "frequency", "freq_modes": 4},
    {"norm_strategy": "post_norm"},
    {"use_adaptive_ln": "rms"},
    {"use_adaptive_ln": "adaptive"},
    {"use_adaptive_ln": nn.LayerNorm},
    {"use_swiglu": False, "activation": "relu"},
    {"share_layers": True},
    {"position": "learned"},
    {"position": "rotary"},
    {"use_moe": True, "num_experts": 4},
    {"use_moe": True, "num_experts": 4, "capacity_factor": 1.0, "shared_expert": True},
    {"use_moe": True, "router_score": "sigmoid", "balance_rate": 0.1, "z_loss": 0.01},
    {"use_final_norm": False, "drop_path": 0.2, "attention_dropout": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_trains_and_is_deterministic_in_evaluation(options: dict[str, Any]) -> None:
    encoder = TransformerEncoder(3, **SMALL, **options)
    x, padding = torch.randn(3, 20, 3), torch.zeros(3, 20, dtype=torch.bool)
    padding[1, 12:], padding[2] = True, True
    encoder(x, padding).square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    encoder.eval()
    first = encoder(x, padding)
    assert first.isfinite().all()
    assert torch.equal(first, encoder(x, padding))
    other = x.clone()
    other[1, 12:] = 7.0
    torch.testing.assert_close(first[1, :12], encoder(other, padding)[1, :12])


CAUSAL = [o for o in OPTIONS if o.get("att_type") != "frequency"]


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
        assert (before[:, :130] - after[:, :130]).abs().max() == 0
        assert not torch.equal(before[:, 130:], after[:, 130:])


@pytest.mark.parametrize("options", CAUSAL, ids=str)
def test_each_step_equals_its_position_of_a_full_forward(options: dict[str, Any]) -> None:
    # An expert's capacity counts all tokens of a sequence, and a step has one.
    decoder = TransformerDecoder(3, 2, **SMALL, **{**options, "capacity_factor": None}).eval()
    memory, x = torch.randn(2, 9, 24), torch.randn(2, 70, 3)
    padding = torch.arange(9) >= torch.tensor([[9], [4]])
    full = decoder(x, memory, memory_key_padding_mask=padding)
    state: dict[str, Any] = {}
    for t in range(70):
        step, state = decoder.forward_one_step(x[:, t : t + 1], memory, state, padding)
        assert (step - full[:, t : t + 1]).abs().max() < 1e-5, t


def test_a_reordered_state_goes_on_with_the_right_sequences() -> None:
    from model.decoding import reorder

    decoder = TransformerDecoder(3, 2, **SMALL, position="rotary").eval()
    memory, x = torch.randn(3, 9, 24), torch.randn(3, 12, 3)
    full = decoder(x, memory)
    state: dict[str, Any] = {}
    for t in range(8):
        _, state = decoder.forward_one_step(x[:, t : t + 1], memory, state)
    order = torch.tensor([2, 0])
    kept = reorder(state, order)
    for t in range(8, 12):
        step, kept = decoder.forward_one_step(x[order, t : t + 1], memory[order], kept)
        assert (step - full[order, t : t + 1]).abs().max() < 1e-5
        step, state = decoder.forward_one_step(x[:, t : t + 1], memory, state)
        assert (step - full[:, t : t + 1]).abs().max() < 1e-5


def test_branches_of_a_state_do_not_overwrite_each_other() -> None:
    first = KeyValueCache()
    first.append(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))
    second = copy.copy(first)
    for branch, value in ((first, 1.0), (second, 2.0)):
        branch.append(torch.full((1, 1, 2), value), torch.full((1, 1, 2), value))
    assert first["key"][0, :, 0].tolist() == [0, 1]
    assert second["key"][0, :, 0].tolist() == [0, 2]


def test_tensors_put_into_the_state_are_used() -> None:
    decoder = TransformerDecoder(3, 2, **SMALL).eval()
    memory, x = torch.randn(2, 5, 24), torch.randn(2, 6, 3)
    full = decoder(x, memory)
    state: dict[str, Any] = {}
    for t in range(6):
        step, state = decoder.forward_one_step(x[:, t : t + 1], memory, state)
        for layer in state["layers"]:
            for held in layer.values():
                for name in ("key", "value"):
                    held[name] = held[name].clone()
    assert (step - full[:, 5:]).abs().max() < 1e-5


def test_gradient_checkpointing_changes_no_bit_of_the_gradients() -> None:
    gradients: list[list[Tensor]] = []
    for checkpointed in (False, True):
        torch.manual_seed(5)
        encoder = TransformerEncoder(
            3,
            **SMALL,
            dropout=0.2,
            attention_dropout=0.1,
            drop_path=0.1,
            use_moe=True,
            use_gradient_checkpointing=checkpointed,
        )
        torch.manual_seed(6)
        encoder(torch.randn(4, 15, 3)).square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_shared_layers_are_one_set_of_weights() -> None:
    shared = TransformerEncoder(3, **{**SMALL, "num_layers": 5}, share_layers=True)
    single = TransformerEncoder(3, **{**SMALL, "num_layers": 1})
    assert {n for n, _ in shared.named_parameters()} == {n for n, _ in single.named_parameters()}
    single.load_state_dict(
        {
            n: p
            for n, p in shared.state_dict().items()
            if ".layers.0." in n
            or (".layers." not in n and "layers." not in n)
            or n.startswith("layers.0.")
        }
    )
    shared.eval()
    x = torch.randn(2, 8, 3)
    h = shared.positions(shared.input_projection(x))
    for _ in range(5):
        h = single.layers[0].eval()(h)
    torch.testing.assert_close(shared(x), shared.final_norm(h))


def test_drop_path_skips_samples_and_keeps_the_mean() -> None:
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    y = drop(x)
    rows = y[:, 0, 0]
    assert sorted(set(rows.tolist())) == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(y, rows[:, None, None].expand_as(y))
    assert rows.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(drop.eval()(x), x)


def test_the_adaptive_norm_lies_between_rms_and_layer_norm() -> None:
    norm, x = AdaptiveNorm(16, condition_size=4), torch.randn(5, 16) + 2
    initialise(norm, 0)
    with torch.no_grad():
        norm.removed.fill_(1.0)
        torch.testing.assert_close(norm(x), nn.functional.layer_norm(x, (16,), eps=1e-5))
        norm.removed.fill_(0.0)
        torch.testing.assert_close(norm(x), nn.functional.rms_norm(x, (16,), eps=1e-5))
        condition = torch.randn(5, 4)
        torch.testing.assert_close(norm(x, condition), norm(x))  # zero at first
        assert norm.condition is not None
        norm.condition.normal_()
        gain, shift = (condition @ w.T for w in norm.condition)
        torch.testing.assert_close(norm(x, condition), norm(x) * (1 + gain) + shift)
    with pytest.raises(ValueError, match="condition_size is 0"):
        AdaptiveNorm(16)(x, torch.randn(5, 4))


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
    with pytest.raises(UserError, match=r"expected bool \[2, 8\], True on padding; got float32"):
        encoder(x, torch.ones(2, 8))
    with pytest.raises(UserError, match=r"src_key_padding_mask: .*; got bool \[8, 2\]"):
        encoder(x, torch.ones(8, 2, dtype=torch.bool))
    with pytest.raises(UserError, match=r"tgt_mask: expected bool \[8, 8\], True where a query"):
        decoder(x, memory, tgt_mask=torch.ones(8, 5, dtype=torch.bool))
    with pytest.raises(UserError, match=r"memory: expected \[2, S, d_model=24\], got \[3, 5, 24\]"):
        decoder(x, torch.randn(3, 5, 24))
    with pytest.raises(UserError, match=r"memory_key_padding_mask: expected bool \[2, 5\]"):
        decoder(x, memory, memory_key_padding_mask=torch.ones(2, 6, dtype=torch.bool))
    with pytest.raises(UserError, match="one step takes one token"):
        decoder.forward_one_step(x, memory)


@pytest.mark.parametrize("position", ["sinusoidal", "learned", "rotary"])
def test_past_max_seq_len_there_is_a_clear_error(position: str) -> None:
    decoder = TransformerDecoder(3, 2, **SMALL, position=position, max_seq_len=4)
    memory, state = torch.randn(1, 5, 24), {}
    with pytest.raises(ValueError, match="5 tokens is longer than max_seq_len=4"):
        decoder(torch.randn(1, 5, 3), memory)
    for _ in range(4):
        _, state = decoder.forward_one_step(torch.randn(1, 1, 3), memory, state)
    with pytest.raises(ValueError, match="5 tokens is longer than max_seq_len=4"):
        decoder.forward_one_step(torch.randn(1, 1, 3), memory, state)


def test_two_modules_start_apart_and_a_seed_repeats_them() -> None:
    torch.manual_seed(1)
    a, b = TransformerEncoder(3, **SMALL), TransformerEncoder(3, **SMALL)
    torch.manual_seed(1)
    again = TransformerEncoder(3, **SMALL)
    weight = "layers.0.self_attention.query_key_value"
    assert not torch.equal(a.get_parameter(weight), b.get_parameter(weight))
    assert torch.equal(a.get_parameter(weight), again.get_parameter(weight))


def test_a_norm_callable_must_make_a_module() -> None:
    config = TransformerConfig(**SMALL, use_adaptive_ln=lambda d: d)
    with pytest.raises(TypeError, match="made a int, not a module"):
        EncoderLayer(config)


@pytest.mark.parametrize(
    "norm",
    [
        nn.RMSNorm,
        nn.LayerNorm,
        lambda d: Scaled(d),
        lambda d: Rowwise(functools.partial(nn.GroupNorm, 1), d),
    ],
)
def test_any_module_can_be_the_norm(norm: Any) -> None:
    encoder = TransformerEncoder(3, use_adaptive_ln=norm, **SMALL)
    y = encoder(torch.randn(2, 5, 3))
    assert y.isfinite().all() and y.std() > 0.1


class Scaled(nn.Module):
    """Without reset_parameters."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Rowwise(nn.Module):
    """Around a norm that takes [N, d]."""

    def __init__(self, norm: Callable[[int], nn.Module], d_model: int) -> None:
        super().__init__()
        self.norm = norm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, 1)).view_as(x)


@pytest.mark.parametrize(
    "values",
    [
        [[[24.0, 0.0]]],
        [[[0.0, -1.0]]],
        [[[3.5, 0.0]]],
        [[[1.0]]],
    ],
)
def test_wrong_time_features_are_named(values: list[Any]) -> None:
    encoder = TransformerEncoder(3, **SMALL, time_feature_sizes=(24, 7))
    with pytest.raises(UserError, match="time_features: "):
        encoder(torch.randn(1, 1, 3), time_features=torch.tensor(values))
    with pytest.raises(UserError, match="needs their values"):
        encoder(torch.randn(1, 1, 3))


@pytest.mark.parametrize("att_type", ["standard", "xformer", "flash", "frequency"])
def test_what_lies_under_padding_does_not_matter(att_type: str) -> None:
    encoder = TransformerEncoder(3, **SMALL, att_type=att_type).eval()
    x, padding = torch.randn(2, 9, 3), torch.arange(9).expand(2, 9) >= 6
    answers = [
        encoder(x.masked_fill(padding.unsqueeze(-1), fill), padding)[:, :6]
        for fill in (0.0, float("nan"))
    ]
    assert torch.equal(*answers)
    if att_type == "frequency":
        return
    decoder = TransformerDecoder(3, 1, **SMALL, att_type=att_type).eval()
    memory = torch.randn(2, 9, SMALL["d_model"])
    answers = [
        decoder(
            x.nan_to_num(),
            memory.masked_fill(padding.unsqueeze(-1), fill),
            memory_key_padding_mask=padding,
        )
        for fill in (0.0, float("nan"))
    ]
    assert torch.equal(*answers)


def test_a_state_of_plain_dicts_goes_on() -> None:
    decoder = TransformerDecoder(3, 1, **SMALL).eval()
    x, memory = torch.randn(2, 4, 3), torch.randn(2, 5, SMALL["d_model"])
    state: dict[str, Any] = {}
    for t in range(2):
        _, state = decoder.forward_one_step(x[:, t : t + 1], memory, state)
    order = torch.tensor([1, 0])
    turned = {
        "layers": [
            {name: {k: v[order] for k, v in held.items()} for name, held in layer.items()}
            for layer in state["layers"]
        ]
    }
    y, _ = decoder.forward_one_step(x[order, 2:3], memory[order], turned)
    torch.testing.assert_close(y, decoder(x[order, :3], memory[order])[:, 2:3])


def test_a_state_of_something_else_is_refused() -> None:
    decoder = TransformerDecoder(3, 1, **SMALL).eval()
    memory = torch.randn(2, 5, SMALL["d_model"])
    _, state = decoder.forward_one_step(torch.randn(2, 1, 3), memory, {})
    for wrong in (memory[:1], memory[:, :4]):
        with pytest.raises(UserError, match="it is of 2 sequences over a memory of 5"):
            decoder.forward_one_step(torch.randn(len(wrong), 1, 3), wrong, state)
    deeper = TransformerDecoder(3, 1, **{**SMALL, "num_layers": 3}).eval()
    with pytest.raises(UserError, match="it has 2 layers, and this decoder 3"):
        deeper.forward_one_step(torch.randn(2, 1, 3), memory, state)


@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 5)])
def test_inputs_of_the_wrong_shape_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"src: expected \[B, T, input_size=3\]"):
        TransformerEncoder(3, **SMALL)(torch.randn(shape))


def test_a_condition_of_each_sequence() -> None:
    norm, x, condition = (
        AdaptiveNorm(16, condition_size=4),
        torch.randn(5, 5, 16),
        torch.randn(5, 4),
    )
    initialise(norm, 0)
    assert norm.condition is not None
    nn.init.normal_(norm.condition)
    torch.testing.assert_close(norm(x, condition)[2], norm(x[2], condition[2]))
