"""`forescale evaluate RUN`: the newest checkpoint's scores, in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.output import check_target, print_json, showing_log
from model.errors import UserError
from trainer.files import written

if TYPE_CHECKING:
    from trainer.data import Dataset, Split
    from trainer.forecast.evaluate import PointForecast
    from trainer.forecast.forecaster import Forecaster
    from trainer.forecast.scores import Evaluation


def score(
    run: Path,
    overrides: Sequence[str] = (),
    *,
    split: str,
    report: Path | None = None,
    force: bool = False,
    ridge: bool = False,
    statsforecast: str | None = None,
    as_json: bool,
) -> None:
    """Print the scores on the windows of `split` that data.score_every chooses.

    `overrides` are settings of `data`, key=value, such as another source. `report` is an HTML file
    to write about them; one that is there is written over by `force`. With `ridge` a ridge
    regression is fitted to the training part and scored, too, and so are models of statsforecast,
    by their names with commas between. Raises UserError where there are no weights or windows.
    """
    from trainer.config.load import parse_overrides
    from trainer.data import Split
    from trainer.forecast.forecaster import Forecaster
    from trainer.forecast.ridge import RIDGE, Ridge
    from trainer.forecast.table import print_table
    from trainer.logs.log import log
    from trainer.logs.progress import CountingProgress

    if report is not None:
        check_target("--report", report, (".html",), force=force)
    elif force:
        raise UserError("--force: no file is written; name one by --report")
    chosen, changes = Split(split), parse_overrides(overrides)
    for key in changes:
        if not key.startswith("data."):
            raise UserError(f"{key}: a trained network is scored with other settings of data alone")
    with showing_log(as_json=as_json):
        forecaster = Forecaster.load(run)
        dataset = forecaster.dataset_of(changes)
        if not dataset.windows(chosen):
            raise UserError(f"{run}: {_why_no_window(dataset, chosen)}")
        if changes:
            for sentence in forecaster.facts.trained_on(dataset.facts):
                log.warning(sentence)
        elif dataset.facts != forecaster.facts:
            log.warning(
                "data.source: the training part of %s is not the one that %s was trained on: "
                "scores are in deviations of the new one",
                forecaster.settings.data.named,
                run,
            )
        notes = list(dataset.notes)
        if changes:  # of its own series training has told
            notes += forecaster.facts.other_intervals(dataset.facts.intervals)
            for note in notes:
                log.warning("data: %s", note)
        others: dict[str, PointForecast] = {}
        if statsforecast is not None:
            from trainer.forecast.classical import classical_models

            others |= classical_models(statsforecast.split(","), dataset)
        if ridge:
            with CountingProgress("fitting a ridge regression", "windows", "points") as counting:
                others[RIDGE] = Ridge.fit(dataset, counting.advance)
        evaluation = evaluated(forecaster, dataset, chosen, others)
        if report is not None:
            _write_report(report, run, forecaster, dataset, evaluation)
    if as_json:
        print_json({"step": forecaster.step, "notes": notes, **evaluation.summary()})
    else:
        print_table(evaluation)


def evaluated(
    forecaster: Forecaster,
    dataset: Dataset,
    split: Split,
    others: Mapping[str, PointForecast] | None = None,
) -> Evaluation:
    """Return a network's scores on a split, and those of `others` by name, and show progress."""
    from trainer.forecast.evaluate import evaluate
    from trainer.logs.progress import ScoringProgress

    with ScoringProgress(str(split)) as progress:
        return evaluate(
            dataset,
            split,
            forecaster.predict_windows,
            batch_size=forecaster.settings.train.micro_batch_size,
            levels=forecaster.network.output.levels,
            others=others or {},
            progress=progress,
        )


def _why_no_window(dataset: Dataset, split: Split) -> str:
    """Return why a split has no window, and what to do."""
    points = dataset.config.prediction_length
    if split == "held_out" and not any(part.parts.is_held_out.any() for part in dataset.parts):
        return (
            f"no series is held out, as data.held_out is {dataset.config.held_out:g}; set a larger "
            "share, of which it is said whether they were trained on, or choose another part with "
            "--split"
        )
    return (
        f"no window of {points} points lies in the {split} part; change data.split or "
        "data.split_last, set a smaller data.prediction_length, choose another part with --split, "
        "or score other series with data.source=FILE"
    )


def _write_report(
    file: Path, run: Path, forecaster: Forecaster, dataset: Dataset, evaluation: Evaluation
) -> None:
    from trainer.forecast.html_report import html_report
    from trainer.logs.log import log
    from trainer.logs.metrics import read_metrics
    from trainer.run.folder import RunFolder

    model = forecaster.settings.model
    parameters = sum(one.numel() for one in forecaster.network.parameters())
    facts = {
        "title": f"{run.name}: forecasts of {dataset.config.named}",
        "weights": f"{run}, after {forecaster.step:,} steps",
        "network": f"{parameters:,} parameters; {model.architecture}, loss {model.loss}",
        "windows": f"{evaluation.windows:,} of {evaluation.all_windows:,} of the "
        f"{evaluation.split} part, of {dataset.config.context_length} points, "
        f"{evaluation.horizon} ahead",
    }
    rows = read_metrics(RunFolder(run).metrics_file)
    with written(file) as partial:
        page = html_report(forecaster, dataset, evaluation, facts, rows)
        partial.write_text(page, encoding="utf-8")
    log.info("wrote %s", file)
