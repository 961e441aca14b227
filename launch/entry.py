"""The command line where nobody may have installed Forescale: `launch/train.py`, `-m launch`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def enter(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; where this Python lacks a package, print one sentence and exit with 2.

    `arguments` are the process's where none are given.
    """
    try:
        from launch.cli import main

        main(arguments)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in ("launch", "trainer", "parallel", "model"):
            raise
        print(
            f"forescale: {sys.executable} has no module {module!r}: install Forescale there "
            "(pip install --editable .), or start it with the Python that has it",
            file=sys.stderr,
        )
        sys.exit(2)
