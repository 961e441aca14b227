"""A checkpoint's manifest: every file of it with its size and sha256. Imports no torch.

The first line of `manifest` is the sha256 of the rest, a JSON object from file names to sizes and
sums: a change to any byte of a checkpoint, the manifest's own included, is detected.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path

from trainer.files import is_file_name, parse_json, write_synced

MANIFEST = "manifest"
"""Name of the file with the manifest."""

DESCRIPTION = "checkpoint.json"
"""Name of the file that describes the checkpoint; see `store.Description`."""

METADATA = ".metadata"
"""Name of the file in which torch.distributed.checkpoint keeps the places of all chunks."""

DESCRIBING = (DESCRIPTION, METADATA)
"""Names of the small files that are read before any tensor is."""

Entry = tuple[int, str]
"""A file's size in bytes and its sha256."""


def entry(file: Path) -> Entry:
    """Return the manifest's entry for `file`."""
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256")
    return file.stat().st_size, digest.hexdigest()


def write_manifest(folder: Path, entries: Mapping[str, Entry]) -> None:
    """Write the manifest of a folder's files.

    Raises RuntimeError where these are not the files that the ranks have reported in `entries`.
    """
    found = {file.name for file in folder.iterdir()}
    if found != set(entries):
        strange = ", ".join(sorted(found ^ set(entries)))
        raise RuntimeError(f"{folder}: written and reported files differ: {strange}")
    text = json.dumps({name: list(entries[name]) for name in sorted(entries)}, indent=1)
    write_synced(folder / MANIFEST, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def read_manifest(folder: Path) -> dict[str, Entry]:
    """Return the entries by file name.

    Raises ValueError or OSError where there is no manifest or it is not intact.
    """
    digest, _, text = (folder / MANIFEST).read_text(encoding="utf-8").partition("\n")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise ValueError("the manifest does not match its own sum")
    try:
        entries = {name: (int(size), str(sum_)) for name, (size, sum_) in parse_json(text).items()}
    except (AttributeError, TypeError, OverflowError) as error:
        raise ValueError(f"the manifest is of something else: {error}") from None
    if not entries or not all(map(is_file_name, entries)):
        raise ValueError("the manifest names no files of its folder")
    return entries


def verify(folder: Path, *, contents: bool = True, reader: int = 0, readers: int = 1) -> str | None:
    """Return what is wrong with a checkpoint, in words, or None if it is intact.

    It compares the sizes of all files and the contents of the small ones that describe the
    checkpoint; with `contents` also those of every `readers`-th file, from `reader` on: ranks share
    the reading. A file that cannot be read counts as missing. Files that the manifest does not name
    are ignored.
    """
    try:
        entries = read_manifest(folder)
    except (OSError, ValueError) as error:
        return f"{MANIFEST}: {error}"
    summed = {*DESCRIBING, *(sorted(entries)[reader::readers] if contents else ())}
    for name, (size, _) in entries.items():
        try:
            found = (folder / name).stat()
            if not stat.S_ISREG(found.st_mode):
                return f"{name} is no file"
            if found.st_size != size:
                return f"{name} has {found.st_size} bytes instead of {size}"
            if name in summed and entry(folder / name) != entries[name]:
                return f"{name} does not match its sum"
        except OSError as error:
            return f"{name}: {error.strerror}"
        except ValueError as error:  # no file can have such a name
            return f"{name!r}: {error}"
    return None
