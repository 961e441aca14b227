"""Activity of the main thread: whether it computes or reads, as another thread sees it.

While a run loads, no layer and no step shows progress, and how long it rightly takes depends on the
disk: what shows that it goes on is that something moves.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

from trainer.faults.stacks import is_in_collective, main_thread

MIN_SHARE = 0.01
"""Smallest share of the time that a thread must compute to be active: whoever only looks now and
then whether another one is ready takes less."""


class Activity:
    """The main thread's activity from one look to the next."""

    def __init__(self) -> None:
        thread = threading.main_thread()
        self._clock = time.pthread_getcpuclockid(thread.ident or 0)
        self._task = Path(f"/proc/self/task/{thread.native_id}")
        self._at, self._seconds, self._read = time.monotonic(), self._computed(), self._reads()

    def has_moved(self) -> bool:
        """Return whether the thread has computed or read since the last call.

        A thread that waits in a collective has not: some waits burn a processor.
        """
        now, seconds, read = time.monotonic(), self._computed(), self._reads()
        computed = seconds - self._seconds > MIN_SHARE * (now - self._at)
        moved = not is_in_collective(main_thread()) and (computed or read != self._read)
        self._at, self._seconds, self._read = now, seconds, read
        return moved

    def _computed(self) -> float:
        """Return the seconds that the thread has computed so far."""
        return time.clock_gettime(self._clock)

    def _reads(self) -> tuple[str, str]:
        """Return the bytes that the thread has read so far, and the pages of mapped files."""
        with suppress(OSError, IndexError):  # a system without these counts
            read = (self._task / "io").read_text().split()[1]
            after_name = (self._task / "stat").read_text().rpartition(")")[2].split()
            return read, after_name[9]
        return "", ""
