"""Other libraries, in an environment of their own: they want older packages than ours.

FORESCALE_TEST_PEERS names its Python, which `make peers` makes.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def answer(script: str, *arguments: object) -> Any:
    """Return the JSON that a script prints last there. Skips the test where there is none."""
    python = os.environ.get("FORESCALE_TEST_PEERS")
    if python is None:
        pytest.skip("FORESCALE_TEST_PEERS names no Python with datasets, gluonts and fev")
    done = subprocess.run(
        [python, "-W", "ignore", "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
