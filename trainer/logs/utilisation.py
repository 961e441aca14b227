"""How much of the hardware a step uses: operations a second, and memory at its peak."""

from __future__ import annotations

import resource
from dataclasses import dataclass

import torch

from trainer.logs.metrics import Row

PEAK_TFLOPS = {
    "A10": 125.0,
    "A100": 312.0,
    "B200": 2250.0,
    "B300": 2250.0,
    "GB200": 2500.0,
    "GB300": 2500.0,
    "GH200": 989.0,
    "H100": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H200": 989.0,
    "H800": 989.0,
    "L4": 121.0,
    "L40S": 362.0,
}
"""Card -> the 10^12 operations a second of dense bf16 products that its datasheet promises."""

GIB = 2**30


def peak_tflops(card: str) -> float | None:
    """Return the peak of a card by its name, such as "NVIDIA H100 80GB HBM3"; None if unknown."""
    words = card.replace("-", " ").split()
    known = [name for name in PEAK_TFLOPS if set(name.split()) <= set(words)]
    return PEAK_TFLOPS[max(known, key=len)] if known else None


@dataclass(frozen=True)
class StepWork:
    """What all ranks together do in an optimizer step."""

    tokens: int
    points: int
    """Points of all windows and their channels, context and future."""
    flops: float
    """Operations of the model by formula, forward and backward; recomputation does not count."""


class Utilisation:
    """Computes what a step's row says of its speed and of the main rank's hardware."""

    def __init__(self, ranks: int, device: torch.device) -> None:
        self._ranks, self._device = ranks, device
        self._peak: float | None = None
        if device.type == "cuda":
            self._peak = peak_tflops(torch.cuda.get_device_name(device))

    def row(self, work: StepWork, seconds: float) -> Row:
        """Return the numbers of a step whose work the ranks have divided, and that took `seconds`.

        mfu is the operations' share of the card's peak (Chowdhery et al. 2022, appendix B). Memory
        is in GiB: the device's peak in this step, the host's since the start.
        """
        rate = work.flops / self._ranks / seconds / 1e12
        row: Row = {
            "step_seconds": seconds,
            "tokens_per_second": work.tokens / seconds,
            "points_per_second": work.points / seconds,
            "tflops_per_rank": rate,
            "host_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
        }
        if self._peak is not None:
            row["mfu"] = rate / self._peak
        if self._device.type == "cuda":
            row["device_memory_gib"] = torch.cuda.max_memory_allocated(self._device) / GIB
            torch.cuda.reset_peak_memory_stats(self._device)
        return row
