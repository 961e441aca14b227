"""A clone that is called like the package does not hide it from its own parent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_package_is_found_beside_a_folder_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "forescale" / "docs").mkdir(parents=True)
    code = "from forescale import Forecaster; print(Forecaster.__name__)"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (told.stdout, told.stderr) == ("Forecaster\n", "")
