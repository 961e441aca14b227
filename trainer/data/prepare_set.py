"""Preparing a set: sources of any kind are read as series and written as a set, once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from model.errors import UserError
from model.sentences import first_line
from trainer.config.table_settings import TableConfig
from trainer.data.levels import note_levels
from trainer.data.reading import builtin
from trainer.data.reading.problems import Problems
from trainer.data.reading.source import Source, open_source
from trainer.data.reading.source_files import find_files
from trainer.data.set_format import Columns, Item, SetInfo
from trainer.data.set_writer import SetWriter

VERSION = 1
"""Changes where the same files are read as other series than before."""


def prepare_set(
    sources: Sequence[str],
    folder: Path,
    config: TableConfig,
    progress: Callable[[Item], None] = lambda item: None,
) -> SetInfo:
    """Write the series of sources as a set, and return what it holds.

    `progress` is called with each series. What an earlier call with the same sources and settings
    has written, and could not finish, is kept. Raises UserError for sources that cannot be read,
    by the policy of `config.on_error`.
    """
    problems = Problems(config.on_error)
    origin = digest_of(sources, config)
    with ExitStack() as stack:
        try:
            return _write(sources, folder, config, problems, progress, origin, stack)
        except OSError as error:
            raise UserError(
                f"{folder}: {first_line(error)}; what is written stays, and the same command goes "
                "on from there"
            ) from None


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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


def _write(
    sources: Sequence[str],
    folder: Path,
    config: TableConfig,
    problems: Problems,
    progress: Callable[[Item], None],
    origin: str,
    stack: ExitStack,
) -> SetInfo:
    opened = [open_source(source, config, problems, folder.parent) for source in sources]
    for source in opened:
        for note in source.notes:
            problems.say(note)
    columns, dtype = _common(opened)
    writer = stack.enter_context(SetWriter(folder, columns, dtype, origin=origin))
    for number, item in enumerate(_distinct(opened, problems)):
        note_levels(item, columns, problems)
        if number >= writer.kept:
            writer.add(item)
        progress(item)
    zones = {source.is_utc() for source in opened}
    if len(zones) > 1 and config.timezone is None:
        raise UserError(
            "data.timezone: some times carry an offset and others do not; name the zone of those"
        )
    zone = config.timezone or ("UTC" if zones == {True} else None)
    return writer.finish(problems.sentences(), timezone=zone)


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
