"""A model card: an export's README.md, for those who did not train it.

It is made of the run's own record: what was trained on, how, and with what scores. It tells no
path of the machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic's wish before Python 3.12

from model.sentences import counted
from parallel.layout import describe
from trainer.checkpoint.keys import WEIGHTS, of_kinds
from trainer.checkpoint.tensor_files import Shapes
from trainer.files import read_record
from trainer.weights.export_format import MODEL_TYPE
from trainer.weights.source import WeightsSource

SCORES = {"mse": "MSE", "mae": "MAE", "mase": "MASE", "wql": "WQL"}
"""Scores in a card, and what they are called."""


class _Evaluation(TypedDict):
    """What is read of a run's evaluation.json."""

    step: int
    split: str
    windows: int
    units: str
    scores: dict[str, dict[str, float | None]]


_EVALUATION = TypeAdapter(_Evaluation)


def model_card(source: WeightsSource, shapes: Shapes, title: str) -> str:
    """Return the card of weights with these shapes, in an export called `title`."""
    settings, shape = source.settings, source.facts.shape
    parameters = sum(map(math.prod, of_kinds(shapes, WEIGHTS).values()))
    what = settings.model.architecture.replace("_", "-")
    sections = [
        f"---\nlibrary_name: {MODEL_TYPE}\npipeline_tag: time-series-forecasting\ntags:\n"
        "- time-series\n- forecasting\n---",
        f"# {title}",
        f"Transformer ({what}) of {parameters:,} parameters\nafter "
        f"{counted(source.step, 'optimizer step')}. It forecasts {shape.prediction_length} points "
        f"of\n{', '.join(source.facts.channels)} from {shape.context_length}.",
        _use(source, title),
        "## Data",
        *_data(source),
        "## Training",
        "\n".join(f"- {line}" for line in _training(source)),
        *_scores(source),
    ]
    return "\n\n".join(sections) + "\n"


def _use(source: WeightsSource, title: str) -> str:
    """Return how to forecast with it."""
    shape = source.facts.shape
    columns = shape.covariates + len(shape.calendar)
    arguments, covariates = "context", ""
    past = source.facts.past if source.settings.model.reads_past else ()
    if columns:
        arguments = "context, covariates"
        length = shape.context_length + shape.prediction_length
        names = ", ".join(_known_in_advance(source)) or "no names are known"
        covariates = f"; what is known in advance is [B, {length}, {columns}]: {names}"
    if past:
        arguments += ", past=past"
        covariates += (
            f"; past is [B, {shape.context_length}, {len(past)}], known up to the present: "
            f"{', '.join(past)}"
        )
    return f"""```python
from forescale import Forecaster

forecaster = Forecaster.load("{title}")
table = forecaster.predict("series.csv")  # a file or a frame; what comes after its end
forecast = forecaster.forecast({arguments})  # [B, {shape.prediction_length}, {shape.channels}]
```

Contexts are [B, {shape.context_length}, {shape.channels}], in the series' own units, as forecasts
are{covariates}."""


def _known_in_advance(source: WeightsSource) -> list[str]:
    """Return the names of the covariates, in the order in which they are given."""
    data, known = source.settings.data, list(source.facts.known)
    if data.calendar_encoding == "embedding":
        return [*known, *data.calendar]
    return [*(f"{name} ({wave})" for name in data.calendar for wave in ("sin", "cos")), *known]


def _data(source: WeightsSource) -> Iterator[str]:
    """Yield what was trained on, as far as it is known."""
    sources = source.facts.sources
    if not sources:
        yield "What it was trained on is not known: the weights are of an older version."
        return
    rows = [
        [one.name, f"{one.items:,}", f"{one.windows:,}", f"{one.held_out:,}"] for one in sources
    ]
    yield _table(["source", "series", "training windows", "series held out"], rows)
    yield (
        "Scores on other parts of these series are not zero-shot; `forescale evaluate` says so\n"
        "where one of them is scored."
    )


def _training(source: WeightsSource) -> Iterator[str]:
    """Yield how it was trained, a line for each part of it."""
    train, model = source.settings.train, source.settings.model
    yield (
        f"{counted(source.step, 'step')} of {counted(train.global_batch_size, 'window')}, loss "
        f"{model.loss}, {train.precision}, schedule {train.schedule}, peak learning rate "
        f"{train.learning_rate:g}, seed {train.seed}"
    )
    if train.ema_decay:
        yield f"the weights are the moving average of decay {train.ema_decay:g}"
    made_in = {} if source.run is None else read_record(source.run.environment_file)
    if isinstance(made_in.get("layout"), dict):
        yield f"last on {describe(made_in['layout'])}; the layout does not change results"
    versions = made_in.get("versions")
    if isinstance(versions, dict):
        yield ", ".join(f"{name} {version}" for name, version in versions.items())


def _scores(source: WeightsSource) -> Iterator[str]:
    """Yield the scores of these weights on the test windows, if the run has them."""
    if source.run is None:
        return
    try:
        found = _EVALUATION.validate_python(read_record(source.run.evaluation_file))
    except ValidationError:  # it is not there, or spoiled
        return
    if found["step"] != source.step:
        return
    scores = found["scores"]
    keys = [key for key in SCORES if any(key in one for one in scores.values())]
    rows = [[name, *(_number(one.get(key)) for key in keys)] for name, one in scores.items()]
    yield "## Scores"
    yield f"On {found['windows']:,} {found['split']} windows, errors in {found['units']}:"
    yield _table(["forecast", *(SCORES[key] for key in keys)], rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', ' ') for cell in line)} |" for line in lines)
