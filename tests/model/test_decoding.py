"""Step-by-step decoding against full forwards, and its state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from forescale import TransformerDecoder, reorder
from model.decoding import KeyValueCache
from model.errors import UserError
from tests.model.options import CAUSAL, SMALL


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


def test_a_reordered_state_continues_the_right_sequences() -> None:
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


def test_replaced_tensors_of_a_state_are_used() -> None:
    decoder = TransformerDecoder(3, 2, **SMALL).eval()
    memory, x = torch.randn(2, 5, 24), torch.randn(2, 6, 3)
    full = decoder(x, memory)
    state: dict[str, Any] = {}
    for t in range(6):
        step, state = decoder.forward_one_step(x[:, t : t + 1], memory, state)
        for layer in state["layers"]:
            for cache in layer.values():
                for name in ("key", "value"):
                    cache[name] = cache[name].clone()
    assert (step - full[:, 5:]).abs().max() < 1e-5


def test_a_state_of_plain_dicts_continues() -> None:
    decoder = TransformerDecoder(3, 1, **SMALL).eval()
    x, memory = torch.randn(2, 4, 3), torch.randn(2, 5, SMALL["d_model"])
    state: dict[str, Any] = {}
    for t in range(2):
        _, state = decoder.forward_one_step(x[:, t : t + 1], memory, state)
    order = torch.tensor([1, 0])
    layers = [
        {name: {k: v[order] for k, v in cache.items()} for name, cache in layer.items()}
        for layer in state["layers"]
    ]
    y, _ = decoder.forward_one_step(x[order, 2:3], memory[order], {"layers": layers})
    torch.testing.assert_close(y, decoder(x[order, :3], memory[order])[:, 2:3])


def test_the_state_of_another_decoder_or_memory_is_refused() -> None:
    decoder = TransformerDecoder(3, 1, **SMALL).eval()
    memory = torch.randn(2, 5, SMALL["d_model"])
    _, state = decoder.forward_one_step(torch.randn(2, 1, 3), memory, {})
    for wrong in (memory[:1], memory[:, :4]):
        with pytest.raises(UserError, match="are of 2 sequences"):
            decoder.forward_one_step(torch.randn(len(wrong), 1, 3), wrong, state)
    deeper = TransformerDecoder(3, 1, **{**SMALL, "num_layers": 3}).eval()
    with pytest.raises(UserError, match="it has 2 layers, and this decoder 3"):
        deeper.forward_one_step(torch.randn(2, 1, 3), memory, state)


def test_a_step_that_fails_leaves_the_state_as_it_was() -> None:
    decoder = TransformerDecoder(3, 1, **SMALL, max_seq_len=3).eval()
    memory, x = torch.randn(2, 5, 24), torch.randn(2, 3, 3)
    full = decoder(x, memory)
    state: dict[str, Any] = {}
    last = decoder.layers[-1].feed_forward
    for t in range(3):
        before = copy.deepcopy(state)
        hook = last.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("late")))
        with pytest.raises(RuntimeError, match="late"):
            decoder.forward_one_step(x[:, t : t + 1] + 1, memory, state)
        hook.remove()
        assert set(before) == set(state)
        for ours, theirs in zip(state.get("layers", []), before.get("layers", []), strict=True):
            for name, cache in ours.items():
                assert all(torch.equal(cache[k], theirs[name][k]) for k in ("key", "value"))
        step, state = decoder.forward_one_step(x[:, t : t + 1], memory, state)
        assert (step - full[:, t : t + 1]).abs().max() < 1e-5
    with pytest.raises(ValueError, match=r"max_seq_len: .* longer than 3"):
        decoder.forward_one_step(x[:, :1], memory, state)
    assert state["layers"][0]["self_attn"]["key"].shape[1] == 3


@pytest.mark.parametrize("position", ["sinusoidal", "rotary"])
def test_a_state_of_another_memory_of_the_same_size_is_refused(position: str) -> None:
    decoder = TransformerDecoder(3, 1, **SMALL, position=position).eval()
    memory, token = torch.randn(2, 5, 24), torch.randn(2, 1, 3)
    _, state = decoder.forward_one_step(token, memory, {})
    other = memory.clone()
    other[1, 4] += 1.0
    with pytest.raises(UserError, match="it belongs to another memory of the same size"):
        decoder.forward_one_step(token, other, state)
    first, _ = decoder.forward_one_step(token, memory.clone(), copy.deepcopy(state))
    second, _ = decoder.forward_one_step(token, memory, state)
    assert torch.equal(first, second)
