"""The environment that a run was made in: versions, commit, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from parallel.layout import Layout


def environment(layout: Layout, device: str) -> dict[str, Any]:
    """Return the content of environment.json."""
    return {
        "versions": versions(),
        "commit": commit(),
        "layout": layout.sizes(),
        "device": device,
        "platform": platform.platform(),
        "processors": os.cpu_count(),
    }


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that compute."""
    packages = ("forescale", "torch", "deepspeed", "numpy", "pandas", "pyarrow")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str | None:
    """Return a package's version, where it is installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Return the project's commit, where it runs from a git checkout."""
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return git.stdout.strip()
