"""torch's flight recorder: the collectives that this rank has started, and the unfinished ones.

On a GPU the host goes on as soon as it has started a collective: where it stands still later, its
stack does not tell which one the device waits in. torch notes them in a ring, for NCCL and gloo.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch.distributed as dist

VARIABLE = "TORCH_FR_BUFFER_SIZE"
ENTRIES = 2000
"""Collectives that torch keeps a note of."""

LAST = 8
"""Collectives of each group that a rank tells the others of."""

Started = dict[str, dict[str, str]]
"""Name of a group -> number of a collective within it -> the collective in words."""


@dataclass(frozen=True)
class Unfinished:
    """A collective that this rank has started and the device has not finished."""

    words: str
    group: str
    number: int
    """Its number within the group, equal on all of the group's ranks; 0 between two ranks."""
    awaited: tuple[int, ...]
    """The ranks that take part."""


@dataclass(frozen=True)
class Record:
    """The flight recorder's content."""

    unfinished: Unfinished | None = None
    """The oldest unfinished collective: the device does one after another."""
    started: Started = field(default_factory=dict)
    """The last collectives of each group."""
    text: str = ""
    """All of it as torch writes it, in JSON."""


def enable() -> None:
    """Have torch note collectives; to be called before the first process group is formed."""
    os.environ.setdefault(VARIABLE, str(ENTRIES))


def read() -> Record:
    """Return what has been noted so far; an empty record outside process groups."""
    if not dist.is_initialized():
        return Record()
    from torch._C import _distributed_c10d as c10d

    dump = "_dump_nccl_trace_json" if dist.get_backend() == "nccl" else "_dump_fr_trace_json"
    text = getattr(c10d, dump)().decode()
    entries = json.loads(text).get("entries", [])
    started: Started = {}
    for entry in entries:
        if not entry["is_p2p"]:
            numbers = started.setdefault(entry["process_group"][0], {})
            numbers[str(entry["collective_seq_id"])] = _words(entry)
    last = {group: dict(list(numbers.items())[-LAST:]) for group, numbers in started.items()}
    open_ones = [entry for entry in entries if not entry["retired"]]
    oldest = min(open_ones, key=lambda entry: entry["record_id"], default=None)
    return Record(None if oldest is None else _unfinished(oldest), last, text)


def _words(entry: dict[str, Any]) -> str:
    """Return a note in words, as `all_reduce of 1,024 elements`."""
    name = entry["profiling_name"].partition(":")[2]
    elements = sum(prod(size) for size in entry["input_sizes"] or entry["output_sizes"])
    return f"{name} of {elements:,} elements"


def _unfinished(entry: dict[str, Any]) -> Unfinished:
    """Return an unfinished collective by its note."""
    group = entry["process_group"][0]
    ranks = _ranks(group)
    peers = re.search(r"(\d+)(?:->|<-)(\d+)", entry["profiling_name"])
    if entry["is_p2p"] and peers is not None:
        ranks = tuple(ranks[int(number)] for number in peers.groups())
        return Unfinished(_words(entry), group, 0, ranks)
    return Unfinished(_words(entry), group, entry["collective_seq_id"], ranks)


def _ranks(group: str) -> tuple[int, ...]:
    """Return the ranks of a group by the name that torch gives it."""
    world = dist.distributed_c10d._world
    return next(
        tuple(dist.get_process_group_ranks(made))
        for made, name in world.pg_names.items()
        if name == group
    )
