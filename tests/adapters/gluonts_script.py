"""Evaluates a run by GluonTS, and prints what it forecast as JSON."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from gluonts.dataset.pandas import PandasDataset
from gluonts.dataset.split import split
from gluonts.ev.metrics import MASE, MeanWeightedSumQuantileLoss
from gluonts.model import evaluate_model
from gluonts.model.predictor import Predictor as AnyPredictor

from forescale import UserError
from forescale.gluonts import Predictor

run, file, horizon, known, beside, targets, folder = sys.argv[1:]
known, beside, targets = json.loads(known), json.loads(beside), json.loads(targets)
horizon = int(horizon)
frame = pd.read_parquet(file)
data = PandasDataset.from_long_dataframe(
    frame,
    item_id="shop",
    timestamp="day",
    target=targets if len(targets) > 1 else targets[0],
    feat_dynamic_real=known or None,
    past_feat_dynamic_real=beside or None,
)
predictor = Predictor(run, prediction_length=horizon, batch_size=2)
Path(folder).mkdir()
predictor.serialize(Path(folder))
predictor = AnyPredictor.deserialize(Path(folder))
past, template = split(data, offset=-horizon)
tests = template.generate_instances(prediction_length=horizon)
forecasts = list(predictor.predict(tests.input))
found = {
    f.item_id: {
        "start": str(f.start_date),
        "mean": f.mean.tolist(),
        "low": f.quantile(0.1).tolist(),
    }
    for f in forecasts
}
scores = {}
if len(targets) == 1:
    metrics = [MASE(), MeanWeightedSumQuantileLoss(quantile_levels=[0.1, 0.5, 0.9])]
    scores = evaluate_model(predictor, test_data=tests, metrics=metrics, seasonality=7).iloc[0]
    scores = {name: float(value) for name, value in scores.items()}
nothing = dict(next(iter(tests.input)))
nothing["target"] = np.full_like(nothing["target"], np.nan)
[empty] = predictor.predict([nothing])
refused = []
for columns, field in ((known, "feat_dynamic_real"), (beside, "past_feat_dynamic_real")):
    if columns:
        try:
            list(predictor.predict([{k: v for k, v in nothing.items() if k != field}]))
        except UserError as error:
            refused.append(str(error))
told = {"found": found, "scores": scores, "empty": empty.mean.tolist(), "refused": refused}
print(json.dumps(told))
