"""Standard output: sentences for people, or one JSON object for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

from trainer.logs.log import shown


def print_json(known: Mapping[str, Any]) -> None:
    """Print one object, its numbers in full precision."""
    print(json.dumps(known, indent=1), flush=True)


@contextmanager
def showing_log(*, as_json: bool = False) -> Iterator[None]:
    """Within, show the log: on standard output, or on stderr where standard output is JSON's.

    Raises UserError where FORESCALE_LOG is no level.
    """
    with shown(), redirect_stdout(sys.stderr) if as_json else nullcontext():
        yield
