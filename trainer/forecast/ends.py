"""The windows at the ends of series, from which what comes next is forecast.

Shapes: B series, L context points, T points to forecast, C channels of a series, c of which the
network forecasts together, F covariates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from model.errors import UserError
from model.sentences import counted
from trainer.config.data_settings import DataConfig
from trainer.data.arrays import Doubles
from trainer.data.features import Calendar
from trainer.data.scaling import own_scale
from trainer.data.series_source import Series
from trainer.forecast.paths import Trained, forecast_paths

EXAMPLES = 3
"""Series that a sentence about several names."""


class SeriesEnds:
    """The ends of series, their forecasts, and why some have none."""

    def __init__(
        self,
        forecaster: Trained,
        series: Series,
        data: DataConfig,
        horizon: int,
        future: Series | None = None,
        *,
        at_last_value: bool = True,
    ) -> None:
        """`future` has the columns known in advance. A series ends at its last value, or where that
        is not so, at its last point. Raises UserError where the network does not take the series.
        """
        self.forecaster, self.series, self.horizon = forecaster, series, horizon
        at_once = forecaster.facts.shape.prediction_length
        self._computed = -(-horizon // at_once) * at_once
        """Points that the network computes: it sees as many ahead as in training, whatever is asked
        for."""
        self.back = 0
        """Points before the end of each series from which it is forecast."""
        shape, channels = forecaster.facts.shape, len(series.columns.target)
        may_lack = forecaster.settings.model.takes_fewer_channels and channels <= shape.channels
        if shape.channels not in (1, channels) and not may_lack:
            raise UserError(
                f"{series.name}: it has the channels {', '.join(series.columns.target)}, and the "
                f"network forecasts {', '.join(forecaster.facts.channels)} together; choose as "
                "many by data.targets"
            )
        self._known_names = forecaster.facts.known
        if self._known_names and self._known_names != series.columns.known:
            raise UserError(
                f"{series.name}: the network reads {', '.join(self._known_names)} in advance, and "
                f"this has {', '.join(series.columns.known) or 'none'}; name those, in this order, "
                "by data.covariates, of a prepared set when it is prepared"
            )
        missing = [name for name in forecaster.past if name not in series.columns.past]
        if missing:
            raise UserError(
                f"{series.name}: the network reads {', '.join(missing)} up to the present, and "
                f"this has {', '.join(series.columns.past) or 'none'}; name them by "
                "data.past_covariates, of a prepared set when it is prepared"
            )
        if future is not None and not self._known_names:
            raise UserError("future: the network reads no columns in advance; leave it out")
        if data.calendar and np.isnat(series.starts).any():
            raise UserError(
                f"{series.name}: it has no times, and the network reads the calendar "
                f"({', '.join(data.calendar)}); name the column of times by data.time_column"
            )
        self._is_apart = shape.channels == 1 and channels > 1
        self._lacking = max(0, shape.channels - channels)
        """Channels that the network takes and the series lack."""
        self._data, self._calendar = data, Calendar(series, data)
        self._future = future
        self._future_calendar = None if future is None else Calendar(future, data)
        self._ends: dict[int, int] = {}
        """Points of each item up to its end, once it was looked for."""
        self._at_last_value = at_last_value
        names = [] if future is None else future.item_ids().tolist()
        self._item_of = {name: item for item, name in enumerate(names)}
        self._problems: dict[str, dict[str, str]] = {}
        """Why series have no forecast -> their names -> these with what is particular to each."""
        self._done: set[str] = set()
        """Names of series that were forecast, from this origin or another."""

    def problems(self) -> list[str]:
        """Return a sentence about each kind of series that has no forecast somewhere, or a doubtful
        one."""
        answer = self.forecaster.facts.other_intervals(self.series.freqs())
        for why, named in self._problems.items():
            partly = {name: text for name, text in named.items() if name in self._done}
            wholly = {name: text for name, text in named.items() if name not in self._done}
            for names, when in ((wholly, ""), (partly, " from some origins")):
                if names:
                    are = "is" if len(names) == 1 else "are"
                    some = ", ".join([*names.values()][:EXAMPLES])
                    more = ", ..." if len(names) > EXAMPLES else ""
                    answer.append(
                        f"{len(names):,} series {are} not forecast{when}: {why} ({some}{more})"
                    )
        return answer

    def is_fit(self, item: int) -> bool:
        """Return whether an item can be forecast; where it cannot, note why."""
        target, why, place = self.series.target(item), None, ""
        if np.isnan(target).all(1).any():
            why = "a channel has no value at all"
        elif np.isnan(target[:, : max(0, self.end(item))]).all(1).any():
            why = "too short to begin so long before the end"
        elif np.isnan(known := self._known_after(item)[: self.horizon]).any():
            names = ", ".join(self._known_names)
            given = self._future is not None and self._future_item(item) is not None
            other = "" if self._future is None or given else ", which has no such series"
            why = (
                f"{names} must be known for the {counted(self.horizon, 'point')} to come; give "
                "them in rows without targets, or in a table of the future (--future FILE, "
                f"future=){other}"
            )
            first = int(np.flatnonzero(np.isnan(known).any(1))[0])
            place = f" from {self.times(item)[first]}"
        name = self.series.item_id(item)
        if why is None:
            self._done.add(name)
        else:
            self._problems.setdefault(why, {}).setdefault(name, f"{name}{place}")
        return why is None

    def end(self, item: int) -> int:
        """Return the number of an item's points that are known, up to its end or earlier."""
        if not self._at_last_value:
            return int(self.series.lengths[item]) - self.back
        if item not in self._ends:
            some = ~np.isnan(self.series.target(item)).all(0)
            self._ends[item] = int(np.flatnonzero(some)[-1]) + 1
        return self._ends[item] - self.back

    def times(self, item: int, first: int | None = None, stop: int | None = None) -> Any:
        """Return the times of points first..stop-1, by default of those to forecast.

        They are numbers where there are no times.
        """
        first = self.end(item) if first is None else first
        stop = first + self.horizon if stop is None else stop
        times = self._calendar.times(item, first, stop)
        return np.arange(first, stop) if times is None else times

    def forecasts(self, items: list[int]) -> Doubles:
        """Return point and quantiles of items in their own units [B, C, T, 1 + levels]."""
        facts, shape = self.forecaster.facts, self.forecaster.facts.shape
        contexts, scales, covariates, pasts = [], [], [], []
        for item in items:
            end = self.end(item)
            whole = self.series.target(item)[:, :end].T.astype(np.float64)
            mean, deviation = self._scale(whole)
            context = np.full((shape.context_length, whole.shape[1]), np.nan)
            part = whole[-shape.context_length :]
            context[len(context) - len(part) :] = (part - mean) / deviation
            context = np.pad(context, ((0, 0), (0, self._lacking)), constant_values=np.nan)
            known, past = self._covariates(item, end), self._past(item, end)
            for channel in self._rows(whole.shape[1]):
                contexts.append(context[:, channel] if self._is_apart else context)
                scales.append((mean[channel], deviation[channel]))
                covariates.append(known)
                pasts.append(past)
        made = forecast_paths(
            self.forecaster,
            torch.from_numpy(np.stack(contexts).astype(np.float32)),
            torch.from_numpy(np.stack(covariates).astype(np.float32)),
            torch.from_numpy(np.stack(pasts).astype(np.float32)),
            self.horizon,
        )
        means, deviations = (np.stack(each)[:, None, :, None] for each in zip(*scales, strict=True))
        made = made[:, :, : facts.shape.channels - self._lacking]
        values = made.double().numpy() * deviations + means  # [rows, T, c, 1 + levels]
        per_item = values.reshape(len(items), -1, *values.shape[1:])  # [B, rows, T, c, 1 + levels]
        return per_item.transpose(0, 1, 3, 2, 4).reshape(len(items), -1, *per_item.shape[2::2])

    def _rows(self, channels: int) -> list[slice]:
        """Return the channels that are forecast together: all, or each alone."""
        if not self._is_apart:
            return [slice(0, channels)]
        return [slice(channel, channel + 1) for channel in range(channels)]

    def _scale(self, values: Doubles) -> tuple[Doubles, Doubles]:
        """Return mean and deviation [C] that an item's values [T, C] are standardised by."""
        facts = self.forecaster.facts
        if facts.scaling == "none":
            return np.zeros(values.shape[1]), np.ones(values.shape[1])
        if facts.scaling == "table" and not self._is_apart and not self._lacking:
            return np.asarray(facts.mean), np.asarray(facts.deviation)
        return own_scale(values)

    def _covariates(self, item: int, end: int) -> Doubles:
        """Return what is known in advance of an item's context and future, [L + T, F]."""
        length = self.forecaster.facts.shape.context_length
        dates = self._calendar.features(item, end - length, end + self._computed)
        parts: list[Any] = [dates, self._known(item, end, length)]
        if self._data.calendar_encoding == "embedding":
            parts.reverse()
        return np.concatenate(parts, axis=1)

    def _past(self, item: int, end: int) -> Doubles:
        """Return the standardised columns known up to the present, [L, columns]; NaN if missing."""
        facts, names = self.forecaster.facts, self.forecaster.past
        length = facts.shape.context_length
        answer = np.full((length, len(names)), np.nan)
        if not names:
            return answer
        rows = [self.series.columns.past.index(name) for name in names]
        values = self.series.past(item)[rows, :end].T.astype(np.float64)
        mean, deviation = (
            own_scale(values)
            if facts.scaling == "item"
            else (np.asarray(facts.past_mean), np.asarray(facts.past_deviation))
        )
        part = values[-length:]
        answer[length - len(part) :] = (part - mean) / deviation
        return answer

    def _known(self, item: int, end: int, length: int) -> Doubles:
        """Return the standardised columns known in advance, [L + T, columns]; 0 where missing."""
        columns = self._known_names
        answer = np.full((length + self._computed, len(columns)), np.nan)
        if not columns:
            return answer
        past = self.series.known(item)[:, :end].T.astype(np.float64)
        part = past[-length:]
        answer[length - len(part) : length], answer[length:] = part, self._known_after(item)
        facts = self.forecaster.facts
        if facts.scaling == "item":
            mean, deviation = own_scale(past)
        else:
            mean, deviation = (
                np.asarray(of[len(of) - len(columns) :])
                for of in (facts.covariate_mean, facts.covariate_deviation)
            )
        return np.nan_to_num((answer - mean) / deviation)

    def _known_after(self, item: int) -> Doubles:
        """Return the columns known in advance of an item's computed points, NaN if missing.

        They stand beside the series, or else in the table of the future.
        """
        end = self.end(item)
        beside = self.series.known(item)[:, end : end + self._computed].T.astype(np.float64)
        found = np.full((self._computed, len(self._known_names)), np.nan)
        found[: len(beside)] = beside
        if self._future is not None:
            found = np.where(np.isnan(found), self._from_future(item), found)
        return found

    def _future_item(self, item: int) -> int | None:
        """Return the item of the future's table that goes on with an item; None for none."""
        is_alone = self._future is not None and len(self._future) == len(self.series) == 1
        return self._item_of.get(self.series.item_id(item), 0 if is_alone else None)

    def _from_future(self, item: int) -> Doubles:
        """Return what the table of the future has of an item's points to come, NaN for the rest."""
        assert self._future is not None and self._future_calendar is not None
        answer = np.full((self._computed, len(self._known_names)), np.nan)
        other = self._future_item(item)
        if other is None:
            return answer
        values = self._future.target(other).T.astype(np.float64)
        if np.isnat(self._future.starts[other]):
            part = values[: self._computed]
            answer[: len(part)] = part
            return answer
        given = self._future_calendar.times(other, 0, len(values))
        assert given is not None
        end = self.end(item)
        place = given.get_indexer(self.times(item, end, end + self._computed))
        answer[place >= 0] = values[place[place >= 0]]
        return answer
