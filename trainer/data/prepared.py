"""Tables that data.source names are prepared once, and kept beside the runs."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from model.errors import UserError
from model.sentences import shortened
from trainer.config.data_settings import SourceConfig
from trainer.config.table_settings import TableConfig
from trainer.data.cache import VARIABLE
from trainer.data.prepare_set import digest_of, prepare_set
from trainer.data.remote import is_remote, local_copy
from trainer.data.series_set import SeriesSet
from trainer.data.series_source import SeriesSource
from trainer.data.set_format import Item, is_set
from trainer.data.synthetic.synthetic_set import SyntheticSet
from trainer.files import check_reachable, file_digest, read_record, replace
from trainer.logs.progress import CountingProgress

DIGESTS = "digests.json"

COLUMNS = ("targets", "covariates", "past_covariates", "static", "timezone")
"""Settings of tables that say something of prepared sets, too."""


def open_series(source: SourceConfig, config: TableConfig, cache: Path) -> SeriesSource:
    """Return a source's series, read or made. Raises UserError where that cannot be."""
    if source.synthetic is None:
        assert source.path is not None
        return open_set(source.path, config, cache)
    real = source.synthetic.of
    return SyntheticSet(source.synthetic, None if real is None else open_set(real, config, cache))


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
        series = SeriesSet(path)
        _check_same(source, series, config)
        return series
    digests = _Digests(cache)
    digest = digest_of([source], config, digests.of)
    stem = path.name.split(".")[0] or "series"
    folder = cache / f"{stem}-{digest[:16]}"
    if not is_set(folder):
        with _locked(cache, folder.name):
            if not is_set(folder):
                _prepare(source, folder, config, digests)
    return SeriesSet(folder)


def _check_same(source: str, series: SeriesSet, config: TableConfig) -> None:
    """Raise UserError for a setting that says something else of the columns than a set does.

    It was in force when the set was prepared, and would not be now.
    """
    static = (*series.columns.static_numbers, *series.columns.static_categories)
    for key, wanted, held in (
        ("targets", config.targets, series.columns.target),
        ("covariates", config.covariates, series.columns.known),
        ("past_covariates", config.past_covariates, series.columns.past),
        ("static", sorted(config.static), tuple(sorted(static))),
    ):
        if wanted and tuple(wanted) != held:
            what = f"the set holds {', '.join(held)}" if held else "the set holds none"
            raise _other_set(source, key, what, wanted)
    if config.timezone is not None and series.timezone is None:
        what = "its times are clock times of no known zone"
        raise _other_set(source, "timezone", what, config.timezone)


def _other_set(source: str, key: str, what: str, wanted: str | Sequence[str]) -> UserError:
    value = wanted if isinstance(wanted, str) else f"[{','.join(wanted)}]"
    held = "null" if key in ("targets", "timezone") else "[]"
    return UserError(
        f"data.{key}: {source} was prepared, and {what}; take that by 'data.{key}={held}', or "
        f"prepare another set with 'data.{key}={value}'"
    )


def unused_settings(sources: Sequence[str], config: TableConfig) -> list[str]:
    """Return a sentence about settings of tables that do nothing, as all sources are sets."""
    given = config.model_dump(exclude_defaults=True).keys()
    unused = [f"data.{key}" for key in given if key not in COLUMNS]
    if not unused or not sources or not all(is_set(Path(one).expanduser()) for one in sources):
        return []
    return [f"{shortened(unused)}: not used, for {shortened(sources)} is prepared already"]


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
