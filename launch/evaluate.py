"""`forescale evaluate RUN`: the newest checkpoint's scores, in one process."""

from __future__ import annotations

import json
from pathlib import Path


def score(run: Path, split: str, *, as_json: bool) -> None:
    from model.errors import UserError
    from trainer.data import Split
    from trainer.forecast.evaluate import evaluate
    from trainer.forecast.forecaster import Forecaster
    from trainer.forecast.report import print_table

    forecaster = Forecaster.load(run)
    chosen = Split(split)
    if not forecaster.dataset.windows(chosen):
        raise UserError(f"{run}: data.split leaves no window in the {split} part")
    size = forecaster.settings.train.micro_batch_size
    evaluation = evaluate(forecaster.dataset, chosen, forecaster.predict, batch_size=size)
    if as_json:
        print(json.dumps({"step": forecaster.step, **evaluation.summary()}, indent=1))
    else:
        print_table(evaluation)
