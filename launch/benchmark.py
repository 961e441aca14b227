"""`forescale benchmark NAME DATA RUN`: a run's scores by one of the literature's protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from launch.evaluate import evaluated
from launch.output import print_json, showing_log
from launch.prepare_data import given_table
from model.errors import UserError

if TYPE_CHECKING:
    from trainer.forecast.forecaster import Forecaster
    from trainer.forecast.m4_scores import M4Scores
    from trainer.forecast.protocols import LongTerm, M4Group
    from trainer.forecast.scores import Evaluation


def benchmark(
    name: str,
    data: Path,
    run: Path,
    settings: Sequence[str] = (),
    *,
    horizon: int | None = None,
    as_json: bool,
) -> None:
    """Print the scores of a run's weights by the protocol `name` on `data`.

    `data` is a table, or the folder of M4's files; `settings` of data, key=value, say how it is
    read. `horizon` counts the points of a table that are forecast, by default as many as were
    trained. Raises UserError where the data are others, or the network does not take them.
    """
    from trainer.forecast.forecaster import Forecaster
    from trainer.forecast.protocols import LONG_TERM, M4
    from trainer.forecast.table import print_table

    if name not in LONG_TERM and name not in M4:
        raise UserError(
            f"{name}: there is no such protocol; there are {', '.join([*LONG_TERM, *M4])}"
        )
    given = given_table(list(settings))
    with showing_log(as_json=as_json):
        forecaster = Forecaster.load(run)
        if name in M4:
            if horizon not in (None, M4[name].horizon):
                raise UserError(f"--horizon: M4 forecasts {M4[name].horizon} points; leave it out")
            scores = _m4(forecaster, M4[name], data, given)
        else:
            evaluation = _long_term(forecaster, LONG_TERM[name], data, given, horizon)
    if name in M4 and as_json:
        print_json({"protocol": name, "step": forecaster.step, "scores": _m4_summary(scores)})
    elif name in M4:
        _print_m4(scores)
    elif as_json:
        print_json({"protocol": name, "step": forecaster.step, **evaluation.summary()})
    else:
        print_table(evaluation)


def _long_term(
    forecaster: Forecaster,
    protocol: LongTerm,
    data: Path,
    given: Mapping[str, Any],
    horizon: int | None,
) -> Evaluation:
    """Return the scores on every window of a table's test part."""
    from trainer.config.table_settings import TableConfig, checked_table
    from trainer.data import Split
    from trainer.data.cache import default_cache
    from trainer.data.prepared import open_set
    from trainer.forecast.protocols import write_channels_apart
    from trainer.logs.log import log

    trained = forecaster.facts.shape.prediction_length
    points = horizon or trained
    if points > trained:
        raise UserError(
            f"--horizon: {points} is more than the {trained} points that the network was trained "
            "for; train another with data.prediction_length"
        )
    # What it reads beside the channels; all others are forecast.
    read = {"covariates": forecaster.facts.known, "past_covariates": forecaster.past}
    table = checked_table({key: list(names) for key, names in read.items()} | dict(given))
    with TemporaryDirectory(prefix="forescale-") as folder:
        series = open_set(str(data), table, default_cache())
        source, how = str(data), table.model_dump()
        if forecaster.facts.shape.channels == 1 < len(series.columns.target):
            source, how = str(Path(folder) / data.name.split(".")[0]), TableConfig().model_dump()
            write_channels_apart(series, Path(source))
        dataset = forecaster.dataset_of(
            {f"data.{key}": value for key, value in how.items()}
            | protocol.settings(
                str(data), int(series.lengths.max()), forecaster.facts.shape.context_length
            )
            | {"data.source": source, "data.prediction_length": points}
        )
        for sentence in [*forecaster.facts.trained_on(dataset.facts), *series.notes]:
            log.warning(sentence)
        return evaluated(forecaster, dataset, Split.TEST)


def _m4(
    forecaster: Forecaster, group: M4Group, folder: Path, given: Mapping[str, Any]
) -> dict[str, M4Scores]:
    """Return the competition's scores of the network and of Naive 2."""
    import numpy as np

    from trainer.config.table_settings import checked_table
    from trainer.data.cache import default_cache
    from trainer.data.prepared import open_set
    from trainer.forecast.m4_scores import m4_scores, naive_2
    from trainer.forecast.protocols import m4_files
    from trainer.forecast.scores import MODEL

    table = checked_table({"freq": group.freq, **given})
    train, test = (open_set(str(file), table, default_cache()) for file in m4_files(group, folder))
    made = forecaster.predict(train.folder, horizon=group.horizon)
    forecasts = dict(tuple(made.groupby(made.columns[0])["mean"]))
    number = {name: row for row, name in enumerate(test.item_ids().tolist())}
    histories, futures, ours = [], [], []
    for item in range(len(train)):
        name = train.item_id(item)
        if name not in forecasts or name not in number:
            where = "test file" if name in forecasts else "forecasts"
            raise UserError(f"{folder}: series {name} is not in the {where}")
        history = train.target(item)[0].astype(np.float64)
        histories.append(history[~np.isnan(history)])
        futures.append(test.target(number[name])[0, : group.horizon].astype(np.float64))
        ours.append(forecasts[name].to_numpy())
    naive = [naive_2(history, group.horizon, group.season) for history in histories]
    return {
        name: m4_scores(histories, futures, forecast, group.season)
        for name, forecast in ((MODEL, ours), ("Naive 2", naive))
    }


def _m4_summary(scores: dict[str, M4Scores]) -> dict[str, Any]:
    *_, naive = scores.values()
    return {
        name: {"smape": one.smape, "mase": one.mase, "owa": one.owa(naive)}
        for name, one in scores.items()
    }


def _print_m4(scores: dict[str, M4Scores]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("forecast", "sMAPE", "MASE", "OWA")
    for name, numbers in _m4_summary(scores).items():
        table.add_row(name, *(f"{number:.3f}" for number in numbers.values()))
    Console(width=100).print(table)
