"""torch.compile, torch.export and torch.func on the library's classes, against plain forwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from forescale import TransformerDecoder, TransformerEncoder
from tests.model.options import OPTIONS, SMALL

MOE = {"use_moe": True, "num_experts": 4, "capacity_factor": 1.0, "shared_expert": True}
FLASH = {"att_type": "flash", "use_adaptive_ln": "rms", "num_kv_heads": 2}
FREQUENCY = {"att_type": "frequency", "freq_modes": 4}


def encoder(**options: Any) -> TransformerEncoder:
    sizes = {**SMALL, "num_layers": 1, "dropout": 0.0}
    return TransformerEncoder(3, **{**sizes, **options, "drop_path": 0.0, "attention_dropout": 0.0})


def loss_of(model: TransformerEncoder, run: Any, x: Tensor) -> Tensor:
    loss: Tensor = run(x).square().mean() + model.aux_loss()
    return loss


@pytest.mark.parametrize("options", [{**FLASH, **MOE}, FREQUENCY], ids=["moe", "frequency"])
def test_it_compiles_as_one_graph(options: dict[str, Any]) -> None:
    model, x = encoder(**options), torch.randn(3, 20, 3)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for run in (model, compiled):
        model.zero_grad()
        loss = loss_of(model, run, x)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for plain, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{**FLASH, **MOE}, FREQUENCY], ids=["moe", "frequency"])
def test_it_is_exported_for_any_batch_and_length(options: dict[str, Any]) -> None:
    model = encoder(**options).eval()
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (torch.randn(3, 20, 3),), dynamic_shapes={"src": sizes})
    x = torch.randn(7, 33, 3)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_strict", [False, True])
def test_a_decoder_over_a_memory_is_exported_for_any_batch_and_lengths(is_strict: bool) -> None:
    options = {**SMALL, **FLASH, **MOE, "num_layers": 1, "dropout": 0.0, "drop_path": 0.0}
    model = TransformerDecoder(3, 2, **{**options, "attention_dropout": 0.0}).eval()
    width = model.config.d_model
    batch = torch.export.Dim("batch", min=1, max=64)
    lengths = [torch.export.Dim(name, min=2, max=4000) for name in ("length", "seen")]
    program = torch.export.export(
        model,
        (torch.randn(3, 20, 3), torch.randn(3, 11, width)),
        dynamic_shapes={
            "tgt": {0: batch, 1: lengths[0]},
            "memory": {0: batch, 1: lengths[1]},
        },
        strict=is_strict,
    )
    x, memory = torch.randn(7, 33, 3), torch.randn(7, 5, width)
    torch.testing.assert_close(program.module()(x, memory), model(x, memory), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_per_sample_gradients(options: dict[str, Any]) -> None:
    """vmap of grad, for each option, against one backward pass for each sample."""
    model, x = encoder(**options), torch.randn(3, 12, 3)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        def run(rows: Tensor) -> Tensor:
            result: Tensor = functional_call(model, parameters, (rows,))
            return result

        return loss_of(model, run, sample.unsqueeze(0))

    gradients = vmap(grad(loss), (None, 0))(parameters, x)
    for index in range(3):
        model.zero_grad()
        loss_of(model, model, x[index : index + 1]).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            torch.testing.assert_close(
                gradients[name][index], parameter.grad, rtol=1e-4, atol=1e-6, msg=name
            )
