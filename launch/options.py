"""Options that several commands of the command line have."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from trainer.logs.log import VARIABLE

COUNT = click.IntRange(1)
"""Ranks or tasks."""
COUNT.name = "whole number"

run_dir_option = click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    help="Default: runs/NAME_OF_CONFIG, or CONFIG's own run.",
)
resume_option = click.option(
    "--resume",
    default="auto",
    show_default=True,
    metavar="auto|never|CHECKPOINT",
    help="Go on from the run folder's newest checkpoint, start anew, or from a given one.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on standard output."
)
force_option = click.option("--force", is_flag=True, help="Write over files that are there.")
explain_option = click.option(
    "--explain", is_flag=True, help="With --json: print the sentences too, on stderr."
)


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --quiet and --verbose, which count more than FORESCALE_LOG, to a command."""

    def option(short: str, name: str, level: str, text: str) -> Callable[..., Any]:
        def choose(context: click.Context, parameter: click.Parameter, chosen: bool) -> None:
            if chosen:
                os.environ[VARIABLE] = level  # the ranks that this process starts inherit it

        return click.option(
            short, name, is_flag=True, expose_value=False, callback=choose, help=text
        )

    quiet = option("-q", "--quiet", "warning", "Show only warnings and errors of the log.")
    verbose = option("-v", "--verbose", "debug", "Show all of the log.")
    return quiet(verbose(command))
