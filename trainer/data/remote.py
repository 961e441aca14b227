"""Sources in object stores and on servers: they are copied beside the prepared tables first."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from model.errors import UserError
from model.sentences import first_line
from trainer.files import read_record, replace

COPIES = "remote"
"""Name of the folder for copies."""
STATES = ".states.json"
"""Name of the file that says of what each copy is."""
PACKAGES = {
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
}
"""Protocol -> the package that speaks it."""

_URL = re.compile(r"^([a-z][a-z0-9+.-]+)://")


def is_remote(source: str) -> bool:
    """Return whether a source is a URL, such as s3://bucket/corpus."""
    return _URL.match(source) is not None


def local_copy(url: str, cache: Path) -> Path:
    """Return the copy of a file or a folder that a URL names; what has not changed is kept.

    Raises UserError where nothing is there, or it cannot be read.
    """
    import fsspec

    protocol = _URL.match(url)
    assert protocol is not None
    folder = cache / COPIES / hashlib.sha256(url.encode()).hexdigest()[:16]
    try:
        system, path = fsspec.core.url_to_fs(url)
        is_folder = system.isdir(path)
        files = system.find(path) if is_folder else system.glob(path)
        if not files:
            raise UserError(f"data.source: there is nothing at {url}")
        base = path.rstrip("/") + "/" if is_folder else ""
        copies = _copied(system, files, base, folder)
    except (ImportError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        package = PACKAGES.get(protocol[1])
        way_out = f"run: pip install {package}" if package else "copy it to this machine"
        raise UserError(f"data.source: cannot open {url}: {first_line(error)}; {way_out}") from None
    except Exception as error:  # each store has its own
        raise UserError(
            f"data.source: cannot read {url}: {first_line(error)}; check the address and the "
            "permission, or copy it to this machine"
        ) from None
    return folder if is_folder or len(copies) > 1 else copies[0]


def _copied(system: Any, files: list[str], base: str, folder: Path) -> list[Path]:
    """Return the copies of files in `folder`, by their paths without `base`."""
    folder.mkdir(parents=True, exist_ok=True)
    states = read_record(folder / STATES)
    copies = []
    for file in files:
        name = file[len(base) :] if base and file.startswith(base) else Path(file).name
        copy, state = folder / name, str(system.checksum(file))
        if folder.resolve() not in copy.resolve().parents:
            raise UserError(f"data.source: {file} would be copied outside of {folder}")
        if states.get(name) != state or not copy.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            partial = copy.with_name(f".{copy.name}.{os.getpid()}")
            system.get_file(file, str(partial))
            os.replace(partial, copy)
            replace(folder / STATES, json.dumps({**read_record(folder / STATES), name: state}))
        copies.append(copy)
    return copies
