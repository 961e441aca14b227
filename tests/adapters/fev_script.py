"""Runs a task of fev on a run, and prints its summary and what was forecast as JSON."""

import json
import sys

import fev

from forescale import UserError
from forescale.fev import ForescaleModel

run, file, horizon, known, beside, targets = sys.argv[1:]
known, beside, targets = json.loads(known), json.loads(beside), json.loads(targets)
horizon = int(horizon)
task = fev.Task(
    dataset_path=file,
    horizon=horizon,
    num_windows=2,
    seasonality=7,
    eval_metric="MASE",
    extra_metrics=["WQL"],
    quantile_levels=[0.1, 0.5, 0.9],
    id_column="shop",
    timestamp_column="day",
    target=targets if len(targets) > 1 else targets[0],
    known_dynamic_columns=known,
    past_dynamic_columns=beside,
    task_name="shops",
)
model = ForescaleModel(run)
predictions = model.fit_predict(task)
summary = task.evaluation_summary(
    predictions, model_name=model.model_name, inference_time_s=model.inference_time
)
last = {
    target: {name: list(map(list, rows[name])) for name in ("predictions", "0.1")}
    for target, rows in predictions[-1].items()
}
refused = []
changed = (
    {"quantile_levels": [0.001]},
    {"known_dynamic_columns": []},
    {"past_dynamic_columns": []},
)
for changes in changed:
    try:
        model.fit_predict(fev.Task(**{**task.to_dict(), **changes}))
    except UserError as error:
        refused.append(str(error))
scores = {name: summary[name] for name in ("test_error", "WQL", "num_forecasts")}
ids = list(task.get_window(1).get_input_data()[0]["shop"])
print(json.dumps({"scores": scores, "last": last, "ids": ids, "refused": refused}))
