"""How fast series are made, and what they look like.

    .venv/bin/python -m benchmarks.synthetic [--quick] [--picture FILE]

One process makes series of 1,024 points. A rank that trains 64 windows a step at ten steps a second
would need 640 of them a second if each window were of another series.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.timing import print_header, print_table
from trainer.config.data_settings import SyntheticConfig
from trainer.data.synthetic.synthetic_set import SyntheticSet

KINDS = ("gaussian_process", "structured", "intermittent", "coupled")
CHANNELS = {"coupled": 3}
LENGTH = 1024


def made(kind: str) -> SyntheticSet:
    """Return a source of series of a kind."""
    return SyntheticSet(SyntheticConfig(kind=kind, length=LENGTH, channels=CHANNELS.get(kind, 1)))


def draw(file: Path, count: int = 4) -> None:
    """Write a picture of the first series of each kind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * count, 1.7 * len(KINDS)), layout="constrained")
    axes = figure.subplots(len(KINDS), count)
    for row, kind in enumerate(KINDS):
        for column in range(count):
            values = made(kind).target(column)
            scale = values.std(1, keepdims=True) + 1e-9
            axes[row][column].plot(((values - values.mean(1, keepdims=True)) / scale).T, lw=0.7)
            axes[row][column].set(xticks=[], yticks=[])
        axes[row][0].set_ylabel(kind.replace("_", " "))
    figure.savefig(file, dpi=80)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser("benchmarks.synthetic", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of a second for each kind")
    parser.add_argument("--picture", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    print_header("Made series")
    rows = []
    for kind in KINDS:
        series, count = made(kind), 0
        began = time.perf_counter()
        while time.perf_counter() - began < (0.1 if arguments.quick else 3.0):
            series.target(count)
            count += 1
        rows.append([kind, f"{count / (time.perf_counter() - began):,.0f}"])
    print_table(["kind", f"series of {LENGTH:,} points a second"], rows)
    if arguments.picture is not None:
        draw(arguments.picture)


if __name__ == "__main__":
    main()
