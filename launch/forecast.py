"""`forescale forecast RUN`: what comes after the end of the series of a file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from launch.output import check_target, showing_log
from launch.prepare_data import given_table
from model.errors import UserError
from trainer.files import written
from trainer.forecast.forecaster import Forecaster
from trainer.forecast.future import Wish, forecast_future
from trainer.forecast.pictures import future_figure
from trainer.logs.log import log
from trainer.logs.progress import CountingProgress

WRITERS = {
    ".csv": lambda table, path: table.to_csv(path, index=False),
    ".parquet": lambda table, path: table.to_parquet(path, index=False),
    ".feather": lambda table, path: table.to_feather(path),
    ".arrow": lambda table, path: table.to_feather(path, compression="uncompressed"),
}
"""End of a file's name -> what writes a table there."""

MANY_PASSES = 20
"""Passes of the network for a forecast, from which on they are told of."""

MOST = 10
"""Sentences about series that could not be forecast."""


def forecast(
    run: Path,
    settings: Sequence[str],
    *,
    source: str,
    out: Path,
    horizon: int | None,
    quantiles: str | None,
    future: str | None,
    plot: Path | None,
    force: bool,
) -> None:
    """Write the forecasts of a file's series to `out`, and draw some of them.

    `settings` are data.KEY=VALUE of how tables are read. Raises UserError, and writes nothing,
    where that cannot be.
    """
    targets: list[tuple[str, Path, Sequence[str]]] = [("--output", out, tuple(WRITERS))]
    if plot is not None:
        targets.append(("--plot", plot, (".png",)))
    for option, file, ends in targets:
        check_target(option, file, ends, force=force)
        if file.resolve() in (Path(read).resolve() for read in (source, future) if read):
            raise UserError(f"{option}: {file} is read too, and would be lost; name another")
    levels = None if quantiles is None else _levels(quantiles)
    with showing_log():
        forecaster = Forecaster.load(run)
        table = forecaster.table_config(given_table(list(settings)))
        _tell_of_passes(forecaster, horizon)
        with CountingProgress("forecasting", "series", "points") as progress:
            wish = Wish(horizon, levels, future, table)
            with _told_by_options():
                found = forecast_future(
                    forecaster, source, wish, lambda series: progress.advance(series, 0)
                )
        for note in found.notes:
            log.info(note)
        for problem in found.problems[:MOST]:
            log.warning(problem)
        if len(found.problems) > MOST:
            log.warning("and %s more such sentences", len(found.problems) - MOST)
        with written(out) as partial:
            WRITERS[out.suffix.lower()](found.table, partial)
        if plot is not None:
            with written(plot) as partial:
                future_figure(found.pictured).savefig(partial, dpi=120)
            log.info("wrote %s", plot)
        log.info("wrote %s: %s", out, _described(found.table))


def _tell_of_passes(forecaster: Forecaster, horizon: int | None) -> None:
    """Log how long a horizon is where it takes many passes of the network."""
    at_once = forecaster.facts.shape.prediction_length
    passes = math.ceil((horizon or at_once) / at_once)
    if passes >= MANY_PASSES:
        log.info(
            "--horizon: %s points are %s passes of the network, which was trained for %s at once: "
            "this takes a while, and says less and less",
            f"{horizon:,}",
            f"{passes:,}",
            at_once,
        )


@contextmanager
def _told_by_options() -> Iterator[None]:
    """Within, errors about what was asked for name the command's options."""
    try:
        yield
    except UserError as error:
        sentence = str(error)
        is_option = sentence.startswith(("future: ", "horizon: ", "quantiles: "))
        raise UserError(f"--{sentence}" if is_option else sentence) from None


def _described(table: pd.DataFrame) -> str:
    names = [table.columns[0], *(name for name in ("variable",) if name in table)]
    series = len(table[names].drop_duplicates())
    return f"{len(table):,} rows of {series:,} series; columns {', '.join(table.columns)}"


def _levels(text: str) -> list[float]:
    """Return the levels of `0.1,0.5,0.9`. Raises UserError."""
    try:
        levels = [float(word) for word in text.split(",")]
    except ValueError:
        levels = []
    if not levels or not all(0 < level < 1 for level in levels):
        raise UserError(f"--quantiles: expected levels between 0 and 1, as 0.1,0.5,0.9; got {text}")
    return levels
