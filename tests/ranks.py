"""Runs a function on several gloo ranks: fast, and never hanging.

Ranks are forked from a server process that has imported torch and DeepSpeed and run nothing: a
group of ranks starts in a fraction of a second. After the timeout every rank's stacks are in the
failure's message.
"""

from __future__ import annotations

import faulthandler
import io
import itertools
import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

T = TypeVar("T")

FIRST_PORT, PORTS = 10_000, 500
"""Where the ranks of one worker of pytest-xdist meet: below what the system gives to others."""

_turns = itertools.count()

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.preload"])


class RanksFailedError(AssertionError):
    """Some rank raised, died or hung; the message holds what each of them said."""


def run(function: Callable[..., T], world: int, *arguments: Any, timeout: float = 120.0) -> list[T]:
    """function(rank, world, *arguments) on `world` ranks; their results by rank.

    `function` must be importable: it is named to the ranks, not sent.
    """
    with TemporaryDirectory(prefix="ranks-") as folder:
        logs = [Path(folder) / f"rank-{rank}.log" for rank in range(world)]
        pipes = [_server.Pipe(duplex=False) for _ in range(world)]
        processes = start(function, arguments, [writing for _, writing in pipes], logs)
        for _, writing in pipes:
            writing.close()
        results, failures = _collect([reading for reading, _ in pipes], timeout)
        hung = [rank for rank in range(world) if rank not in results and rank not in failures]
        for rank in hung:
            _signal(processes[rank].pid, signal.SIGUSR2)
        if hung:
            time.sleep(1.0)
        for process in processes:
            if process.is_alive() and (hung or failures):
                process.kill()
            process.join()
        if hung or failures:
            raise RanksFailedError(_story(hung, failures, logs))
        return [results[rank] for rank in range(world)]


def start(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    pipes: Sequence[Connection],
    logs: Sequence[Path],
) -> list[ForkServerProcess]:
    """One rank for each pipe, which takes its result, and log."""
    port = _free_port()
    processes = [
        _server.Process(
            target=_rank, args=(function, rank, len(pipes), port, arguments, pipe, logs[rank])
        )
        for rank, pipe in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    return processes


def _free_port() -> int:
    """Return a port that no other worker takes before the ranks do."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = FIRST_PORT + PORTS * worker + next(_turns) % PORTS
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _collect(pipes: list[Connection], timeout: float) -> tuple[dict[int, Any], dict[int, str]]:
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    deadline = time.monotonic() + timeout
    waiting = dict(enumerate(pipes))
    while waiting and time.monotonic() < deadline:
        ready = multiprocessing.connection.wait(list(waiting.values()), timeout=0.2)
        for rank, pipe in list(waiting.items()):
            if pipe not in ready:
                continue
            del waiting[rank]
            try:
                kind, value = pipe.recv()
            except EOFError:
                kind, value = "failure", "the rank died without a word"
            if kind == "result":
                results[rank] = value
            else:
                failures[rank] = value
                deadline = min(deadline, time.monotonic() + 5.0)  # the others wait for this one
    return results, failures


def _rank(
    function: Callable[..., Any],
    rank: int,
    world: int,
    port: int,
    arguments: tuple[Any, ...],
    pipe: Connection,
    log: Path,
) -> None:
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    stacks = open(log, "a")  # noqa: SIM115 - open until the rank ends
    faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    import torch

    torch.set_num_threads(1)
    try:
        pipe.send(("result", function(rank, world, *arguments)))
    except BaseException:
        text = io.StringIO()
        traceback.print_exc(file=text)
        pipe.send(("failure", text.getvalue()))
    finally:
        pipe.close()
        os._exit(0)  # no farewell between ranks, some of which may be gone


def _signal(pid: int | None, number: int) -> None:
    if pid is not None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return


def _story(hung: list[int], failures: dict[int, str], logs: list[Path]) -> str:
    parts = [f"ranks failed: {sorted(failures)}, hung: {hung}"]
    parts += [f"--- rank {rank} raised\n{failures[rank]}" for rank in sorted(failures)]
    for rank in sorted({*hung, *failures}):
        text = logs[rank].read_text() if logs[rank].exists() else ""
        parts.append(f"--- rank {rank} printed\n{text[-6000:]}")
    return "\n".join(parts)
