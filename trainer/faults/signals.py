"""Signals that request a run to save and stop, and the exit code of a run that has."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

LASTING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that a scheduler sends only once, so that one that comes while a run starts must last."""

SIGNALS = (signal.SIGINT, *LASTING)
"""All signals that request a stop."""

PARENT = "FORESCALE_PARENT"
"""Environment variable with the process that started the ranks and passes signals on to them."""


REPEATED = 0.25
"""Seconds within which another SIGINT is the same one: launchers pass on what a terminal has sent
to all; people take longer."""


class StopRequest:
    """A request to stop: true after a signal, or once the process that passes signals on is gone.

    An instance is a signal handler. Launchers send several signals in a row: that is one request. A
    second Ctrl-C ends the process at once.
    """

    number: int | None = None
    """The first signal that came, to any rank once the ranks have agreed; None: there was none."""

    def __init__(self) -> None:
        self._requested_at: float | None = None
        self._parent = int(os.environ.get(PARENT, "0"))

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        now, before = time.monotonic(), self._requested_at
        if number == signal.SIGINT and before is not None and now - before > REPEATED:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if before is None:
            acknowledge(number)
        self._requested_at = before or now
        self.number = self.number or number

    def __bool__(self) -> bool:
        return self._requested_at is not None or self._is_orphan()

    @property
    def exit_code(self) -> int:
        """The exit code of a run that has saved and stopped: 128 + the signal, as shells count.

        It is 0 for SIGUSR1: a launcher sends that one to start the run again later.
        """
        if self.number is None or self.number == signal.SIGUSR1:
            return 0
        return 128 + self.number

    def _is_orphan(self) -> bool:
        """Return whether the process that would pass signals on has ended."""
        if not self._parent:
            return False
        try:
            os.kill(self._parent, 0)
        except ProcessLookupError:
            return True
        return False


def acknowledge(number: int) -> None:
    """Tell whoever pressed Ctrl-C at a terminal that it was heard."""
    if number == signal.SIGINT and os.isatty(2):
        os.write(2, b"\nsaving at the next step; Ctrl-C again ends at once\n")


@contextmanager
def stop_on_signal(
    request: StopRequest | None = None, signals: Sequence[signal.Signals] = SIGNALS
) -> Iterator[StopRequest]:
    """Yield the request, which `signals` make within the context instead of ending the process.

    Python handles signals in the main thread only: in another thread none is handled.
    """
    request = StopRequest() if request is None else request
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in signals if requests_stop(number)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def requests_stop(number: signal.Signals) -> bool:
    """Return whether a signal requests a stop: not a hang-up that nohup has told to ignore."""
    return number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN


def end_within(seconds: int) -> None:
    """Have the system end this process after `seconds`, whatever native code it then waits in.

    For a rank that has failed: leaving its process groups can wait for ranks that wait for it.
    """
    signal.alarm(seconds)


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """Let Ctrl-C end the process at once within the context, even while it waits in native code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
