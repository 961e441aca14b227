"""Saves a checkpoint: written beside, synced, committed by one rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor

from trainer.checkpoint.manifest import Entry, entry, write_manifest
from trainer.checkpoint.storage import write
from trainer.checkpoint.store import FORMAT, Checkpoint, Store, name_of
from trainer.files import replace, sync_folder, write_synced


def save(
    store: Store,
    step: int,
    state: Mapping[str, Tensor],
    description: dict[str, Any],
    *,
    is_main: bool,
) -> Checkpoint:
    """Called by all ranks, each with the parts of the state that it holds."""
    rank = dist.get_rank()
    final, beside = store.folder / name_of(step), store.unfinished(step)
    if is_main:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    dist.barrier()
    write(beside, state)
    told: list[dict[str, Entry]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(told, {f.name: entry(f) for f in beside.glob(f"__{rank}_*")})
    if is_main:
        text = json.dumps({"format": FORMAT, "step": step, **description}, indent=1)
        write_synced(beside / "checkpoint.json", text)
        sums = {name: one for own in told for name, one in own.items()}
        sums |= {name: entry(beside / name) for name in ("checkpoint.json", ".metadata")}
        write_manifest(beside, sums)
        sync_folder(beside)
        if final.exists():  # the same step again, after a resume from before it
            shutil.rmtree(final)
        os.rename(beside, final)
        sync_folder(store.folder)
        replace(store.folder / "latest", final.name)
    dist.barrier()
    return Checkpoint(final)
