"""Feeding: the batches of the next steps are made in a thread, while this one is computed."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.2
"""Seconds after which a thread whose queue is full looks whether anybody still wants it."""


@dataclass(frozen=True)
class _Failure:
    """What making a batch has raised."""

    error: BaseException


class Feeder(Generic[T]):
    """Makes the batches of steps in their order, some ahead of those that are taken.

    A step's batches are functions of its number, so what was made and is not taken is lost without
    harm. Nothing is made before the first is taken: a rank that needs no data reads none.
    """

    def __init__(
        self,
        make: Callable[[int], Iterator[T]],
        last: int,
        *,
        ahead: int,
        waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Make the batches of steps up to `last` by `make`, at most `ahead` before they are taken.

        With 0 there is no thread, and each is made when it is taken. Waiting for one takes place
        within the context `waiting`.
        """
        self._make, self._last, self._ahead, self._waiting = make, last, ahead, waiting
        self._queue: queue.Queue[T | _Failure] = queue.Queue(max(1, ahead))
        self._thread: threading.Thread | None = None
        self._is_over = threading.Event()
        self._waited = 0.0

    def step(self, step: int, count: int) -> Iterator[T]:
        """Yield the `count` batches of a step; steps are taken in their order.

        Raises what making one has raised.
        """
        if self._ahead == 0:
            batches = self._make(step)
            for _ in range(count):
                with self._timed():
                    batch = next(batches)
                yield batch
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(step,), daemon=True)
            self._thread.start()
        for _ in range(count):
            with self._timed():
                made = self._queue.get()
            if isinstance(made, _Failure):
                raise made.error
            yield made

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        with self._waiting():
            yield
        self._waited += time.perf_counter() - began

    def take_wait(self) -> float:
        """Return the seconds for which batches were waited for since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited

    def close(self) -> None:
        """End the thread."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, first: int) -> None:
        try:
            for step in range(first, self._last + 1):
                for batch in self._make(step):
                    if not self._put(batch):
                        return
        except BaseException as error:  # for the thread that takes
            self._put(_Failure(error))

    def _put(self, made: T | _Failure) -> bool:
        """Return whether what was made is still wanted."""
        while not self._is_over.is_set():
            try:
                self._queue.put(made, timeout=POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False
