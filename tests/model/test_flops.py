"""The formula for operations against those that torch counts."""

from __future__ import annotations

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.flops import forward_flops
from tests.model.networks import inputs, network


@pytest.mark.parametrize("changes", [{}, {"channels": "grouped", "num_layers": 2}])
def test_flops_are_those_that_torch_counts(changes: dict[str, object]) -> None:
    net = network(use_moe=False, **changes)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        net(inputs(batch=2))
    ours = 2 * sum(forward_flops(net, layer) for layer in net.layers())
    assert ours == pytest.approx(counter.get_total_flops(), rel=1e-6)
