"""`forescale init`: a first configuration for a table, made by looking at it."""

from __future__ import annotations

import json
import os
import re
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from launch.output import showing_log
from launch.prepare_data import divided, table_config
from model.errors import UserError
from model.sentences import counted
from trainer.config.data_settings import DataConfig
from trainer.config.yaml_text import parse_value
from trainer.data import Dataset
from trainer.data.survey import Survey, survey
from trainer.files import written
from trainer.logs.log import log

MIN_ROWS = 20
"""Rows of a series with which something can be trained, validated and tested."""

DAY = pd.Timedelta(days=1)


@dataclass(frozen=True)
class Rhythm:
    """What an interval between points suggests."""

    words: str
    seasons: tuple[int, ...]
    """Periods in points, shortest first."""
    context: int
    horizon: int
    calendar: tuple[str, ...]


BUSINESS = Rhythm("business days", (5,), 60, 10, ("day_of_week", "day_of_year"))

SLOW = (
    (1, Rhythm("daily", (7,), 56, 14, ("day_of_week", "day_of_year"))),
    (7, Rhythm("weekly", (52,), 104, 13, ("day_of_year",))),
    (30.4, Rhythm("monthly", (12,), 36, 12, ("month",))),
    (91.3, Rhythm("quarterly", (4,), 24, 8, ("month",))),
    (365.25, Rhythm("yearly", (), 12, 4, ())),
)
"""Days between points -> their rhythm; horizons as in the M4 competition, about."""


@dataclass(frozen=True)
class Size:
    """The size of a first network, and how long it is trained."""

    values: float
    """Values to learn from, at most."""
    width: int
    layers: int
    dropout: float
    steps: int


SIZES = (
    Size(1e4, 32, 2, 0.2, 500),
    Size(1e6, 64, 2, 0.1, 1000),
    Size(1e8, 128, 3, 0.1, 4000),
    Size(float("inf"), 256, 4, 0.0, 20_000),
)

MAX_ROWS = 2048
"""Windows times channels that a micro-batch of a first run has at most."""


def write_config(arguments: Sequence[str]) -> None:
    """Write a configuration for a source to a file, by default NAME_OF_SOURCE.yaml here.

    `arguments` are the source, optionally the file, and settings data.KEY=VALUE of how it is read,
    which the configuration has, too. Raises UserError where the table cannot be used, or the file
    is there already.
    """
    paths, settings = divided(arguments)
    if len(paths) not in (1, 2):
        raise UserError(
            "expected SOURCE [CONFIG]: what to look at, and the file to write, as in: "
            "forescale init sales.csv sales.yaml"
        )
    source, config = Path(paths[0]), table_config(settings)
    file = Path(paths[1]) if paths[1:] else Path(f"{source.name.split('.')[0]}.yaml")
    if file.exists():
        other = shlex.join(["forescale", "init", str(source), f"{file.stem}-2.yaml", *settings])
        raise UserError(f"{file} is there already; name another: {other}")
    _check_folder(file)
    found = survey(str(source), config)
    text = first_config(found, file, config.model_dump(exclude_defaults=True))
    with showing_log():
        content = parse_value(text)
        for note in Dataset(DataConfig.model_validate(content["data"])).notes:
            log.warning("data: %s", note)
        with written(file) as partial:
            partial.write_text(text, encoding="utf-8")
        log.info("%s: %s", source, describe(found))
        log.info("wrote %s; now: forescale train %s", file, shlex.quote(str(file)))


def _check_folder(file: Path) -> None:
    """Raise UserError where `file` cannot be written, before the table is read."""
    folder = file.parent
    why = (
        "there is no such folder"
        if not folder.is_dir()
        else None
        if os.access(folder, os.W_OK)
        else "the folder cannot be written to"
    )
    if why is not None:
        raise UserError(f"{file}: {why}; name another place")


def describe(found: Survey) -> str:
    """Return in words what was found in a table."""
    what = [f"{found.rows:,} rows", rhythm_of(found).words]
    if found.time_column:
        what[1] += f" by {found.time_column}"
    if found.intervals > 1:
        what[1] += f" most often, of {found.intervals} intervals"
    if found.id_column or found.series > 1:
        names = found.id_column
        joined = " and ".join(names) if isinstance(names, list) else names
        by = f" by {joined}" if joined else ""
        what.append(f"{found.series:,} series{by}")
    what.append(f"forecasting {_shortened(found.targets)}")
    if found.others:
        what.append(f"left out: {_shortened(found.others)}")
    return "; ".join(what)


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def rhythm_of(found: Survey) -> Rhythm:
    """Return what the interval of a table's points suggests."""
    interval = found.interval
    if interval is None:
        return Rhythm("without timestamps", (), 96, 24, ())
    if found.is_business and interval == DAY:
        return BUSINESS
    days = interval / DAY
    for length, rhythm in SLOW:
        if 0.9 < days / length < 1.1:
            return rhythm
    per_day = round(1 / days) if days < 1 else 0
    words = "hourly" if per_day == 24 else f"every {span(interval)}"
    if per_day < 2:
        return Rhythm(words, (), 96, 24, ("day_of_year",))
    is_whole = abs(1 / days - per_day) < 1e-6
    seasons = (per_day, 7 * per_day) if is_whole else ()
    context = next((n for n in (7 * per_day, per_day) if n <= 2016), 512)
    horizon = per_day if per_day <= 288 else 60
    return Rhythm(words, seasons, context, horizon, ("time_of_day", "day_of_week"))


def span(interval: pd.Timedelta) -> str:
    """Return an interval in words: `15 minutes`, or `minute` for one."""
    seconds = interval.total_seconds()
    units = {"day": 86_400, "hour": 3600, "minute": 60, "second": 1}
    unit = next((unit for unit, length in units.items() if seconds % length == 0), "second")
    count = seconds / units[unit]
    return unit if count == 1 else f"{count:g} {unit}s"


def first_config(found: Survey, file: Path, given: Mapping[str, Any]) -> str:
    """Return the text of a configuration that trains on the table as it is read.

    `given` are the settings of data that say how.

    Raises UserError where its series are too short.
    """
    if found.length < MIN_ROWS:
        each = "each of its series has" if found.series > 1 else "it has"
        raise UserError(
            f"{found.source}: {each} {counted(found.length, 'row')}; at least {MIN_ROWS} are needed"
        )
    head = textwrap.wrap(describe(found), 98)
    lines = [*head, f"  forescale train {shlex.quote(str(file))}", "All keys: forescale keys"]
    lines = [f"# {line}" for line in lines]
    sections = _sections(found)
    if given.get("past_covariates"):
        sections["model"]["channels"] = ("grouped", "reads what is known up to the present")
    sections["data"] |= {key: (value, "as given") for key, value in given.items()}
    for section, keys in sections.items():
        lines.append(f"{section}:")
        for key, (value, comment) in keys.items():
            lines.append(f"  {key}: {as_yaml(value)}".ljust(34) + f" # {comment}")
    return "\n".join(lines) + "\n"


Sections = dict[str, dict[str, tuple[Any, str]]]
"""Section -> key -> value and comment."""


def _sections(found: Survey) -> Sections:
    rhythm, channels = rhythm_of(found), len(found.targets)
    horizon = min(rhythm.horizon, max(1, found.length // 10))
    # Half of the typical training part: the other half is where windows differ.
    context = min(rhythm.context, max(horizon, int(0.35 * found.length) - horizon))
    seasons = [season for season in rhythm.seasons if 1 < season <= context]
    naive = (seasons, "periods of the naive forecasts beside it")
    # Of several intervals each series has the seasons of its own.
    season_lengths = {"season_lengths": naive} if found.intervals <= 1 else {}
    patch = max(n for n in range(1, horizon + 1) if horizon % n == 0 and n <= max(1, context // 14))
    values = found.rows * channels
    size = next(size for size in SIZES if values <= size.values)
    every = size.steps // 5
    # Up to 16 of a step's 64 windows, so that two and four ranks may share them.
    micro = max(n for n in (1, 2, 4, 8, 16) if n == 1 or n * channels <= MAX_ROWS)
    named = (found.id_column, f"names each of {found.series:,} series")
    id_column = {"id_column": named} if found.id_column else {}
    columns: dict[str, tuple[Any, str]] = {}
    if found.has_rows_of_points:
        columns = {
            "time_column": (found.time_column or "none", rhythm.words),
            **id_column,
            "targets": (found.targets, "what is forecast"),
            "covariates": ([], "columns known in advance, such as prices: no targets then"),
            "past_covariates": ([], "known up to the present: model.channels grouped reads them"),
        }
    calendar = list(rhythm.calendar) if found.has_times else []
    return {
        "model": {
            "d_model": (size.width, f"width, for {values:,} values"),
            "nhead": (size.width // 16, "attention heads"),
            "num_layers": (size.layers, "of the encoder, and of the decoder"),
            "dim_feedforward": (4 * size.width, "SwiGLU takes 2/3 of it"),
            "dropout": (size.dropout, "more for little data"),
            "patch_length": (patch, "points that make a token"),
            "loss": ("mae", "or mse, huber, quantile, student_t"),
        },
        "data": {
            "source": (found.source, "a file, a folder of files or a prepared set"),
            **columns,
            "calendar": (calendar, "what the network is told of each timestamp"),
            "context_length": (context, "points that a forecast is made from"),
            "prediction_length": (horizon, "points that are forecast"),
            **season_lengths,
            "split": ([0.7, 0.1, 0.2], "training, validation, test, in time order"),
        },
        "train": {
            "steps": (size.steps, "optimizer steps"),
            "global_batch_size": (64, "windows of a step"),
            "micro_batch_size": (micro, "of them computed at once"),
            "learning_rate": (1e-3, "peak, after the warm-up"),
            "warmup_steps": (size.steps // 10, "steps of it"),
        },
        "checkpoint": {"every": (every, "steps between checkpoints")},
        "logging": {"validate_every": (every, "steps between scores of the validation part")},
    }


def as_yaml(value: Any) -> str:
    """Return a value as the configuration's YAML reads it back."""
    if isinstance(value, list):
        return f"[{', '.join(map(as_yaml, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    is_plain = re.fullmatch(r"[A-Za-z_./][\w./-]*", value) and parse_value(value) == value
    return value if is_plain else json.dumps(value, ensure_ascii=False)
