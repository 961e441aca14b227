"""Charts of an evaluation, as SVG.

Shapes: L points of the past that are shown, H points of the horizon.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from model.sentences import drawn
from trainer.data.arrays import Doubles
from trainer.forecast.expert_load import ExpertLoad
from trainer.forecast.scores import MODEL, Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS = "#1668c7"
OTHERS = ("#e0a030", "#7a8a99", "#4f9d69", "#b0578d")
TRUTH = "#444"

MAX_TICKS = 8
"""Experts whose numbers stand below a map."""


@dataclass(frozen=True)
class PicturedWindow:
    """A channel of a window and what was forecast of it, in the source's units."""

    title: str
    times: Any
    """Times or numbers of the points [L + H]."""
    past: Doubles
    """[L]"""
    truth: Doubles
    """[H], NaN where missing."""
    forecast: Doubles
    """[H]"""
    interval: tuple[Doubles, Doubles] | None
    """Lowest and highest quantile [H]."""
    baseline: tuple[str, Doubles]
    """Name and forecast [H] of the first forecast without training."""


def errors_by_step(evaluation: Evaluation) -> str:
    """Return the mean absolute error of each forecast over the horizon's steps."""
    figure, (ax,) = _figure(1, 9, 3.2)
    others = iter(OTHERS * len(evaluation.names))
    for name, scores in evaluation.by_step().items():
        steps = np.arange(1, evaluation.horizon + 1)
        is_ours = name == MODEL
        style: dict[str, Any] = {"color": OURS if is_ours else next(others)}
        style |= {"lw": 2.2 if is_ours else 1.2, "marker": "o" if len(steps) == 1 else None}
        ax.plot(steps, scores["mae"], label=name, **style)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("points ahead")
    ax.set_ylabel("MAE")
    ax.legend(frameon=False, fontsize=8)
    return _svg(figure)


def calibration(evaluation: Evaluation) -> str:
    """Return how often the truth is below each quantile, and in the interval by the step."""
    figure, (left, right) = _figure(2, 9, 3.2)
    below = evaluation.below()
    left.plot([0, 1], [0, 1], color="#bbb", lw=1)
    left.plot(list(below), list(below.values()), color=OURS, lw=2, marker="o", ms=4)
    left.set_xlabel("quantile")
    left.set_ylabel("share of points below it")
    left.set_aspect("equal")
    covered, coverage = evaluation.by_step()[MODEL].get("covered"), evaluation.coverage()
    if covered is None or coverage is None:
        right.set_axis_off()
    else:
        steps = np.arange(1, evaluation.horizon + 1)
        right.axhline(coverage[0], color="#bbb", lw=1)
        right.plot(steps, covered, color=OURS, lw=2, marker="o" if len(steps) == 1 else None)
        right.set_ylim(0, 1)
        right.set_xlabel("points ahead")
        right.set_ylabel(f"share in the {coverage[0]:.0%} interval")
    return _svg(figure)


def windows(pictured: Sequence[PicturedWindow]) -> str:
    """Return windows beside each other."""
    figure, axes = _figure(len(pictured), 3.4 * max(2, len(pictured)), 2.9)
    for ax, one in zip(axes, pictured, strict=True):
        known = len(one.past)
        name, naive = one.baseline
        ax.plot(one.times[:known], one.past, color=TRUTH, lw=1)
        ahead = one.times[known - 1 :]
        start = one.past[-1:]
        if one.interval is not None:
            low, high = (np.concatenate([start, end]) for end in one.interval)
            ax.fill_between(ahead, low, high, color=OURS, alpha=0.2, label="interval")
        for label, values, color, width in (
            ("truth", one.truth, TRUTH, 1.0),
            (name, naive, OTHERS[0], 1.0),
            (MODEL, one.forecast, OURS, 1.8),
        ):
            ax.plot(ahead, np.concatenate([start, values]), label=label, color=color, lw=width)
        ax.set_title(drawn(one.title), fontsize=8, loc="left")
        ax.tick_params(axis="x", rotation=30, labelsize=7)
    axes[0].legend(frameon=False, fontsize=7)
    return _svg(figure)


def training_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    """Return curves over the steps of training: name -> steps and values."""
    figure, axes = _figure(len(curves), 4.5 * max(2, len(curves)), 2.9)
    for ax, (name, (steps, values)) in zip(axes, curves.items(), strict=True):
        ax.plot(steps, values, color=OURS, lw=1.2)
        ax.set_title(name, fontsize=9, loc="left")
        ax.set_xlabel("step")
    return _svg(figure)


def load_of_experts(load: ExpertLoad) -> str:
    """Return the share of each expert, a map for each layer with a row for each interval."""
    layers, intervals, experts = load.share.shape
    columns = min(layers, 4)
    rows = -(-layers // columns)
    height = rows * (0.28 * intervals + 0.9)
    figure, axes = _figure(columns, 9, height, rows=rows)
    top = float(max(load.share.max(), 1 / experts))
    for place, ax in enumerate(axes):
        if place >= layers:
            ax.set_axis_off()
            continue
        ax.imshow(load.share[place], vmin=0, vmax=top, cmap="Blues", aspect="auto")
        ax.set_title(load.layers[place], fontsize=7, loc="left")
        ax.set_xlabel("expert", fontsize=7)
        labels = load.intervals if place % columns == 0 else [""] * intervals
        ax.set_yticks(range(intervals), labels, fontsize=7)
        ax.set_xticks(range(0, experts, -(-experts // MAX_TICKS)))
        ax.tick_params(axis="x", labelsize=7)
    return _svg(figure)


def _figure(count: int, width: float, height: float, *, rows: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure  # slow to import, and few commands draw

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = [*figure.subplots(rows, count, squeeze=False).flat]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "forescale"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
