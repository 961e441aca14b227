"""Sets that tests make of tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trainer.config.table_settings import TableConfig
from trainer.data.prepare_set import prepare_set
from trainer.data.series_set import SeriesSet


def prepared(folder: Path, source: str | Path | list[str], **settings: Any) -> SeriesSet:
    """Return the set of a source, made in a new folder."""
    sources = source if isinstance(source, list) else [str(source)]
    out = folder / f"set-{len(list(folder.glob('set-*')))}"
    prepare_set(sources, out, TableConfig(**settings))
    return SeriesSet(out)


def text_file(folder: Path, text: str, name: str = "table.csv", encoding: str = "utf-8") -> Path:
    """Write a file, and return its path."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode(encoding))
    return file


def hourly(points: int = 100, start: str = "2024-01-01") -> pd.DataFrame:
    """Return a table of times and values 0.5, 1.5, ... that are no counter."""
    times = pd.date_range(start, periods=points, freq="h")
    return pd.DataFrame({"time": times, "load": np.arange(points) * 1.25 + 0.5})


def csv(folder: Path, frame: pd.DataFrame, name: str = "table.csv", **options: Any) -> Path:
    """Write a frame as CSV without its index, and return the path."""
    file = folder / name
    frame.to_csv(file, **({"index": False} | options))
    return file
