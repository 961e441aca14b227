"""The log for the user: the logger `forescale`, and the handler that prints it.

A run prints its lines on standard output, as plain sentences. The main rank prints all from a level
on; other ranks print only errors, which are about themselves. Warnings are collected, too, so that
a run records them in environment.json.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from model.errors import UserError

VARIABLE = "FORESCALE_LOG"
"""Environment variable with the lowest level that is printed; ranks inherit it."""

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
"""Names of levels in VARIABLE -> logging's levels."""

log = logging.getLogger("forescale")
"""Logger of all lines for the user."""


class _PrintHandler(logging.Handler):
    """Prints each message on the current standard output, which a progress bar replaces."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(record.getMessage(), file=sys.stdout, flush=True)
        except Exception:
            self.handleError(record)


class Warnings(logging.Handler):
    """Collects the message of each warning, once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self.messages:
            self.messages.append(message)


def chosen_level(environment: Mapping[str, str] = os.environ) -> int:
    """Return the level that FORESCALE_LOG names, else info. Raises UserError for another word."""
    name = environment.get(VARIABLE, "info")
    if name.lower() not in LEVELS:
        raise UserError(f"{VARIABLE}: expected one of {', '.join(LEVELS)}, got {name!r}")
    return LEVELS[name.lower()]


@contextmanager
def shown(*, is_main: bool = True) -> Iterator[Warnings]:
    """Print the log within the context; yield the collector of its warnings."""
    handler, warnings = _PrintHandler(), Warnings()
    handler.setLevel(chosen_level() if is_main else logging.ERROR)
    before, propagates = log.level, log.propagate
    log.setLevel(min(handler.level, warnings.level))
    log.propagate = False  # no line is printed twice where a notebook has its own handlers
    log.addHandler(handler)
    log.addHandler(warnings)
    try:
        yield warnings
    finally:
        log.removeHandler(handler)
        log.removeHandler(warnings)
        log.propagate = propagates
        log.setLevel(before)
