"""Standard output: sentences for people, or one JSON object for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from model.errors import UserError
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


def check_target(option: str, file: Path, ends: Sequence[str], *, force: bool) -> None:
    """Raise UserError where the file of an option cannot be written, or is there already.

    Its name has one of these ends; `force` writes over one that is there.
    """
    if file.suffix.lower() not in ends:
        raise UserError(f"{option}: {file}: name a file that ends with {' or '.join(ends)}")
    if not file.parent.is_dir():
        raise UserError(f"{option}: {file}: there is no such folder")
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise UserError(f"{option}: {file} cannot be written")
    if file.exists() and not force:
        raise UserError(
            f"{option}: {file} is there already; name another, or write over it with --force"
        )
