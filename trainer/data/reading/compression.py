"""Compressed files are read as what is in them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
import zlib
from pathlib import Path
from typing import IO, cast

import pyarrow as pa

from model.errors import UserError
from model.sentences import first_line

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".zip")
BROKEN = (
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    pa.ArrowInvalid,
    pa.ArrowNotImplementedError,
)
"""Errors of the readers where a file is cut or damaged, or packed as they cannot read."""


def opened(path: Path) -> IO[bytes]:
    """Open a file to read, decompressed by what its name says."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(path))
    if suffix == ".bz2":
        return cast(IO[bytes], bz2.open(path))
    if suffix == ".xz":
        return cast(IO[bytes], lzma.open(path))
    if suffix == ".zst":
        return cast(IO[bytes], pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    if suffix == ".zip":
        archive = zipfile.ZipFile(path)
        files = [name for name in archive.namelist() if not name.endswith("/")]
        if len(files) != 1:
            raise UserError(f"data.source: {path} holds {len(files)} files; unpack the one to read")
        return archive.open(files[0])
    return open(path, "rb")


def unreadable(path: Path, error: BaseException) -> UserError:
    """Return what a user is told of a file that is cut or damaged."""
    return UserError(
        f"data.source: cannot read {path}: {first_line(error)}; it may be cut or damaged, "
        "copy it again"
    )


def suffix_of(path: Path) -> str:
    """Return a file's suffix in small letters, without that of its compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""
