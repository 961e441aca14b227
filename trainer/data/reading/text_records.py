"""Text files with a record for each series or row: JSON lines, and .tsf of the Monash archive."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from model.errors import UserError
from trainer.data.reading.compression import opened
from trainer.data.reading.records import Record

JSON_LINES = (".jsonl", ".ndjson", ".json")
MONASH = (".tsf",)

FREQUENCIES = {
    "4_seconds": "4s",
    "minutely": "min",
    "10_minutes": "10min",
    "15_minutes": "15min",
    "half_hourly": "30min",
    "hourly": "h",
    "daily": "D",
    "weekly": "W",
    "monthly": "MS",
    "quarterly": "QS",
    "yearly": "YS",
}
"""A .tsf's @frequency -> pandas' offset."""


def opened_text(path: Path) -> IO[str]:
    """Open a text file, decompressed; what is not UTF-8 is replaced by a mark."""
    return io.TextIOWrapper(opened(path), "utf-8", errors="replace")


def read_json_lines(path: Path) -> Iterator[Record]:
    """Yield the object of each line; a file that is one list has its members."""
    with closing(opened_text(path)) as file:
        beginning = file.read(1)
        if beginning == "[":
            try:
                yield from json.loads(beginning + file.read())
            except ValueError as error:
                raise UserError(f"data.source: {path} is no JSON: {error}") from None
            return
        lines = chain([beginning + file.readline()], file)
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(f"data.source: {path}, line {number} is no JSON: {error}") from None
            if not isinstance(record, dict):
                raise UserError(f"data.source: {path}, line {number} is no JSON object")
            yield record


def read_monash(path: Path) -> Iterator[Record]:
    """Yield the series of a .tsf file (Godahewa et al. 2021), NaN where a value is missing."""
    attributes: list[tuple[str, str]] = []
    freq: str | None = None
    with closing(opened_text(path)) as file:
        in_data = False
        for number, line in enumerate(file, start=1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            if not in_data:
                word, *rest = text.split()
                if word.lower() == "@attribute" and len(rest) == 2:
                    attributes.append((rest[0], rest[1].lower()))
                elif word.lower() == "@frequency":
                    freq = FREQUENCIES.get(rest[0].lower())
                    if freq is None:
                        raise UserError(
                            f"data.freq: {path}, line {number}: there is no frequency {rest[0]!r}"
                        )
                elif word.lower() == "@data":
                    in_data = True
                elif not word.startswith("@"):
                    raise UserError(
                        f"data.source: {path}, line {number}: {text[:40]!r} is no header"
                    )
                continue
            parts = text.split(":")
            if len(parts) != len(attributes) + 1:
                raise UserError(
                    f"data.source: {path}, line {number} has {len(parts) - 1} attributes, and the "
                    f"header {len(attributes)}"
                )
            record: dict[str, Any] = {}
            for (name, kind), cell in zip(attributes, parts, strict=False):
                record[name] = _value(cell, kind, path, number)
            if freq is not None and any(kind == "date" for _, kind in attributes):
                record["freq"] = freq
            record["target"] = _values(parts[-1], path, number)
            yield record


def _value(cell: str, kind: str, path: Path, number: int) -> Any:
    if kind == "date":
        try:
            return pd.to_datetime(cell, format="%Y-%m-%d %H-%M-%S")
        except ValueError:
            raise UserError(
                f"data.source: {path}, line {number}: {cell!r} is no time as 2024-01-31 13-00-00"
            ) from None
    if kind == "numeric":
        try:
            return float(cell)
        except ValueError:
            raise UserError(f"data.source: {path}, line {number}: {cell!r} is no number") from None
    return cell


def _values(text: str, path: Path, number: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    try:
        return np.array(
            [np.nan if cell.strip() in ("?", "NaN") else float(cell) for cell in text.split(",")]
        )
    except ValueError as error:
        raise UserError(f"data.source: {path}, line {number}: {error}") from None
