"""The folder for what is prepared once and kept: tables as sets, and copies of remote files."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "FORESCALE_CACHE"
"""Variable that names the folder."""
FOLDER = ".data"
"""Its name beside the runs, unless the variable says otherwise."""


def default_cache(runs: Path = Path("runs")) -> Path:
    """Return the folder that FORESCALE_CACHE names, or one beside the runs."""
    given = os.environ.get(VARIABLE)
    return Path(given).expanduser() if given else runs / FOLDER
