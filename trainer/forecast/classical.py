"""Classical models of statsforecast, such as AutoETS, fitted to each window's context anew.

It needs statsforecast: pip install 'forescale[statsforecast]'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from model.errors import UserError
from model.sentences import nearest
from trainer.data.arrays import Doubles, Floats
from trainer.data.dataset import Dataset
from trainer.forecast.baselines import fill_forward


class Classical:
    """A model by its name in statsforecast."""

    def __init__(self, model: Any, horizon: int) -> None:
        self._model, self._horizon = model, horizon

    def __call__(self, context: Floats) -> Floats:
        """Return point forecasts [B, H, C] from contexts [B, L, C].

        A context begins at its first value; missing points later have the one before them. One
        without any is forecast as 0, and one that does not vary or is too short as its last value.
        """
        filled, valid = fill_forward(context), ~np.isnan(context)
        forecasts = np.zeros((len(filled), self._horizon, filled.shape[2]), np.float32)
        for row, channel in zip(*np.nonzero(valid.any(1)), strict=True):
            first = int(valid[row, :, channel].argmax())
            values = filled[row, first:, channel].astype(np.float64)
            forecasts[row, :, channel] = self._forecast(values)
        return forecasts

    def _forecast(self, values: Doubles) -> Any:
        if np.ptp(values) == 0:
            return values[-1]
        try:
            mean = self._model.forecast(y=values, h=self._horizon)["mean"]
        except NotImplementedError:  # so they refuse what is too short for their parameters
            return values[-1]
        return np.where(np.isfinite(mean), mean, values[-1])


def classical_models(names: Sequence[str], dataset: Dataset) -> dict[str, Classical]:
    """Return models by name, with the season of most series of the dataset.

    Raises UserError where statsforecast is not there, or has no such model.
    """
    try:
        from statsforecast import models
    except ImportError:
        raise UserError(
            "--statsforecast: it is not there; run: pip install 'forescale[statsforecast]'"
        ) from None
    season = (dataset.season_lengths or [1])[0]
    found = {}
    for name in names:
        kind = getattr(models, name, None)
        if not isinstance(kind, type) or not hasattr(kind, "forecast"):
            near = nearest(name, [one for one in vars(models) if one[:1].isupper()])
            way_out = f"did you mean {near}?" if near else "there are AutoETS, AutoTheta, AutoARIMA"
            raise UserError(f"--statsforecast: there is no model {name!r}; {way_out}")
        try:
            model = kind(season_length=season)
        except TypeError:  # of one without seasons, or that wants to be told more
            try:
                model = kind()
            except TypeError as error:
                raise UserError(f"--statsforecast: {name}: {error}; name another") from None
        found[name] = Classical(model, dataset.shape.prediction_length)
    return found
