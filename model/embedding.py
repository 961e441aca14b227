"""What is added to tokens: positions, calendar features and channels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import TransformerConfig
from model.constants import constant
from model.errors import UserError
from model.init import Init, start_parameters
from model.patches import Align, to_patches


def sinusoidal(start: int, stop: int, d_model: int, device: torch.device) -> Tensor:
    """Return the encodings of positions start to stop - 1 (Vaswani et al. 2017, section 3.5).

    fp32 [stop - start, d_model].
    """
    position = torch.arange(start, stop, dtype=torch.float32, device=device).unsqueeze(1)
    even = torch.arange(0, d_model, 2, dtype=torch.float32, device=device)
    angle = position * torch.exp(even * (-math.log(10_000.0) / d_model))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :d_model]


class Positions(nn.Module):
    """Adds encodings of positions to tokens; adds nothing where attention rotates."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.kind, self.limit = config.position, config.max_seq_len
        self.table = (
            nn.Parameter(torch.empty(config.max_seq_len, config.d_model))
            if config.position == "learned"
            else None
        )
        start_parameters(self)

    def initial(self) -> Mapping[str, Init]:
        """Return how the module's own parameters start, by name."""
        return {"table": Init(std=0.02)}

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Add positions start, start + 1, ... to x [B, T, d_model].

        Raises UserError past max_seq_len.
        """
        stop = start + x.shape[1]
        if stop > self.limit:
            raise UserError(
                f"max_seq_len: a sequence of {stop} tokens is longer than {self.limit}; "
                "give a larger one, or fewer tokens"
            )
        if self.kind == "rotary":
            return x
        if self.table is not None:
            return x + self.table[start:stop]
        return x + sinusoidal(start, stop, x.shape[2], x.device).to(x.dtype)


class ChannelEmbedding(nn.Module):
    """Learns a vector for each channel."""

    def __init__(self, channels: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, d_model))
        start_parameters(self)

    def initial(self) -> Mapping[str, Init]:
        """Return how the module's own parameters start, by name."""
        return {"weight": Init(std=0.02)}

    def forward(self, rows: int) -> Tensor:
        """Return the channels' vectors, repeated for each sample: [rows, 1, d_model]."""
        return self.weight.repeat(rows // self.weight.shape[0], 1).unsqueeze(1)


class RoleEmbedding(nn.Module):
    """Learns a vector for the channels of a sample that are read and not forecast: its last."""

    def __init__(self, forecast: int, read: int, d_model: int) -> None:
        super().__init__()
        self.counts = forecast, read
        self.weight = nn.Parameter(torch.empty(1, d_model))
        start_parameters(self)

    def initial(self) -> Mapping[str, Init]:
        """Return how the module's own parameters start, by name."""
        return {"weight": Init(std=0.02)}

    def forward(self, rows: int) -> Tensor:
        """Return zeros and the vector, repeated for each sample: [rows, 1, d_model]."""
        forecast, read = self.counts
        each = F.pad(self.weight.expand(read, -1), (0, 0, forecast, 0))
        return each.repeat(rows // (forecast + read), 1).unsqueeze(1)


class CalendarEmbedding(nn.Module):
    """Learns a vector for each value of each calendar feature (Zhou et al. 2021, Informer)."""

    def __init__(self, sizes: Sequence[int], d_model: int) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.firsts = tuple(sum(self.sizes[:i]) for i in range(len(self.sizes)))
        """First row of each feature in the table."""
        self.weight = nn.Parameter(torch.empty(sum(sizes), d_model))
        start_parameters(self)

    def initial(self) -> Mapping[str, Init]:
        """Return how the module's own parameters start, by name."""
        return {"weight": Init(std=0.02)}

    def forward(self, values: Tensor, patch_length: int, *, align: Align) -> Tensor:
        """Return the mean over each patch's points of the sum of their features' vectors.

        values [B, T, len(sizes)], whole numbers from 0 -> [B, patches, d_model].
        """
        index = values.long() + constant(self.firsts, torch.int64, values)
        vectors = F.embedding(index, self.weight).sum(2)
        ones = torch.ones_like(vectors[..., :1])
        count = to_patches(ones, patch_length, align=align).sum(-1, keepdim=True)
        patches = to_patches(vectors, patch_length, align=align)
        return patches.unflatten(-1, (patch_length, -1)).sum(2) / count
