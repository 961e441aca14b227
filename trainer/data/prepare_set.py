"""Preparing a set: sources of any kind are read as series and written as a set, once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from model.errors import UserError
from model.sentences import first_line
from trainer.config.table_settings import TableConfig
from trainer.data.cache import default_cache
from trainer.data.frequency import Frequency
from trainer.data.levels import note_levels
from trainer.data.reading import builtin
from trainer.data.reading.problems import Problems
from trainer.data.reading.source import Source, open_source
from trainer.data.reading.source_files import find_files
from trainer.data.remote import is_remote, local_copy
from trainer.data.set_format import Columns, Item, SetInfo, Values
from trainer.data.set_writer import SetWriter, partial_folder
from trainer.files import file_digest

VERSION = 4
"""Changes where the same files are read as other series than before."""


def prepare_set(
    sources: Sequence[str],
    folder: Path,
    config: TableConfig,
    progress: Callable[[Item], None] = lambda item: None,
    *,
    then: Sequence[str] = (),
    digest_of_file: Callable[[Path], str] = file_digest,
) -> SetInfo:
    """Write the series of sources as a set, and return what it holds.

    The series of the sources `then` continue those of the same names; they are held in memory.
    `progress` is called with each series. What an earlier call with the same sources and settings
    has written, and could not finish, is kept. Raises UserError for sources that cannot be read,
    by the policy of `config.on_error`.
    """
    problems = Problems(config.on_error)
    sources, then = (_here(some, folder) for some in (sources, then))
    origin = digest_of([*sources, *then], config, digest_of_file)
    with ExitStack() as stack:
        try:
            opened = _opened(sources, config, problems, folder)
            later = _opened(then, config, problems, folder)
            columns, dtype = _common([*opened, *later])
            items = _distinct(opened, problems)
            if later:
                rest = {item.item_id: item for item in _distinct(later, problems)}
                items = _continued(items, rest, problems)
            writer = stack.enter_context(SetWriter(folder, columns, dtype, origin=origin))
            for number, item in enumerate(items):
                note_levels(item, columns, problems)
                if number >= writer.kept:
                    writer.add(item)
                progress(item)
            return writer.finish(problems.sentences(), timezone=_zone(opened, config))
        except OSError as error:
            reason = error.strerror or first_line(error)
            way_out = "what is written stays, and the same command goes on from there"
            if not partial_folder(folder).is_dir():
                way_out = "name another folder"
            raise UserError(f"{folder}: {reason}; {way_out}") from None


def _here(sources: Sequence[str], folder: Path) -> list[str]:
    """Return the paths of sources on this machine."""
    cache = default_cache(folder.parent)
    return [str(local_copy(one, cache)) if is_remote(one) else one for one in sources]


def digest_of(
    sources: Sequence[str],
    config: TableConfig,
    digest_of_file: Callable[[Path], str] = file_digest,
) -> str:
    """Return a hash of all files of sources and of how they are read."""
    total = hashlib.sha256(f"{VERSION} {config.model_dump_json()}".encode())
    seen: dict[str, Path] = {}
    for source in sources:
        total.update(builtin.version_of(source).encode())
        for file in [] if builtin.is_builtin(source) else find_files(source)[1]:
            digest = digest_of_file(file)
            if digest in seen:
                raise UserError(
                    f"data.source: {file} and {seen[digest]} hold the same; name one of them"
                )
            seen[digest] = file
            total.update(f"{file.name} {digest}".encode())
    return total.hexdigest()


def _opened(
    sources: Sequence[str], config: TableConfig, problems: Problems, folder: Path
) -> list[Source]:
    opened = [open_source(source, config, problems, folder.parent) for source in sources]
    for source in opened:
        for note in source.notes:
            problems.say(note)
    return opened


def _zone(sources: list[Source], config: TableConfig) -> str | None:
    """Return the zone of all series. Raises UserError where some times carry an offset alone."""
    zones = {source.is_utc() for source in sources}
    if len(zones) > 1 and config.timezone is None:
        raise UserError(
            "data.timezone: some times carry an offset and others do not; name the zone of those"
        )
    return config.timezone or ("UTC" if zones == {True} else None)


def _common(sources: list[Source]) -> tuple[Columns, str]:
    """Return the columns and the type that all sources have. Raises UserError for others."""
    first = sources[0]
    for other in sources[1:]:
        ours, theirs = first.columns, other.columns
        sizes = [(len(getattr(ours, role)), len(getattr(theirs, role))) for role in _ROLES]
        if any(a != b for a, b in sizes):
            raise UserError(
                f"data.source: {first.name} and {other.name} have other columns: "
                f"{', '.join(_all(ours))} and {', '.join(_all(theirs))}; prepare a set of each, "
                "or name those that both have"
            )
    single = all(source.dtype == "float32" for source in sources)
    return first.columns, "float32" if single else "float64"


_ROLES = ("target", "known", "past", "static_numbers", "static_categories")


def _all(columns: Columns) -> tuple[str, ...]:
    return tuple(name for role in _ROLES for name in getattr(columns, role))


def _distinct(sources: list[Source], problems: Problems) -> Iterator[Item]:
    """Yield the series of sources, each name once."""
    seen: set[str] = set()
    for source in sources:
        for item in source.items():
            if item.item_id in seen:
                problems.lose(
                    "series whose name another has, left out",
                    f"data.id_column: {item.item_id!r} of {source.name} names another series too",
                    mend="give each its own name",
                )
                continue
            seen.add(item.item_id)
            yield item


def _continued(items: Iterator[Item], rest: dict[str, Item], problems: Problems) -> Iterator[Item]:
    """Yield items with those of the same names after them."""
    for item in items:
        later = rest.pop(item.item_id, None)
        yield item if later is None else _joined(item, later, problems)
    if rest:
        problems.lose(
            "series that continue none, left out",
            f"{next(iter(rest))!r} continues no series of this name",
            mend="prepare it by itself",
            count=len(rest),
        )


def _joined(item: Item, later: Item, problems: Problems) -> Item:
    """Return an item with another's points after its own."""
    if item.start is not None and item.freq is not None and later.start is not None:
        frequency = Frequency.parse(item.freq)
        expected = frequency.times(item.start, item.length, item.length + 1)[0]
        if later.start != expected:
            problems.lose(
                "series whose continuation begins at another time, left as they are",
                f"{item.item_id!r} goes on at {expected}, and its continuation begins at "
                f"{later.start}",
                mend="prepare it by itself",
            )
            return item
    pairs = ((item.target, later.target), (item.known, later.known), (item.past, later.past))
    target, known, past = (cast(Values, np.concatenate(pair, axis=1)) for pair in pairs)
    return replace(item, target=target, known=known, past=past)
