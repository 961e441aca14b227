"""Where a process begins that nobody has installed Forescale for: `launch/train.py` and
`python -m launch`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def enter(arguments: Sequence[str] | None = None) -> None:
    """The command line; one sentence and exit code 2 where this Python lacks what it needs."""
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
