"""The rendezvous: before anything is computed, are all ranks there, and do they mean the same run?

Ranks that differ would wait for each other for ever. So they meet at a key-value store first, each
with what it is about to do, and the ranks that are missing or differ are named.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

from model.errors import AbsentError, ReportedElsewhereError, UserError
from model.sentences import first_line
from parallel.address import Address
from parallel.consistency import first_difference
from parallel.mesh import backend_for

POLL_SECONDS = 0.2
WATCHDOG_TIMEOUT = 30.0
"""Seconds that a later connection to the store may take."""
LEAVE_SECONDS = 10.0
"""Seconds that rank 0 waits at most for the others to read what it leaves in the store."""


@dataclass(frozen=True)
class Rendezvous:
    """All ranks of a run, which agree on what they are about to do."""

    address: Address
    rank: int
    world: int
    store: Store
    """The store for the process groups, and for what the ranks exchange besides."""
    hosts: dict[str, list[int]]
    """Machine -> its ranks; known to rank 0."""
    backend: str
    """Backend of torch.distributed that fits the ranks' devices."""

    def exchange(self, text: str) -> list[str]:
        """Return the text of each rank, by rank, on all of them.

        Raises RuntimeError where a rank that has come is lost.
        """
        store = PrefixStore("exchange", self.store)
        store.add("here", 1)
        store.set(f"rank {self.rank}", text)
        texts = [store.get(f"rank {other}").decode() for other in range(self.world)]
        _leave(store, self.rank)
        return texts

    def connect(self, purpose: str) -> Store:
        """Open another connection to the store, with keys for `purpose` alone."""
        return _prefixed(self.address, purpose, _open_store(self.address, False, WATCHDOG_TIMEOUT))


def _prefixed(address: Address, name: str, store: Store) -> Store:
    """Return the keys of `store` that belong to `name`; a restarted group of ranks meets anew."""
    return PrefixStore(f"{name} {address.attempt}", store)


def meet(
    address: Address, rank: int, world: int, claims: Mapping[str, Any], device: str = "cpu"
) -> Rendezvous:
    """Return once all ranks have come to `address` with the same `claims`.

    `device` is this rank's, by `parallel.mesh.device_name`.

    Raises UserError where the address cannot be reached, a rank does not come in time (then
    AbsentError) or one differs; it names the rank.
    """
    serves = rank == 0 and not address.is_served
    try:
        store = _open_store(address, serves, address.seconds)
    except (RuntimeError, OSError) as error:  # torch's own errors are RuntimeErrors
        raise UserError(
            f"rank {rank} cannot {'open' if serves else 'reach'} the meeting point {address} "
            f"(MASTER_ADDR, MASTER_PORT) within {address.seconds:g} s: {first_line(error)}"
        ) from None
    try:
        gathering = _prefixed(address, "gathering", store)
        gathering.set(f"device {rank}", device)
        wait_for_all(gathering, rank, world, claims, address.seconds)
        hosts: dict[str, list[int]] = {}
        if rank == 0:
            hosts = _hosts(gathering, world)
            devices = [gathering.get(f"device {other}").decode() for other in range(world)]
            gathering.set("backend", backend_for(devices))
        backend = gathering.get("backend").decode()
    except RuntimeError:  # the store went with rank 0
        raise UserError(f"rank {rank} has lost rank 0 at the start, which may say why") from None
    return Rendezvous(address, rank, world, _prefixed(address, "run", store), hosts, backend)


def report_failure(address: Address, rank: int, sentence: str, seconds: float = 10.0) -> None:
    """Have rank 0 quote why `rank` cannot come; does nothing where there is no rendezvous."""
    with contextlib.suppress(RuntimeError, OSError):
        store = _prefixed(address, "gathering", _open_store(address, False, seconds))
        store.set("failure", f"rank {rank}: {sentence}")
        store.add("read", 1)


def wait_for_all(
    store: Store, rank: int, world: int, claims: Mapping[str, Any], seconds: float
) -> None:
    """Wait for all ranks, `seconds` at most, and compare their claims with rank 0's.

    Raises UserError naming the ranks that have not come, or one that differs and in what; of those
    who know, the first rank reports it, and the others raise ReportedElsewhereError. What is sent
    grows with the world, not with its square.
    """
    deadline = time.monotonic() + seconds
    mine = json.dumps({"the number of ranks": world, **claims})
    if rank == 0:
        store.set("facts", mine)
    store.set(f"rank {rank}", socket.gethostname())
    difference = first_difference(store.get("facts"), mine, f"rank {rank}")
    if difference is not None:
        remedy = "start all ranks alike, from the same configuration and installation"
        store.set("failure", f"{difference}; {remedy}")
    if _have_all_come(store, world, deadline):
        return
    if store.check(["failure"]):
        reported = store.get("failure").decode()
        _leave(store, rank, awaited=world)  # those still on their way shall not look for rank 0
        raise UserError(reported) if rank == 0 else ReportedElsewhereError(reported)
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


def _hosts(store: Store, world: int) -> dict[str, list[int]]:
    hosts: dict[str, list[int]] = {}
    for rank in range(world):
        hosts.setdefault(store.get(f"rank {rank}").decode(), []).append(rank)
    return hosts


def _open_store(address: Address, serves: bool, seconds: float) -> Store:
    deadline = time.monotonic() + seconds
    if serves:
        # torch would try for long, and print its own stack.
        socket.getaddrinfo(address.host, address.port)
    while not serves:  # torch would try for twice the time
        try:
            socket.create_connection((address.host, address.port), timeout=1.0).close()
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)
    return TCPStore(
        address.host,
        address.port,
        is_master=serves,
        timeout=timedelta(seconds=seconds),
        wait_for_workers=False,
    )


def _have_all_come(store: Store, world: int, deadline: float) -> bool:
    """Whether all ranks have come before the deadline, and none has failed."""
    store.add("here", 1)
    while not store.check(["failure"]):
        if store.add("here", 0) >= world:
            return not store.check(["failure"])
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return False


def _leave(store: Store, rank: int, awaited: int | None = None) -> None:
    """Have rank 0 keep the store until those who are here have read it, or for some seconds.

    `awaited` is the number of ranks to wait for where more than those here are expected.
    """
    store.add("read", 1)
    deadline = time.monotonic() + LEAVE_SECONDS
    while rank == 0 and store.add("read", 0) < (awaited or store.add("here", 0)):
        if time.monotonic() > deadline:
            return
        time.sleep(POLL_SECONDS)


def _ranks(numbers: list[int]) -> str:
    shown = ", ".join(str(n) for n in numbers[:8]) + (", ..." if len(numbers) > 8 else "")
    return f"rank{'s' if len(numbers) > 1 else ''} {shown}"
