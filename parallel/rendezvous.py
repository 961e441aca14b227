"""Before anything is computed: are all ranks there, and do they mean the same run?

Ranks that differ would wait for each other for ever. So they meet at a key-value store first,
each telling what it is about to do, and whoever is missing or differs is named.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from typing import Any

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

from model.errors import ReportedElsewhereError, UserError
from parallel.groups import Mesh, any_rank, from_each
from parallel.layout import Layout

PAUSE = 0.2
"""Seconds between looks."""


class AbsentError(UserError):
    """Ranks that have not come."""

    def __init__(self, sentence: str, ranks: list[int]) -> None:
        super().__init__(sentence)
        self.ranks = ranks


@dataclass(frozen=True)
class Meeting:
    """Of all ranks, who agree on what they are about to do."""

    store: Store
    hosts: dict[str, list[int]]
    """Ranks by machine; known to rank 0."""

    def table(self, layout: Layout) -> str:
        """Who runs where, a line for each machine."""
        rows = [("machine", "ranks", "stages")]
        for host, ranks in self.hosts.items():
            stages = sorted({layout.coordinates(rank).pipeline for rank in ranks})
            rows.append((host, spans(ranks), spans(stages)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        return "\n".join([f"the ranks have met at {where}", *lines])


def spans(numbers: Sequence[int]) -> str:
    """0-3, 8: ascending numbers, runs of them shortened."""
    groups = groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    runs = [[number for _, number in group] for _, group in groups]
    return ", ".join(f"{run[0]}-{run[-1]}" if run[1:] else str(run[0]) for run in runs)


def patience() -> float:
    """Seconds that ranks wait for each other at the start."""
    text = os.environ.get("FORESCALE_START_SECONDS", "25")
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise UserError(f"FORESCALE_START_SECONDS: expected a number of seconds, got {text!r}")


def meet(rank: int, world: int, facts: Mapping[str, Any]) -> Meeting:
    """At MASTER_ADDR:MASTER_PORT, once all ranks are there and agree."""
    seconds = patience()
    # torchrun's agent keeps a store there already.
    hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = _store(hosts, seconds)
    except (RuntimeError, OSError) as error:  # torch's own errors are RuntimeErrors
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"rank {rank} cannot {'open' if hosts else 'reach'} the meeting point "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} (MASTER_ADDR, MASTER_PORT) "
            f"within {seconds:g} s: {reason}"
        ) from None
    try:
        called = PrefixStore(_name("roll call"), store)
        roll_call(called, rank, world, facts, seconds)
        machines = _hosts(called, world) if rank == 0 else {}
    except RuntimeError:  # the store went with rank 0
        raise UserError(f"rank {rank} has lost rank 0 at the start, which may say why") from None
    return Meeting(PrefixStore(_name("run"), store), machines)


def _hosts(store: Store, world: int) -> dict[str, list[int]]:
    hosts: dict[str, list[int]] = {}
    for rank in range(world):
        hosts.setdefault(store.get(f"rank {rank}").decode(), []).append(rank)
    return hosts


def _name(what: str) -> str:
    """A restarted group of ranks meets anew."""
    return f"{what} {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _store(hosts: bool, seconds: float) -> Store:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    deadline = time.monotonic() + seconds
    if hosts:
        socket.getaddrinfo(host, port)  # torch would try for long, and print its own stack
    while not hosts:  # torch would try for twice the time
        try:
            socket.create_connection((host, port), timeout=1.0).close()
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE)
    return TCPStore(
        host, port, is_master=hosts, timeout=timedelta(seconds=seconds), wait_for_workers=False
    )


def watchdogs_store(start: str) -> Store:
    """A connection of its own to the store at which the ranks met, for one start of a run."""
    return PrefixStore(_name(f"watchdog {start}"), _store(False, 30.0))


def report_failure(rank: int, sentence: str, seconds: float = 10.0) -> None:
    """Leave word at the meeting point of a rank that cannot come; nothing where there is none."""
    with contextlib.suppress(RuntimeError, OSError):
        store = PrefixStore(_name("roll call"), _store(False, seconds))
        store.set("failure", f"rank {rank}: {sentence}")


def roll_call(
    store: Store, rank: int, world: int, facts: Mapping[str, Any], seconds: float
) -> None:
    """Wait for all ranks, `seconds` at most, and compare what they tell with rank 0's.

    Raises UserError naming the ranks that have not come, or one that differs and in what; of
    those who know, the first rank says it. What is sent grows with the world, not its square.
    """
    deadline = time.monotonic() + seconds
    mine = json.dumps({"the number of ranks": world, **facts})
    if rank == 0:
        store.set("facts", mine)
    store.set(f"rank {rank}", socket.gethostname())
    difference = first_difference(store.get("facts"), mine, f"rank {rank}")
    if difference is not None:
        store.set(
            "failure",
            f"{difference}; start all ranks alike, from the same configuration and installation",
        )
    if _all(store, world, deadline):
        return
    if store.check(["failure"]):
        said = store.get("failure").decode()
        _leave(store, rank)
        raise UserError(said) if rank == 0 else ReportedElsewhereError(said)
    missing = [other for other in range(world) if not store.check([f"rank {other}"])]
    here = sorted(set(range(world)) - set(missing))
    _leave(store, rank)
    if rank != here[0]:
        raise ReportedElsewhereError(f"{_ranks(missing)} did not come")
    raise AbsentError(
        f"{_ranks(missing)} of {world} did not come within {seconds:g} s, and {_ranks(here)} did; "
        "look for what ended or delays them, or set FORESCALE_START_SECONDS to wait longer",
        missing,
    )


def _all(store: Store, world: int, deadline: float) -> bool:
    """Whether all ranks have come before the deadline, and none has failed."""
    store.add("here", 1)
    while not store.check(["failure"]):
        if store.add("here", 0) >= world:
            return not store.check(["failure"])
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE)
    return False


def exchange_texts(meeting: Meeting, rank: int, world: int, text: str) -> list[str]:
    """What each rank tells, by rank, on all of them.

    Raises RuntimeError where one that has come is lost.
    """
    store = PrefixStore(_name("told"), meeting.store)
    store.add("here", 1)
    store.set(f"rank {rank}", text)
    texts = [store.get(f"rank {other}").decode() for other in range(world)]
    _leave(store, rank)
    return texts


def _leave(store: Store, rank: int) -> None:
    """Rank 0 keeps the store until those who are here have read it, or for some seconds."""
    store.add("read", 1)
    deadline = time.monotonic() + 20 * PAUSE
    while rank == 0 and store.add("read", 0) < store.add("here", 0):
        if time.monotonic() > deadline:
            return
        time.sleep(PAUSE)


def _ranks(numbers: list[int]) -> str:
    shown = ", ".join(str(n) for n in numbers[:8]) + (", ..." if len(numbers) > 8 else "")
    return f"rank{'s' if len(numbers) > 1 else ''} {shown}"


def first_difference(first: str | bytes, other: str, who: str, whose: str = "rank 0") -> str | None:
    """Of two JSON objects, the first key whose values differ, in words."""
    theirs, ours = json.loads(first), json.loads(other)
    for key in dict.fromkeys([*theirs, *ours]):
        a, b = theirs.get(key, "nothing"), ours.get(key, "nothing")
        if a != b:
            return f"{who} differs from {whose}: {key} is {b} for {who} and {a} for {whose}"
    return None


def agree(mesh: Mesh, facts: Mapping[str, Any], among: list[int] | None = None) -> None:
    """All ranks, or those of `among` that this rank is one of, have the same facts.

    Collective over all ranks. Raises RuntimeError naming the rank that differs, and in what.
    """
    mine = json.dumps(dict(facts))
    digest = int.from_bytes(hashlib.sha256(mine.encode()).digest()[:6])  # exact in fp64
    digests = from_each(mesh, digest)
    ranks = list(range(mesh.layout.world)) if among is None else among
    same = bool((digests[ranks] == digests[ranks[0]]).all())
    if not any_rank(mesh, not same):
        return
    texts: list[str] = [""] * mesh.layout.world
    dist.all_gather_object(texts, mine)
    for other in ranks:
        difference = first_difference(
            texts[ranks[0]], texts[other], f"rank {other}", f"rank {ranks[0]}"
        )
        if difference is not None:
            raise RuntimeError(difference)
    raise RuntimeError("other ranks differ from each other, and say in what")
