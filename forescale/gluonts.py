"""GluonTS: a predictor with which its evaluations, such as GIFT-Eval, run on a trained network.

It needs gluonts: pip install 'forescale[gluonts]'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from gluonts.core.component import validated
from gluonts.dataset.util import forecast_start
from gluonts.itertools import batcher
from gluonts.model.forecast import QuantileForecast
from gluonts.model.predictor import RepresentablePredictor

from forescale import Forecaster, UserError
from trainer.data.frequency import Frequency
from trainer.data.set_format import Item
from trainer.forecast.items import forecast_items

Entry = dict[str, Any]
"""A series as GluonTS has it: start, target, item_id, feat_dynamic_real and the like."""


class Predictor(RepresentablePredictor):  # type: ignore[misc]
    """A predictor with the weights of `path`: a run folder, a checkpoint or an export.

    It yields the mean and the quantiles that were trained, and of a network that forecasts points
    these as the median, too. Contexts are of any length. What the network knows in advance it takes
    from feat_dynamic_real, and what it reads up to the present from past_feat_dynamic_real, in the
    order of the columns that it was trained on.
    """

    @validated()  # type: ignore[untyped-decorator]
    def __init__(
        self, path: str, prediction_length: int, device: str = "cpu", batch_size: int = 64
    ) -> None:
        """Raises UserError where there are no weights."""
        super().__init__(prediction_length=prediction_length)
        self._forecaster = Forecaster.load(path, device)
        self._batch_size = batch_size

    def predict(self, dataset: Iterable[Entry], **kwargs: Any) -> Iterator[QuantileForecast]:
        """Yield a forecast for each entry; a number of samples, which some ask for, says nothing.

        Raises UserError for entries that the network does not take.
        """
        levels = self._forecaster.network.output.levels or (0.5,)
        keys = ["mean", *map(str, levels)]
        for entries in batcher(dataset, self._batch_size):
            items = [self._item(entry) for entry in entries]
            channels = range(1, 1 + len(items[0].target))
            names = ["target"] if len(channels) == 1 else [f"target {n}" for n in channels]
            made = forecast_items(self._forecaster, items, names, self.prediction_length, levels)
            for entry, forecast in zip(entries, made, strict=True):
                arrays = forecast.transpose(2, 1, 0)
                yield QuantileForecast(
                    arrays if np.ndim(entry["target"]) > 1 else arrays[..., 0],
                    forecast_start(entry),
                    keys,
                    item_id=entry.get("item_id"),
                )

    def _item(self, entry: Entry) -> Item:
        """Return an entry's series. Raises UserError where its interval is none."""
        start = entry["start"]
        moment = start.to_timestamp().to_datetime64().astype("datetime64[us]")
        try:
            freq = Frequency.named(start.freqstr, moment)
        except ValueError as error:
            raise UserError(f"start: {error}; use 30min, h, D, B, W, M, Q or Y") from None
        target = np.atleast_2d(np.asarray(entry["target"], np.float64))
        known, past = (
            np.atleast_2d(np.asarray(entry.get(field, []), np.float64))
            if names
            else np.empty((0, target.shape[1]))
            for field, names in (
                ("feat_dynamic_real", self._forecaster.facts.known),
                ("past_feat_dynamic_real", self._forecaster.past),
            )
        )
        name = str(entry.get("item_id", "a series without item_id"))
        return Item(name, moment, freq, target, known, past)
