"""Writes an export from weights wherever they lie."""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from model.errors import UserError
from trainer.checkpoint.keys import BUFFERS, NETWORK_KINDS, WEIGHTS, global_name, of_kinds
from trainer.checkpoint.manifest import NAME as MANIFEST
from trainer.checkpoint.manifest import Entry, entry
from trainer.checkpoint.storage import Shapes
from trainer.files import sync, write_synced
from trainer.logs.log import log
from trainer.weights.export_folder import FORMAT, INDEX, MODEL_TYPE, ONE_FILE
from trainer.weights.source import WeightsSource

FILE_BYTES = 5 * 10**9
"""Of one weights file at most, unless one tensor is larger."""

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export(
    source: WeightsSource,
    out: Path,
    *,
    precision: Literal["fp32", "bf16"] = "fp32",
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write `out`, a folder that is whole or not there.

    In memory is one file's weights at a time. Raises UserError where `out` holds something
    already or the source is damaged.
    """
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something already; choose another folder")
    if any((folder / MANIFEST).is_file() for folder in out.parents):
        raise UserError(f"{out} lies in a checkpoint, and would go with it; choose another folder")
    wrong = source.verify()
    if wrong is not None:
        raise UserError(f"{source.path} is damaged: {wrong}")
    beside = out.with_name(f".{out.name}.{uuid.uuid4().hex}.partial")
    try:
        beside.mkdir(parents=True)
        _write(source, beside, precision, file_bytes, out.name)
        if out.exists():
            out.rmdir()
        os.rename(beside, out)
        sync(out.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{out}: cannot be written: {reason}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write(
    source: WeightsSource, folder: Path, precision: str, file_bytes: int, title: str
) -> None:
    kept = of_kinds(source.shapes(), *NETWORK_KINDS)
    width = TYPES[precision].itemsize
    files = shards({name: width * math.prod(shape) for name, shape in kept.items()}, file_bytes)
    where: dict[str, str] = {}
    total = 0
    write_synced(folder / "README.md", _card(source, kept, title))
    sums: dict[str, Entry] = {}
    for number, names in enumerate(files, start=1):
        file = (
            ONE_FILE if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        )
        tensors: dict[str, Tensor] = {name: torch.empty(kept[name]) for name in names}
        source.read(tensors)
        cast = {global_name(n): t.to(TYPES[precision]) for n, t in tensors.items()}
        save_file(cast, folder / file, metadata={"format": "pt"})
        shutil.copymode(folder / "README.md", folder / file)  # safetensors' own is 0600
        sync(folder / file)
        sums[file] = entry(folder / file)
        where |= dict.fromkeys(cast, file)
        total += sum(tensor.nbytes for tensor in cast.values())
        log.info(f"{file}: {len(cast)} tensors, {(folder / file).stat().st_size / 1e6:,.1f} MB")
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_synced(folder / INDEX, json.dumps(index, indent=1))
    content = _config(source, kept, precision) | {"files": sums}
    write_synced(folder / "config.json", json.dumps(content, indent=1))
    sync(folder)


def shards(sizes: Mapping[str, int], largest: int) -> list[Sequence[str]]:
    """Names by file, in order, each file of at most `largest` bytes or of one tensor."""
    files: list[list[str]] = [[]]
    room = largest
    for name, size in sizes.items():
        if files[-1] and size > room:
            files.append([])
            room = largest
        files[-1].append(name)
        room -= size
    return list(files)


def _config(source: WeightsSource, kept: Shapes, precision: str) -> dict[str, Any]:
    settings = source.settings.model_dump()
    # Where the data lay on this machine is nobody else's concern.
    settings["data"]["source"] = Path(settings["data"]["source"]).name
    settings["model"]["init_from"] = None
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["TimeSeriesTransformer"],
        "dtype": str(TYPES[precision]).removeprefix("torch."),
        "format": FORMAT,
        "forescale_version": metadata.version("forescale"),
        "step": source.step,
        "buffers": [global_name(key) for key in of_kinds(kept, BUFFERS)],
        "series": source.facts.content(),
        "settings": settings,
    }


def _card(source: WeightsSource, kept: Shapes, title: str) -> str:
    facts, shape = source.facts, source.facts.shape
    parameters = sum(map(math.prod, of_kinds(kept, WEIGHTS).values()))
    columns = shape.covariates + len(shape.calendar)
    arguments, covariates = "context", ""
    if columns:
        arguments = "context, covariates"
        length = shape.context_length + shape.prediction_length
        covariates = f"; what is known in advance is [B, {length}, {columns}]"
    return f"""---
library_name: {MODEL_TYPE}
pipeline_tag: time-series-forecasting
tags:
- time-series
- forecasting
---

# {title}

Transformer ({source.settings.model.architecture.replace("_", "-")}) of {parameters:,} parameters
after {source.step:,} optimizer steps. It forecasts {shape.prediction_length} points of
{", ".join(facts.channels)} from {shape.context_length}.

```python
from forescale import Forecaster

forecaster = Forecaster.load("{title}")
forecast = forecaster.forecast({arguments})  # [B, {shape.prediction_length}, {shape.channels}]
```

Contexts are [B, {shape.context_length}, {shape.channels}], in the series' own units, as forecasts
are{covariates}.
"""
