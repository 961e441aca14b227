"""Tables that data.source names are prepared once, and kept beside the runs."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model.errors import UserError
from trainer.config.table_settings import TableConfig
from trainer.data.cache import VARIABLE
from trainer.data.prepare_set import digest_of, prepare_set
from trainer.data.remote import is_remote, local_copy
from trainer.data.series_set import SeriesSet
from trainer.data.set_format import Item, is_set
from trainer.files import check_reachable, file_digest, read_record, replace
from trainer.logs.progress import CountingProgress

DIGESTS = "digests.json"


def open_set(source: str, config: TableConfig, cache: Path) -> SeriesSet:
    """Return the set that a source names, or that is made of it.

    One that was made before of the same bytes, read in the same way, is used again; of several
    processes one makes it, and the others wait. Raises UserError where it cannot be read.
    """
    if is_remote(source):
        source = str(local_copy(source, cache))
    path = Path(source).expanduser()
    check_reachable(path, "data.source: ")
    if is_set(path):
        return SeriesSet(path)
    digests = _Digests(cache)
    digest = digest_of([source], config, digests.of)
    stem = path.name.split(".")[0] or "series"
    folder = cache / f"{stem}-{digest[:16]}"
    if not is_set(folder):
        with _locked(cache, folder.name):
            if not is_set(folder):
                _prepare(source, folder, config, digests)
    return SeriesSet(folder)


def _prepare(source: str, folder: Path, config: TableConfig, digests: _Digests) -> None:
    with CountingProgress(f"data: preparing {source}", "series", "points") as progress:

        def count(item: Item) -> None:
            progress.advance(1, item.length)

        prepare_set([source], folder, config, count, digest_of_file=digests.of)


@contextmanager
def _locked(cache: Path, name: str) -> Iterator[None]:
    """Within, no other process makes the set of this name."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        file = open(cache / f".{name}.lock", "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(
            f"{cache}: cannot keep prepared tables there: {error.strerror}; name another folder by "
            f"{VARIABLE}, or prepare a set with `forescale prepare` and name that"
        ) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    with suppress(FileNotFoundError):
        (cache / f".{name}.lock").unlink()


class _Digests:
    """The digests of files, kept with their sizes and times: unchanged ones are not read again."""

    def __init__(self, cache: Path) -> None:
        self._file = cache / DIGESTS

    def of(self, path: Path) -> str:
        """Return a file's digest."""
        state = path.stat()
        key, size_and_time = str(path.absolute()), [state.st_size, state.st_mtime_ns]
        known = read_record(self._file).get(key, [None])
        if known[:-1] == size_and_time:
            return str(known[-1])
        digest = file_digest(path)
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            replace(
                self._file, json.dumps({**read_record(self._file), key: [*size_and_time, digest]})
            )
        return digest
