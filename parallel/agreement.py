"""Before anything is computed: are all ranks there, and do they mean the same run?

Ranks that differ would wait for each other for ever. So they meet at a key-value store first,
each telling what it is about to do, and whoever is missing or differs is named.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

from model.errors import UserError
from parallel.groups import Place

PAUSE = 0.2
"""Seconds between looks."""


def roll_call(
    store: Store, rank: int, world: int, facts: Mapping[str, Any], seconds: float
) -> None:
    """Wait for all ranks, `seconds` at most, and compare what they tell with rank 0's.

    Raises UserError naming the ranks that have not come, or one that differs and in what; of
    those who know, the first rank says it.
    """
    deadline = time.monotonic() + seconds
    store.set(f"rank {rank}", json.dumps(dict(facts)))
    missing = set(range(world))
    while missing:
        missing -= {other for other in missing if store.check([f"rank {other}"])}
        if missing and time.monotonic() > deadline:
            here = sorted(set(range(world)) - missing)
            _say(rank == here[0], (
                f"{_ranks(sorted(missing))} of {world} did not come within {seconds:g} s, and "
                f"{_ranks(here)} did; look for what ended or delays them, or set "
                "FORESCALE_START_SECONDS to wait longer"
            ))  # fmt: skip
        time.sleep(PAUSE if missing else 0)
    told = [json.loads(store.get(f"rank {other}")) for other in range(world)]
    for other, theirs in enumerate(told):
        difference = first_difference(told[0], theirs)
        if difference is not None:
            _say(rank == 0, f"rank {other} differs from rank 0: {difference}; start all ranks "
                            "alike, from the same configuration and installation")  # fmt: skip
    # Nobody leaves, and with rank 0 the store, before all have read.
    store.add("read", 1)
    while int(store.add("read", 0)) < world and time.monotonic() < deadline:
        time.sleep(PAUSE)


def _say(speaks: bool, sentence: str) -> None:
    time.sleep(2 * PAUSE)  # the others still need the store
    if speaks:
        raise UserError(sentence)
    raise SystemExit(2)


def _ranks(numbers: list[int]) -> str:
    shown = ", ".join(str(n) for n in numbers[:8]) + (", ..." if len(numbers) > 8 else "")
    return f"rank{'s' if len(numbers) > 1 else ''} {shown}"


def first_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """The first key whose values differ, in words."""
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key, "nothing"), theirs.get(key, "nothing")
        if a != b:
            return f"{key} is {b} there and {a} here"
    return None


def agree(place: Place, facts: Mapping[str, Any], among: list[int] | None = None) -> None:
    """All ranks, or those of `among` that this rank is one of, have the same facts.

    Collective over all ranks. Raises RuntimeError naming the rank that differs, and in what.
    """
    everyone: list[dict[str, Any]] = [{} for _ in range(place.layout.world)]
    dist.all_gather_object(everyone, dict(facts))
    ranks = range(place.layout.world) if among is None else among
    for other in ranks:
        difference = first_difference(everyone[ranks[0]], everyone[other])
        if difference is not None:
            raise RuntimeError(f"rank {other} differs from rank {ranks[0]}: {difference}")


def meet(rank: int, world: int, facts: Mapping[str, Any], seconds: float) -> Store:
    """The store at MASTER_ADDR:MASTER_PORT, once all ranks are there and agree."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun's agent keeps a store there already.
    hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = TCPStore(
            host, port, is_master=hosts, timeout=timedelta(seconds=seconds), wait_for_workers=False
        )
    except (RuntimeError, TimeoutError) as error:  # torch's own errors are RuntimeErrors
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"rank {rank} cannot {'open' if hosts else 'reach'} the meeting point {host}:{port} "
            f"(MASTER_ADDR, MASTER_PORT) within {seconds:g} s: {reason}"
        ) from None
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    roll_call(PrefixStore(f"roll call {restart}", store), rank, world, facts, seconds)
    return PrefixStore(f"run {restart}", store)
