"""A clock that stands still while its process is stopped.

A scheduler may suspend a job and resume it: what waited for a rank meanwhile has not waited long.
"""

from __future__ import annotations

import threading
import time


class Clock:
    """The seconds since `start` for which this process ran, in ticks of `tick` seconds.

    A tick that comes later than a second one would have counts for two: the process was stopped,
    or so busy that nobody could have been heard.
    """

    def __init__(self, tick: float) -> None:
        self._tick, self._seconds = tick, 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="clock", daemon=True)

    def start(self) -> None:
        """Begin to tick."""
        self._thread.start()

    def close(self) -> None:
        """End the ticking."""
        self._closed.set()

    def now(self) -> float:
        """Return the seconds that have been counted."""
        return self._seconds

    def _run(self) -> None:
        """Count, in the thread."""
        last = time.monotonic()
        while not self._closed.wait(self._tick):
            now = time.monotonic()
            self._seconds += min(now - last, 2 * self._tick)
            last = now
