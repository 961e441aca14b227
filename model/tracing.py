"""Whether torch looks at a computation instead of only running it.

Custom backward passes and in-place results save time and memory in training, but torch.compile,
torch.export and the transforms of torch.func differentiate plain formulas themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def is_traced() -> bool:
    """Return whether torch.compile, torch.export or a transform of torch.func is at work."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def is_plain(x: Tensor) -> bool:
    """Return whether `x` is a tensor with elements, not a subclass that only stands for one."""
    return type(x) in (Tensor, nn.Parameter)
