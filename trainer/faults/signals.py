"""Signals that ask a run to save and stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

LASTING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""What a scheduler sends once: kept in mind from the first moment on."""
SIGNALS = (signal.SIGINT, *LASTING)
PARENT = "FORESCALE_PARENT"
"""Environment variable with the process that started the ranks and passes signals on to them."""


class StopRequest:
    """Set by a signal, or by the loss of the process that would pass signals on.

    Launchers send one signal after another: that is one request. A second Ctrl-C, a second or
    more after the first, ends the process at once.
    """

    def __init__(self) -> None:
        self._asked_at: float | None = None
        self._parent = int(os.environ.get(PARENT, "0"))

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self._asked_at is not None and now - self._asked_at > 1.0:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._asked_at = self._asked_at or now

    def __bool__(self) -> bool:
        return self._asked_at is not None or self._is_orphan()

    def _is_orphan(self) -> bool:
        if not self._parent:
            return False
        try:
            os.kill(self._parent, 0)
        except ProcessLookupError:
            return True
        return False


@contextmanager
def stop_on_signal(
    request: StopRequest | None = None, signals: Sequence[signal.Signals] = SIGNALS
) -> Iterator[StopRequest]:
    """Within, `signals` set the request instead of ending the process.

    Python handles signals in the main thread only: elsewhere none is caught.
    """
    request = request or StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in signals}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """Within, Ctrl-C ends the process at once, also while it waits in native code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
