"""Small files, written so that a crash leaves the old or the new content; users' paths and JSON."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from model.errors import UserError


def parse_json(text: str) -> Any:
    """Return what JSON says. Raises ValueError for all that is not JSON, however it is broken."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """Return what a JSON file says. Raises ValueError where it is broken, or OSError."""
    return parse_json(path.read_text(encoding="utf-8"))


def read_record(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; an empty one where the file is gone or broken."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_file_name(name: str) -> bool:
    """Return whether a file's name, or path, is of a file in the folder that it is relative to."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def write_synced(path: Path, text: str) -> None:
    """Write a file and wait until it is on the disk."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, text: str) -> None:
    """Replace a small file so that a reader sees the old or the new one, never half of it."""
    partial = path.with_name(f".{path.name}.partial")
    write_synced(partial, text)
    os.replace(partial, path)
    sync(path.parent)


@contextmanager
def written(file: Path) -> Iterator[Path]:
    """Give a file beside `file` to write, which takes its place at the end, whole or not at all.

    Raises UserError where it cannot be written.
    """
    partial = file.with_name(f".{file.stem}.{uuid.uuid4().hex}.partial{file.suffix}")
    try:
        yield partial
        partial.replace(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def nearest_existing(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists: where it would be made."""
    return next(above for above in (path, *path.parents) if above.exists())


def check_reachable(path: Path, what: str = "") -> None:
    """Raise UserError, beginning with `what`, for a path that the system cannot even look up.

    Its name may be too long, or a folder above it closed to this user. A path where nothing is can
    be looked up.
    """
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (OSError, ValueError) as error:
        shown = str(path) if len(str(path)) <= 80 else f"{str(path)[:80]}..."
        reason = getattr(error, "strerror", None) or "it is no path"
        raise UserError(f"{what}cannot look up {shown!r}: {reason}; choose another path") from None
