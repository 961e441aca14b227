"""Files whose sums are taken while they are written, so that nothing is read again."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch.distributed.checkpoint.filesystem import FileSystem

from trainer.checkpoint.manifest import Entry

LARGE = 2**16
"""Bytes from which a piece is summed beside its being written; less is not worth a thread."""


class SummingFileSystem(FileSystem):
    """The file system, where every file that is written has its size and sum taken."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        """Name of each file that was written whole -> the manifest's entry for it."""

    @contextmanager
    def create_stream(
        self, path: str | os.PathLike[str], mode: str
    ) -> Generator[io.IOBase, None, None]:
        with super().create_stream(path, mode) as stream:
            if mode != "wb":
                yield stream
                return
            with ThreadPoolExecutor(1) as thread:
                summed = _SummedStream(stream, thread)
                yield cast(io.IOBase, summed)
            self.entries[Path(path).name] = summed.entry()


class _SummedStream:
    """A stream that is written from its beginning to its end."""

    def __init__(self, stream: io.IOBase, thread: ThreadPoolExecutor) -> None:
        self._stream: Any = stream
        self._thread = thread
        self._sum, self._size = hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> int:
        """Write `data`, whose memory is the caller's again when this returns."""
        size = memoryview(data).nbytes
        if size < LARGE:
            self._sum.update(data)
            self._stream.write(data)
        else:
            summing = self._thread.submit(self._sum.update, data)
            try:
                self._stream.write(data)
            finally:
                summing.result()
        self._size += size
        return size

    def entry(self) -> Entry:
        """Return the size and the sum of what was written."""
        return self._size, self._sum.hexdigest()

    def seek(self, *_: int) -> int:
        raise io.UnsupportedOperation("what is summed is written in order")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
