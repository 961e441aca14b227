"""Where the ranks of a run meet. Imports no torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from model.errors import UserError


@dataclass(frozen=True)
class Address:
    """Where the ranks of one attempt meet, and how long they wait for each other."""

    host: str
    port: int
    seconds: float = 25.0
    attempt: int = 0
    """How often a launcher has restarted these ranks: a restarted group meets anew."""
    is_served: bool = False
    """Whether a launcher's agent keeps the store, as torchrun's does, instead of rank 0."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Address:
        """Read MASTER_ADDR, MASTER_PORT, torchrun's variables and FORESCALE_START_SECONDS.

        Raises UserError where the latter is no number of seconds.
        """
        text = environment.get("FORESCALE_START_SECONDS", "25")
        seconds = 0.0
        with contextlib.suppress(ValueError):
            seconds = float(text)
        if not 0 < seconds < float("inf"):
            raise UserError(f"FORESCALE_START_SECONDS: expected a number of seconds, got {text!r}")
        return cls(
            environment["MASTER_ADDR"],
            int(environment["MASTER_PORT"]),
            seconds,
            int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")),
            environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"
