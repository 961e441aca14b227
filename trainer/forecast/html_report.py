"""The report of an evaluation: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np

from trainer.data.arrays import Indices
from trainer.data.dataset import Dataset
from trainer.forecast import charts
from trainer.forecast.baselines import baselines
from trainer.forecast.charts import PicturedWindow
from trainer.forecast.expert_load import expert_load
from trainer.forecast.paths import Trained
from trainer.forecast.pictures import window_clock
from trainer.forecast.scores import MODEL, Evaluation
from trainer.forecast.table import SCORES
from trainer.logs.metrics import Row
from trainer.logs.names import VALIDATION

PICTURED = 3
"""Best windows, and worst ones, that are shown."""
LISTED = 10
"""Series with the lowest MASE, and with the highest, that are listed."""
CURVES = ("loss", VALIDATION, "learning_rate")
MAX_POINTS = 500
"""Points of a curve."""

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2.2rem }
p { max-width: 44rem } img { max-width: 100%; display: block }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid #e4e4e4 }
td:first-child, th:first-child { text-align: left } tr.ours td { font-weight: 600 }
table.facts td { text-align: left }
.columns { display: flex; gap: 3rem; flex-wrap: wrap }
"""


def html_report(
    forecaster: Trained,
    dataset: Dataset,
    evaluation: Evaluation,
    facts: Mapping[str, str],
    rows: Sequence[Row] = (),
) -> str:
    """Return an HTML page about an evaluation; `rows` are those of the training's metrics."""
    load = expert_load(forecaster, dataset, evaluation.split)
    sections = [
        f"<h1>{escape(facts['title'])}</h1>",
        _table([], [[name, value] for name, value in facts.items() if name != "title"], "facts"),
        *_scores(evaluation),
        "<h2>Errors over the horizon</h2>",
        _image(charts.errors_by_step(evaluation), "mean absolute error by points ahead"),
    ]
    if len(evaluation.levels) > 1:
        sections += [
            "<h2>Calibration</h2>",
            "<p>Of forecasts that know how sure they are, the points lie on the grey lines.</p>",
            _image(charts.calibration(evaluation), "share of points below each quantile"),
        ]
    for words, chosen in (("lowest", _chosen(evaluation)), ("highest", _chosen(evaluation, -1))):
        pictured = [_pictured(forecaster, dataset, evaluation, int(place)) for place in chosen]
        sections += [
            f"<h2>Windows of the {words} error</h2>",
            _image(charts.windows(pictured), f"windows of the {words} error"),
        ]
    if len(evaluation.items) > 1:
        sections += _series(evaluation)
    if load is not None:
        sections += [
            "<h2>Load of the experts</h2>",
            f"<p>The share of tokens that each expert serves, up to {load.share.max():.0%}, by "
            f"layer and by the series' interval; {1 / load.share.shape[-1]:.0%} where all are "
            "alike.</p>",
            _image(charts.load_of_experts(load), "share of tokens by layer, interval and expert"),
        ]
    curves = {name: _curve(rows, name) for name in CURVES}
    curves = {name: curve for name, curve in curves.items() if len(curve[0]) > 1}
    if curves:
        sections += [
            "<h2>Training</h2>",
            _image(charts.training_curves(curves), "curves of training"),
        ]
    title = escape(facts["title"])
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def _scores(evaluation: Evaluation) -> Iterable[str]:
    """Yield the table of scores, and how sure it is that the network's are lower."""
    scores = evaluation.scores()
    keys = [key for key in SCORES if any(key in one for one in scores.values())]
    yield "<h2>Scores</h2>"
    yield f"<p>MSE, MAE and CRPS are in {escape(evaluation.units)}; sMAPE is in percent.</p>"
    yield _table(
        ["forecast", *(SCORES[key] for key in keys)],
        [[name, *(_number(one.get(key)) for key in keys)] for name, one in scores.items()],
    )
    yield "<p>"
    for name, found in evaluation.reductions.items():
        sure = (
            ""
            if found.low is None
            else f" (95 % of resampled {evaluation.resampled}: {found.low:.1%} to {found.high:.1%})"
        )
        less = "lower" if found.value >= 0 else "higher"
        yield f"Its MAE is {abs(found.value):.1%} {less} than that of {escape(name)}{sure}.<br>"
    coverage = evaluation.coverage()
    if coverage is not None:
        yield f"The {coverage[0]:.0%} interval holds {coverage[1]:.1%} of the points."
    yield "</p>"


def _series(evaluation: Evaluation) -> Iterable[str]:
    """Yield tables of the series with the lowest and the highest MASE."""
    ours, naive = evaluation.mase(MODEL), evaluation.mase(evaluation.names[1])
    order = np.argsort(ours)[: int((~np.isnan(ours)).sum())]
    head = ["series", "MASE", evaluation.names[1]]
    yield f"<h2>Series</h2><p>{len(evaluation.items):,} are scored.</p><div class=columns>"
    for words, chosen in (("lowest", order[:LISTED]), ("highest", order[::-1][:LISTED])):
        rows = [[evaluation.items[i], _number(ours[i]), _number(naive[i])] for i in chosen]
        yield f"<div><p>Of the {words} MASE:</p>{_table(head, rows)}</div>"
    yield "</div>"


def _chosen(evaluation: Evaluation, direction: int = 1) -> Indices:
    """Return the places of windows with the lowest mean errors, or the highest (-1).

    They share no points.
    """
    points = evaluation.sums.of_windows("points")
    errors = evaluation.sums.of_windows("absolute", MODEL) / np.maximum(1.0, points)
    apart, chosen = -(-evaluation.horizon // evaluation.score_every), list[int]()
    for place in np.argsort(errors * direction, kind="stable").tolist():
        if len(chosen) == PICTURED:
            break
        item = evaluation.window_items[place]
        is_apart = all(
            item != evaluation.window_items[other] or abs(place - other) >= apart
            for other in chosen
        )
        if points[place] and is_apart:
            chosen.append(place)
    return np.array(chosen, np.int64)


def _pictured(
    forecaster: Trained, dataset: Dataset, evaluation: Evaluation, place: int
) -> PicturedWindow:
    """Return the channel of a scored window on which the network errs most."""
    split = evaluation.split
    index = dataset.scored(split)[place : place + 1]
    item = dataset.items_of(split, index)
    mean, deviation = (of[0] for of in dataset.scales(item))
    batch = dataset.batch(split, index)
    [(_, predicted)] = forecaster.predict_windows([batch])
    forecast = predicted[0].double().numpy()  # [H, C, 1 + levels]
    name = evaluation.names[1]
    baseline = next(baselines(batch.context, dataset, dataset.seasons(item)))[0]
    errors = np.nansum(np.abs(forecast[..., 0] - batch.target[0]), axis=0)
    channel = int(errors.argmax())

    def real(values: np.ndarray) -> np.ndarray:
        return values * deviation[channel] + mean[channel]

    shown = min(batch.context.shape[1], 3 * evaluation.horizon)
    title = evaluation.items[int(evaluation.window_items[place])]
    if len(evaluation.channels) > 1:
        title += f", {evaluation.channels[channel]}"
    return PicturedWindow(
        title=title[:40],
        times=window_clock(dataset, split, int(index[0]))[-shown - evaluation.horizon :],
        past=real(batch.context[0, -shown:, channel]),
        truth=real(batch.target[0, :, channel]),
        forecast=real(forecast[:, channel, 0]),
        interval=(real(forecast[:, channel, 1]), real(forecast[:, channel, -1]))
        if len(evaluation.levels) > 1
        else None,
        baseline=(name, real(baseline[:, channel])),
    )


def _curve(rows: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    """Return the steps and values of a metric, thinned out to MAX_POINTS."""
    points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    kept = points[:: max(1, len(points) // MAX_POINTS)]
    return [float(step) for step, _ in kept], [float(value) for _, value in kept]


def _number(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.4g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "scores") -> str:
    """Return a table whose row of the network, if there is one, stands out."""
    lines = [f'<table class="{kind}">']
    if head:
        lines.append("<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>")
    for row in rows:
        ours = ' class="ours"' if row[0] == MODEL else ""
        lines.append(f"<tr{ours}>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>")
    return "\n".join([*lines, "</table>"])


def _image(svg: str, alt: str) -> str:
    """Return a picture within the page; as an image, nothing in it can act on the page."""
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'
