"""`forescale prepare SOURCE... OUT`: series from files of any kind become a set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.output import showing_log
from launch.show_set import describe_set, rows_of
from launch.text_rows import print_rows
from model.errors import UserError
from trainer.config.load import parse_overrides
from trainer.config.table_settings import TableConfig, checked_table
from trainer.data.prepare_set import prepare_set
from trainer.data.set_format import Item
from trainer.logs.progress import CountingProgress


def prepare(arguments: Sequence[str], on_error: str | None, then: Sequence[str] = ()) -> None:
    """Write a set of the sources, and say what was found.

    `arguments` are sources, the set's folder and data.KEY=VALUE, in this order or mixed; series of
    `then` continue those of the same names.
    """
    paths, settings = divided(arguments)
    if len(paths) < 2:
        raise UserError("expected SOURCE... OUT: the files to read, and the folder to write")
    *sources, out = paths
    config = table_config(settings, on_error)
    with showing_log(), CountingProgress("preparing", "series", "points") as progress:

        def count(item: Item) -> None:
            progress.advance(1, item.length)

        prepare_set(sources, Path(out), config, count, then=then)
    print_rows(rows_of(describe_set(Path(out))))


def divided(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the paths and the settings KEY=VALUE among a command's arguments."""
    settings = [word for word in arguments if re.match(r"[a-z_]+(\.[a-z_]+)+=", word)]
    return [word for word in arguments if word not in settings], settings


def table_config(settings: list[str], on_error: str | None = None) -> TableConfig:
    """Return how tables are read, by settings data.KEY=VALUE. Raises UserError for others."""
    on_errors = {} if on_error is None else {"on_error": on_error}
    return checked_table(given_table(settings) | on_errors)


def given_table(settings: list[str]) -> dict[str, Any]:
    """Return settings data.KEY=VALUE by KEY. Raises UserError for others."""
    given = {}
    for key, value in parse_overrides(settings).items():
        if not key.startswith("data."):
            raise UserError(f"{key}: only settings of data say how tables are read")
        given[key.removeprefix("data.")] = value
    return given
