"""The library's classes in other people's programs: threads, scalers, own modules, own loops."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forescale import DecoderOnlyTransformer, TransformerDecoder, TransformerEncoder, UserError
from model.attention import CrossAttention, SelfAttention
from model.config import TransformerConfig
from model.embedding import CalendarEmbedding, ChannelEmbedding, Positions
from model.feedforward import MLP, SwiGLU
from model.layers import BaseTransformerLayer, DecoderLayer, EncoderLayer
from model.moe import MixtureOfExperts
from model.norm import AdaptiveNorm, RMSNorm
from tests.model.options import CAUSAL, SMALL

MOE: dict[str, Any] = {"use_moe": True, "num_experts": 4, "balance_loss": 0.5}
CONFIG = TransformerConfig(
    d_model=24, nhead=4, dim_feedforward=48, use_adaptive_ln="adaptive", position="learned"
)
EXPERTS = CONFIG.model_copy(update={**MOE, "balance_rate": 0.1, "shared_expert": True})


def switches() -> tuple[bool, ...]:
    """Return the switches by which this process chooses attention kernels."""
    cuda = torch.backends.cuda
    return cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()


def test_models_in_two_threads_do_not_change_each_others_kernels() -> None:
    before, seen = switches(), set()
    models = [TransformerEncoder(3, **SMALL, att_type=t).eval() for t in ("flash", "standard")]
    x = torch.randn(4, 64, 3)
    expected = [model(x) for model in models]
    wrong = []
    done = threading.Event()

    def run(model: nn.Module, result: Tensor) -> None:
        for _ in range(20):
            with torch.no_grad():
                wrong.append(not torch.equal(model(x), result))

    def watch() -> None:
        while not done.is_set():
            seen.add(switches())

    threads = [
        threading.Thread(target=run, args=pair) for pair in zip(models, expected, strict=True)
    ]
    watcher = threading.Thread(target=watch)
    watcher.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    watcher.join()
    assert not any(wrong) and len(wrong) == 40
    assert seen == {before}


MODULES: dict[str, Callable[[], nn.Module]] = {
    "RMSNorm": lambda: RMSNorm(24),
    "AdaptiveNorm": lambda: AdaptiveNorm(24, condition_size=3),
    "MLP": lambda: MLP(CONFIG),
    "SwiGLU": lambda: SwiGLU(CONFIG),
    "MixtureOfExperts": lambda: MixtureOfExperts(EXPERTS),
    "SelfAttention": lambda: SelfAttention(CONFIG),
    "frequency": lambda: SelfAttention(CONFIG, "frequency"),
    "CrossAttention": lambda: CrossAttention(CONFIG),
    "BaseTransformerLayer": lambda: BaseTransformerLayer(CONFIG),
    "EncoderLayer": lambda: EncoderLayer(EXPERTS),
    "DecoderLayer": lambda: DecoderLayer(CONFIG),
    "Positions": lambda: Positions(CONFIG),
    "ChannelEmbedding": lambda: ChannelEmbedding(3, 24),
    "CalendarEmbedding": lambda: CalendarEmbedding((24, 7), 24),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_by_itself_starts_by_the_seed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is filled with something else first, as it may be."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(MODULES[name]().state_dict())
    for key, value in states[0].items():
        assert value.isfinite().all(), key
        assert torch.equal(value, states[1][key]), key
    random = [key for key, value in states[0].items() if float(value.float().std()) > 0]
    assert all(not torch.equal(states[0][key], states[2][key]) for key in random)
    assert random or name in ("RMSNorm", "AdaptiveNorm")


def test_a_users_own_norm_keeps_how_it_starts() -> None:
    class Gentle(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.inner = nn.LayerNorm(size)
            nn.init.constant_(self.inner.weight, 0.1)
            self.linear = nn.Linear(size, size)
            nn.init.eye_(self.linear.weight)

        def reset_parameters(self) -> None:
            raise AssertionError("it has started already")

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.inner(x))

    def damped(size: int) -> nn.Module:
        norm = RMSNorm(size)
        nn.init.constant_(norm.weight, 0.3)
        return norm

    gentle = TransformerEncoder(3, **SMALL, use_adaptive_ln=Gentle).final_norm
    assert (gentle.inner.weight == 0.1).all() and torch.equal(gentle.linear.weight, torch.eye(24))
    assert (TransformerEncoder(3, **SMALL, use_adaptive_ln=damped).final_norm.weight == 0.3).all()


def gradients(model: nn.Module, scale: float = 1.0) -> dict[str, Tensor]:
    """Return the gradients of a model after a backward pass, divided by `scale`."""
    return {n: p.grad / scale for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("option", ["", "share_layers", "use_gradient_checkpointing"])
def test_the_auxiliary_loss_is_the_users_to_add_under_any_scale(option: str) -> None:
    """With torch.amp.GradScaler's factor the router's gradients are the same after unscaling."""
    options = {option: True} if option else {}
    model = TransformerEncoder(3, **SMALL, **MOE, dropout=0.0, **options).double()
    x = torch.randn(4, 9, 3, dtype=torch.float64)
    found = []
    for scale in (1.0, 65536.0):
        model.zero_grad()
        ((model(x).square().mean() + model.aux_loss()) * scale).backward()
        found.append(gradients(model, scale))
    model.zero_grad()
    model(x).square().mean().backward()
    without = gradients(model)
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-9, atol=0.0)
        if name.endswith("router.weight"):
            assert not torch.allclose(gradient, without[name], rtol=0.1)


def test_an_auxiliary_loss_that_is_left_out_or_not_there_is_noticed() -> None:
    model, x = TransformerEncoder(3, **SMALL, **MOE), torch.randn(2, 5, 3)
    with pytest.raises(UserError, match="no forward in training since"):
        model.aux_loss()
    model(x)
    with pytest.warns(UserWarning, match=r"was left out: add aux_loss\(\) to the loss, or set"):
        model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)  # once is enough
    assert float(TransformerEncoder(3, **SMALL).aux_loss()) == 0.0
    model.eval()
    model(x)
    with pytest.raises(UserError, match="no forward in training since"):
        model.aux_loss()


def test_a_model_is_copied_and_pickled_while_it_trains() -> None:
    model, x = TransformerEncoder(3, **SMALL, **MOE, dropout=0.0), torch.randn(2, 5, 3)
    model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.eval()(x), copy.deepcopy(model).eval()(x))


def test_rebalancing_moves_the_biases() -> None:
    torch.manual_seed(1)
    model = TransformerEncoder(3, **SMALL, use_moe=True, balance_loss=0.0, balance_rate=0.25)
    model(torch.randn(4, 9, 3))
    model.rebalance()
    bias = model.layers[0].feed_forward.router.bias
    assert set(bias.abs().tolist()) <= {0.0, 0.25} and bias.abs().sum() > 0
    before = bias.clone()
    model.rebalance()  # nothing was computed since
    assert torch.equal(before, bias)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 16}, "num_experts has no effect with use_moe: false"),
        ({"balance_rate": 0.1}, "balance_rate has no effect with use_moe: false"),
        ({"freq_modes": 5}, "freq_modes has no effect with no frequency attention"),
        ({"decoder_att_type": "flash"}, "decoder_att_type has no effect in this class"),
    ],
)
def test_options_without_effect_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        TransformerEncoder(3, **SMALL, **options)


def test_masks_mean_what_they_mean_to_torch() -> None:
    """Bool and float, by sequence and head, in the places that nn.TransformerEncoder has."""
    model = TransformerEncoder(3, **SMALL).eval()
    x = torch.randn(8, 8, 3)  # as many sequences as tokens: nothing is told by the shape
    causal = torch.ones(8, 8, dtype=torch.bool).triu(1)
    floats = torch.zeros(8, 8).masked_fill(causal, float("-inf"))
    expected = model(x, causal)
    other = x.clone()
    other[:, 5:] = 9.0
    assert torch.equal(model(other, causal)[:, :5], expected[:, :5])
    for same in (floats, causal.expand(8, 8, 8), floats.expand(32, 8, 8), causal.expand(32, 8, 8)):
        torch.testing.assert_close(model(x, same), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(x, is_causal=True), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(x, causal, is_causal=True), expected, rtol=1e-5, atol=1e-6)
    padding = torch.arange(8) >= torch.arange(1, 9).unsqueeze(1)
    as_floats = torch.zeros(8, 8).masked_fill(padding, float("-inf"))
    hidden = model(x, src_key_padding_mask=padding)
    assert torch.equal(model(x, src_key_padding_mask=as_floats), hidden)
    assert not torch.allclose(model(x, padding), hidden)  # a mask of queries comes first


@pytest.mark.parametrize("att_type", ["standard", "xformer", "flash"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_floats_are_added_to_the_scores(att_type: Any, is_causal: bool) -> None:
    """A bias by distance, by head (Press et al. 2022, ALiBi), beside padding; in fp64."""
    torch.manual_seed(2)
    config = TransformerConfig(d_model=16, nhead=2, att_type=att_type)
    attention = SelfAttention(config).double()
    x = torch.randn(3, 150, 16, dtype=torch.float64, requires_grad=True)
    distance = (torch.arange(150).unsqueeze(1) - torch.arange(150)).abs()
    bias = (-distance * torch.tensor([0.1, 0.5]).view(2, 1, 1)).double().expand(3, 2, 150, 150)
    bias = bias.masked_fill((torch.arange(150) >= 120).expand(3, 2, 150, 150), float("-inf"))
    y = attention(x, bias, is_causal)
    q, k, v = (attention.query_key_value[:, i] for i in range(3))
    q, k, v = (torch.einsum("btd,hed->bhte", x, w) for w in (q, k, v))
    scores = q @ k.transpose(-2, -1) / 8**0.5 + bias
    if is_causal:
        scores = scores.masked_fill(torch.ones(150, 150).triu(1).bool(), float("-inf"))
    expected = torch.einsum("bhte,dhge->btd", scores.softmax(-1) @ v, attention.output)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    (ours,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_memory_mask_hides_memory() -> None:
    decoder = TransformerDecoder(3, 2, **SMALL).eval()
    x, memory = torch.randn(2, 6, 3), torch.randn(2, 9, 24)
    hidden = (torch.arange(9) >= 4).expand(6, 9)
    expected = decoder(x, memory[:, :4])
    torch.testing.assert_close(decoder(x, memory, memory_mask=hidden), expected)
    other = decoder(x, memory, tgt_is_causal=True, memory_mask=hidden)
    torch.testing.assert_close(other, expected)


@pytest.mark.parametrize("options", CAUSAL, ids=str)
def test_a_decoder_only_transformer_steps_as_it_computes(options: dict[str, Any]) -> None:
    options = {**options, "capacity_factor": None}
    model = DecoderOnlyTransformer(3, 2, **SMALL, **options).eval()
    x = torch.randn(2, 70, 3)
    full = model(x)
    assert full.shape == (2, 70, 2)
    other = x.clone()
    other[:, 40:] = 9.0
    torch.testing.assert_close(model(other)[:, :40], full[:, :40], rtol=1e-5, atol=1e-6)
    state: dict[str, Any] = {}
    for t in range(70):
        step, state = model.forward_one_step(x[:, t : t + 1], state)
        assert (step - full[:, t : t + 1]).abs().max() < 1e-5, t


def test_a_decoder_only_transformer_refuses_what_cannot_be() -> None:
    with pytest.raises(UserError, match="use standard, xformer or flash"):
        DecoderOnlyTransformer(3, 2, **SMALL, att_type="frequency")
    model = DecoderOnlyTransformer(3, 2, **SMALL).eval()
    decoder = TransformerDecoder(3, 2, **SMALL).eval()
    _, state = decoder.forward_one_step(torch.randn(2, 1, 3), torch.randn(2, 5, 24))
    with pytest.raises(UserError, match="it is of a decoder that has a memory"):
        model.forward_one_step(torch.randn(2, 1, 3), state)
    _, state = model.forward_one_step(torch.randn(2, 1, 3))
    with pytest.raises(UserError, match="it is of a decoder that has no memory"):
        decoder.forward_one_step(torch.randn(2, 1, 3), torch.randn(2, 5, 24), state)
    with pytest.raises(UserError, match="of 2 sequences and 1 tokens so far, and the call of 3"):
        model.forward_one_step(torch.randn(3, 1, 3), state)


def test_the_encoder_refuses_a_causal_order_that_it_cannot_keep() -> None:
    with pytest.raises(UserError, match="is_causal: frequency attention sees all"):
        TransformerEncoder(3, **SMALL, att_type="frequency")(torch.randn(1, 4, 3), is_causal=True)
    with pytest.raises(UserError, match="takes no mask per query and none of floats"):
        mask = torch.zeros(4, 4)
        TransformerEncoder(3, **SMALL, att_type="frequency")(torch.randn(1, 4, 3), mask)
