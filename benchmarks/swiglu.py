"""SwiGLU as most code writes it: a peer of ours, and the expert of other libraries' mixtures."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class PlainSwiGLU(nn.Module):
    """SwiGLU as most code writes it, with three matrices."""

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, width, bias=False)
        self.value = nn.Linear(d_model, width, bias=False)
        self.output = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.silu(self.gate(x)) * self.value(x))
