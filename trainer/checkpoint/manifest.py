"""A checkpoint's manifest: every file of it with its size and sha256. Imports no torch.

The first line of `manifest` is the sha256 of the rest, a JSON object from file names to sizes and
sums: a change to any byte of a checkpoint, the manifest's own included, is seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from trainer.files import write_synced

NAME = "manifest"

DESCRIBING = ("checkpoint.json", ".metadata")
"""Small, and read before anything else is."""

Entry = tuple[int, str]
"""Bytes, and their sha256."""


def entry(file: Path) -> Entry:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256")
    return file.stat().st_size, digest.hexdigest()


def write_manifest(folder: Path, entries: Mapping[str, Entry]) -> None:
    """Raises RuntimeError where a file lies in the folder that no rank has told of."""
    found = {file.name for file in folder.iterdir()}
    if found != set(entries):
        strange = ", ".join(sorted(found ^ set(entries)))
        raise RuntimeError(f"{folder}: written and told files differ: {strange}")
    text = json.dumps({name: list(entries[name]) for name in sorted(entries)}, indent=1)
    write_synced(folder / NAME, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def read_manifest(folder: Path) -> dict[str, Entry]:
    """Raises ValueError or OSError where there is no whole one."""
    digest, _, text = (folder / NAME).read_text(encoding="utf-8").partition("\n")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise ValueError("the manifest does not match its own sum")
    try:
        entries = {name: (int(size), str(sum_)) for name, (size, sum_) in json.loads(text).items()}
    except (AttributeError, TypeError) as error:
        raise ValueError(f"the manifest is of something else: {error}") from None
    if not entries or any(Path(name).name != name for name in entries):
        raise ValueError("the manifest names no files of its folder")
    return entries


def verify(folder: Path, *, contents: bool = True, reader: int = 0, readers: int = 1) -> str | None:
    """What is wrong with a checkpoint, in words; None if it is whole.

    Compared are the sizes of all files and the contents of the small ones that describe it; with
    `contents` also those of every `readers`-th file, from `reader` on: ranks share the reading. A
    file that cannot be read is as bad as one that is missing; what the manifest does not name is
    nobody's concern.
    """
    try:
        entries = read_manifest(folder)
    except (OSError, ValueError) as error:
        return f"{NAME}: {error}"
    read = {*DESCRIBING, *(sorted(entries)[reader::readers] if contents else ())}
    for name, (size, _) in entries.items():
        try:
            held = (folder / name).stat().st_size
            if held != size:
                return f"{name} has {held} bytes instead of {size}"
            if name in read and entry(folder / name) != entries[name]:
                return f"{name} does not match its sum"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None
