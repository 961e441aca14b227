"""Writing an export of the weights of a run, a checkpoint or another export."""

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
from trainer.checkpoint.keys import BUFFERS, NETWORK_KINDS, global_name, of_kinds
from trainer.checkpoint.manifest import MANIFEST, Entry, entry
from trainer.checkpoint.tensor_files import Shapes
from trainer.files import sync, write_synced
from trainer.logs.log import log
from trainer.weights.export_format import CONFIG, FORMAT, INDEX, MODEL_CARD, MODEL_TYPE, ONE_FILE
from trainer.weights.model_card import model_card
from trainer.weights.source import WeightsSource, intact

MAX_FILE_BYTES = 5 * 10**9
"""Largest size of one weights file, unless one tensor is larger."""

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Precisions of an export -> torch's dtypes."""


def export(
    source: WeightsSource,
    out: Path,
    *,
    precision: Literal["fp32", "bf16"] = "fp32",
    file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write an export to the folder `out`, which appears once it is complete.

    It holds the weights of one file in memory at a time. Where `source` is a run's newest
    checkpoint and damaged, the one before it is exported, with a warning. Raises UserError where
    `out` holds something already or no source is intact.
    """
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something already; choose another folder")
    if any((folder / MANIFEST).is_file() for folder in out.parents):
        raise UserError(f"{out} lies in a checkpoint, and would go with it; choose another folder")
    source = intact(source)
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.mkdir(parents=True)
        _write(source, partial, precision, file_bytes, out.name)
        if out.exists():
            out.rmdir()
        os.rename(partial, out)
        sync(out.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{out}: cannot be written: {reason}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(
    source: WeightsSource, folder: Path, precision: str, file_bytes: int, title: str
) -> None:
    """Write all files of an export into an empty folder."""
    dtype = TYPES[precision]
    shapes = of_kinds(source.shapes(), *NETWORK_KINDS)
    sizes = {key: dtype.itemsize * math.prod(shape) for key, shape in shapes.items()}
    files = split_into_files(sizes, file_bytes)
    file_of: dict[str, str] = {}
    total = 0
    write_synced(folder / MODEL_CARD, model_card(source, shapes, title))
    sums: dict[str, Entry] = {}
    for number, keys in enumerate(files, start=1):
        name = _file_name(number, len(files))
        file = folder / name
        tensors: dict[str, Tensor] = {key: torch.empty(shapes[key]) for key in keys}
        source.read(tensors)
        cast = {global_name(key): tensor.to(dtype) for key, tensor in tensors.items()}
        save_file(cast, file, metadata={"format": "pt"})
        shutil.copymode(folder / MODEL_CARD, file)  # safetensors' own is 0600
        sync(file)
        sums[name] = entry(file)
        file_of |= dict.fromkeys(cast, name)
        total += sum(tensor.nbytes for tensor in cast.values())
        log.info(f"{name}: {len(cast)} tensors, {file.stat().st_size / 1e6:,.1f} MB")
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": file_of}
        write_synced(folder / INDEX, json.dumps(index, indent=1))
    content = _config(source, shapes, precision) | {"files": sums}
    write_synced(folder / CONFIG, json.dumps(content, indent=1))
    sync(folder)


def _file_name(number: int, count: int) -> str:
    """Return the name of weights file `number`, from 1, of `count`."""
    return ONE_FILE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def split_into_files(sizes: Mapping[str, int], max_bytes: int) -> list[Sequence[str]]:
    """Return the keys of each file, in order; each file has at most `max_bytes` or one tensor.

    `sizes` are the tensors' sizes in bytes, by key.
    """
    files: list[list[str]] = [[]]
    room = max_bytes
    for key, size in sizes.items():
        if files[-1] and size > room:
            files.append([])
            room = max_bytes
        files[-1].append(key)
        room -= size
    return list(files)


def _config(source: WeightsSource, shapes: Shapes, precision: str) -> dict[str, Any]:
    """Return the content of config.json but for the files."""
    settings = source.settings.model_dump()
    # An export shows no path of the machine that made it.
    settings["data"]["source"] = _without_folders(settings["data"]["source"])
    settings["data"]["validate_on"] = _without_folders(settings["data"]["validate_on"])
    settings["model"]["init_from"] = None
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["TimeSeriesTransformer"],
        "dtype": str(TYPES[precision]).removeprefix("torch."),
        "format": FORMAT,
        "forescale_version": metadata.version("forescale"),
        "step": source.step,
        "buffers": [global_name(key) for key in of_kinds(shapes, BUFFERS)],
        "series": source.facts.content(),
        "settings": settings,
    }


def _without_folders(source: Any) -> Any:
    """Return a source, or a list of sources, whose files are told by their names alone."""
    if isinstance(source, list):
        return [_without_folders(one) for one in source]
    if isinstance(source, dict):
        return source | {"path": _without_folders(source["path"])}
    return source if source is None else Path(source).name
