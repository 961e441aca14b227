"""What a set of series holds: counts, lengths, intervals, levels; and a picture of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from model.sentences import drawn
from trainer.data.series_set import SeriesSet
from trainer.files import written

Known = dict[str, Any]

SHOWN_SERIES = 6


def describe_set(folder: Path, *, verify: bool = False) -> Known:
    """Return what is known of a set; `verify` reads every byte. Raises UserError for damage."""
    series = SeriesSet(folder)
    if verify:
        series.verify()
    info, lengths = series.info, series.lengths
    channels = len(info.columns.target)
    present = int(series.present.sum())
    quantiles = np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1]).astype(np.int64).tolist()
    freqs = Counter(series.freqs())
    return {
        "kind": "set",
        "path": str(folder),
        "items": info.items,
        "points": info.points,
        "columns": {
            role: list(getattr(info.columns, role))
            for role in ("target", "known", "past", "static_numbers", "static_categories")
        },
        "dtype": info.dtype,
        "timezone": info.timezone,
        "length_quartiles": quantiles,
        "intervals": {str(freq or "none"): count for freq, count in freqs.most_common()},
        "missing": 1 - present / max(1, info.points * channels),
        "level_quartiles": _quartiles(series.statistics("mean")),
        "deviation_quartiles": _quartiles(series.statistics("deviation")),
        "files": 1 + len(info.shards),
        "bytes": info.index.bytes + sum(shard.bytes for shard in info.shards),
        "digest": series.digest,
        "notes": list(info.notes),
        "contents_verified": verify,
    }


def _quartiles(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
    known = values[np.isfinite(values)]
    return np.quantile(known, [0, 0.25, 0.5, 0.75, 1]).tolist() if len(known) else []


def rows_of(known: Known) -> dict[str, str]:
    """Return the text of a set for people."""
    columns = {role: names for role, names in known["columns"].items() if names}
    lowest, _, middle, _, longest = known["length_quartiles"]
    intervals = [f"{name} ({count:,})" for name, count in known["intervals"].items()]
    by_sums = "every byte by its sum" if known["contents_verified"] else "by its files' sizes"
    rows = {
        "set": known["path"],
        "series": f"{known['items']:,}, {known['points']:,} points in {known['dtype']}",
        "length": f"{lowest:,} to {longest:,}, half have {middle:,} or more",
        "interval": ", ".join(intervals[:8]) + (" and others" if len(intervals) > 8 else ""),
        "missing": f"{100 * known['missing']:.2f} % of the values",
        "level": _span(known["level_quartiles"]),
        "deviation": _span(known["deviation_quartiles"]),
        "size": f"{known['bytes'] / 2**20:.1f} MiB in {known['files']} files",
        "whole": by_sums,
        "digest": known["digest"][:16],
    }
    for role, names in columns.items():
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        rows[role.replace("_", " ")] = ", ".join(names[:8]) + more
    if known["timezone"]:
        rows["time zone"] = known["timezone"]
    for number, note in enumerate(known["notes"], start=1):
        rows[f"note {number}"] = note
    return rows


def _span(quartiles: list[float]) -> str:
    if not quartiles:
        return "none"
    low, _, middle, _, high = quartiles
    return f"{low:.4g} to {high:.4g}, half of the series {middle:.4g} or more"


def draw_set(folder: Path, file: Path) -> None:
    """Write a picture of a set: lengths, intervals, levels, missing shares, and some series."""
    from matplotlib.figure import Figure

    series = SeriesSet(folder)
    figure = Figure(figsize=(12, 9), layout="constrained")
    grid = figure.add_gridspec(3, 4)
    _histogram(
        figure.add_subplot(grid[0, 0]), series.lengths.astype(np.float64), "points", log=True
    )
    freqs = Counter(str(freq or "none") for freq in series.freqs()).most_common(8)
    bars = figure.add_subplot(grid[0, 1])
    bars.barh([name for name, _ in freqs], [count for _, count in freqs])
    bars.invert_yaxis()
    bars.set_xlabel("series by interval")
    levels = np.abs(series.statistics("mean"))
    _histogram(figure.add_subplot(grid[0, 2]), levels, "absolute mean", log=True)
    channels = len(series.info.columns.target)
    missing = 1 - series.present / np.maximum(1, series.lengths * channels)
    _histogram(figure.add_subplot(grid[0, 3]), 100 * missing, "% missing", log=False)
    for place, item in enumerate(
        np.linspace(0, len(series) - 1, SHOWN_SERIES).astype(int).tolist()
    ):
        row, column = divmod(place, 3)
        axes = figure.add_subplot(grid[1 + row, column : column + 1 + (column == 2)])
        axes.plot(series.target(item)[:, -1000:].T, linewidth=0.8)
        axes.set_title(drawn(series.item_id(item)[:40]), fontsize=9)
    with written(file) as partial:
        figure.savefig(partial, dpi=100)


def _histogram(axes: Any, values: Any, label: str, *, log: bool) -> None:
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    if len(values):
        low, high = float(values.min()), float(values.max())
        edges = np.geomspace(low, max(high, low * 1.01), 30) if log else 30
        axes.hist(values, bins=edges)
    if log:
        axes.set_xscale("log")
    axes.set_yscale("symlog")
    axes.set_xlabel(label)
    axes.set_ylabel("series")
