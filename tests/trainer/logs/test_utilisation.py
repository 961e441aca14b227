"""What a step's row says of the hardware."""

from __future__ import annotations

import resource

import pytest
import torch

from model.flops import forward_flops
from model.network import TimeSeriesTransformer
from model.network_config import ModelConfig, SeriesShape
from tests.settings import tiny
from trainer.logs.utilisation import StepWork, Utilisation, peak_tflops


@pytest.mark.parametrize(
    ("card", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA A1000", None),
        ("Some other card", None),
    ],
)
def test_a_card_s_peak_is_known_by_its_name(card: str, peak: float | None) -> None:
    assert peak_tflops(card) == peak


def test_a_row_counts_operations_by_rank_and_time() -> None:
    work = StepWork(tokens=100, points=1000, flops=8e12)
    row = Utilisation(ranks=4, device=torch.device("cpu")).row(work, 0.5)
    assert (row["step_seconds"], row["tokens_per_second"], row["points_per_second"]) == (
        0.5,
        200.0,
        2000.0,
    )
    assert row["tflops_per_rank"] == pytest.approx(4.0)
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert 0 < row["host_memory_gib"] <= now
    assert "mfu" not in row and "device_memory_gib" not in row


def test_the_backward_pass_costs_two_forward_passes() -> None:
    """Compare the formula with what torch counts of a step of a network without attention masks."""
    from torch.utils.flop_counter import FlopCounterMode

    config = ModelConfig.model_validate(
        {**tiny().settings.model.model_dump(exclude={"init_from"}), "use_moe": False}
    )
    shape = SeriesShape(96, 32, channels=2, covariates=0, missing=False)
    network = TimeSeriesTransformer(config, shape)
    context, target = torch.randn(4, 96, 2), torch.randn(4, 32, 2)
    inputs = network.inputs(context, torch.zeros(4, 128, 0), target)
    with FlopCounterMode(display=False) as counter:
        network.loss(network(inputs), (target, context)).backward()
    ours = 4 * 3 * sum(forward_flops(network, layer) for layer in network.layers())
    # The first products need no gradient of their inputs.
    assert 0.9 * ours < counter.get_total_flops() <= ours
