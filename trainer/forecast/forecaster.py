"""The forecaster: a trained network in plain torch, on one device, without DeepSpeed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from model import rollout
from model.errors import UserError
from model.init import postponed
from model.network import TimeSeriesTransformer
from model.sentences import counted, first_line
from model.tokens import Inputs
from trainer.checkpoint.keys import state_of
from trainer.checkpoint.tensor_files import check_shapes
from trainer.config import Settings
from trainer.config.load import changed
from trainer.config.table_settings import TableConfig, checked_table
from trainer.data import Dataset
from trainer.data.scaling import own_scale
from trainer.data.series_facts import SeriesFacts
from trainer.data.windows import WindowBatch
from trainer.forecast.future import (
    Frame,
    FutureForecast,
    Wish,
    backtest,
    first_forecasts,
    forecast_future,
)
from trainer.forecast.given_arrays import check_values, checked_array
from trainer.weights.source import WeightsSource, find, intact

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_READ_ATTEMPTS = 5
"""Number of checkpoints that are tried: a run that is training may remove the one being read."""


class Forecaster:
    """A network with its weights, and the facts about the series that it was trained on."""

    def __init__(
        self, network: TimeSeriesTransformer, settings: Settings, facts: SeriesFacts, step: int
    ) -> None:
        self.network = network.eval()
        self.settings, self.facts, self.step = settings, facts, step

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Forecaster:
        """Load a run folder's newest intact checkpoint, a checkpoint or an export.

        Any layout may have written it. Raises UserError where there are no weights, they are not
        intact, or torch has no such device.
        """
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            why = f"device={str(device)!r}: {first_line(error)}"
            raise UserError(f"{why}; device='cpu' is always there") from None
        for _ in range(MAX_READ_ATTEMPTS):
            source = intact(find(Path(path)))
            try:
                network = _load_network(source)
                break
            except UserError:
                if source.path.exists():
                    raise
        else:
            raise UserError(f"{path}: its checkpoints are replaced faster than they can be read")
        return cls(network.to(device), source.settings, source.facts, source.step)

    @property
    def past(self) -> tuple[str, ...]:
        """The names of the columns known up to the present that the network reads."""
        return self.facts.past if self.settings.model.reads_past else ()

    @cached_property
    def dataset(self) -> Dataset:
        """The series that the configuration names. Raises UserError where they are not here."""
        return Dataset(self.settings.data)

    def dataset_of(self, overrides: Mapping[str, Any]) -> Dataset:
        """Return the series that the configuration names with changed settings of `data`.

        Raises UserError where they are not here, or the network does not take their windows.
        """
        if not overrides:
            return self.dataset
        taken = self.facts.shape
        data = Dataset(
            changed(self.settings, overrides).data,
            is_trained_on=False,
            ahead=taken.prediction_length,
            past=self.facts.past,
            channels=taken.channels if self.settings.model.takes_fewer_channels else 0,
        )
        given, known = data.shape, data.parts[0].series.columns.known
        if self.facts.known and known != self.facts.known:
            raise UserError(
                f"data.covariates: the network reads {', '.join(self.facts.known)} in advance, and "
                f"{data.parts[0].name} has {', '.join(known) or 'none'}; name those, in this "
                "order, of a prepared set when it is prepared"
            )
        for key, what, here, there in (
            ("data.targets", "channel", given.channels, taken.channels),
            ("data.covariates", "covariate", given.covariates, taken.covariates),
            ("data.calendar", "calendar feature", len(given.calendar), len(taken.calendar)),
        ):
            if here != there:
                raise UserError(
                    f"data.source: it has {counted(here, what)}, and the network takes {there}; "
                    f"choose as many by {key}, of a prepared set when it is prepared"
                )
        for key in ("context_length", "prediction_length"):
            if getattr(given, key) > getattr(taken, key):
                raise UserError(
                    f"data.{key}: {getattr(given, key)} is more than the {getattr(taken, key)} "
                    "that the network was trained for"
                )
        return data

    @torch.no_grad()
    def predict_windows(
        self, batches: Iterable[WindowBatch]
    ) -> Iterator[tuple[WindowBatch, Tensor]]:
        """Yield batches with their forecasts, in standardised units and on the CPU.

        They are points and quantiles [B, H, C, 1 + levels].
        """
        device = next(self.network.parameters()).device
        for batch in batches:
            horizon = batch.target.shape[1]
            window = self._window(
                torch.from_numpy(batch.variates), torch.from_numpy(batch.covariates)
            )
            context, covariates = (tensor.to(device) for tensor in window)
            (predicted,) = rollout.forecast(self.network, [(context, covariates)], self._outputs)
            yield batch, predicted[:, :horizon].cpu()

    def _window(self, context: Tensor, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Return a window of the network's length: nothing is known before it."""
        shape = self.facts.shape
        early = shape.context_length - context.shape[1]
        if early or context.isnan().any():
            # Missing points, and those before a context, are masked.
            self.network.shape = replace(self.network.shape, missing=True)
        before = (0, 0, early, 0)
        return F.pad(context, before, value=math.nan), F.pad(covariates, before)

    def _outputs(self, inputs: Sequence[Inputs]) -> list[Tensor]:
        return [self.network(one) for one in inputs]

    def forecast(
        self,
        context: npt.ArrayLike,
        covariates: npt.ArrayLike | None = None,
        past: npt.ArrayLike | None = None,
    ) -> npt.NDArray[np.float64]:
        """Return forecasts [B, H, C] from contexts [B, L, C], both in the series' own units.

        Missing points of a context are NaN, and each channel of a context has at least one point.
        L may be less than data.context_length where the network takes contexts of any length.
        `covariates` [B, L + H, F] are known in advance: calendar features, then the columns
        `facts.known` in their own units; embedded calendar features come last. All are there.
        `past` [B, L, P] are the columns that `Forecaster.past` names, known up to the present, NaN
        where missing. Raises UserError for other shapes and values.
        """
        shape = self.facts.shape
        values = checked_array("context", context, self.context_lengths(), shape.channels)
        rows, length = values.shape[:2]
        features = checked_array(
            "covariates",
            np.zeros((rows, length + shape.prediction_length, 0))
            if covariates is None
            else covariates,
            range(length + shape.prediction_length, length + shape.prediction_length + 1),
            shape.covariates + len(shape.calendar),
        )
        beside = checked_array(
            "past",
            np.zeros((rows, length, 0)) if past is None else past,
            range(length, length + 1),
            len(self.past),
        )
        for name, array in (("covariates", features), ("past", beside)):
            if len(array) != rows:
                raise UserError(f"{name}: of {len(array)} contexts, and there are {rows}")
        check_values(values, features, beside)
        mean, deviation = self._scale(values)
        batch = WindowBatch(
            ((values - mean) / deviation).astype(np.float32),
            np.full((rows, shape.prediction_length, shape.channels), np.nan, np.float32),
            self._scaled_covariates(features, length).astype(np.float32),
            np.ones(rows, np.float32),
            past=self._scaled_past(beside).astype(np.float32),
        )
        [(_, forecast)] = self.predict_windows([batch])
        return np.asarray(forecast[..., 0].double().numpy() * deviation + mean)

    def predict(
        self,
        data: str | Path | Frame,
        *,
        horizon: int | None = None,
        quantiles: Sequence[float] | None = None,
        future: str | Path | Frame | None = None,
        **table: Any,
    ) -> pd.DataFrame:
        """Return forecasts of what comes after the end of each series, as a table.

        `data` is a frame of pandas or polars, a file, a folder of files or a prepared set, as
        data.source takes them. `horizon` counts the points to forecast, by default as many as were
        trained; beyond those quantile paths are fed back. `quantiles` are by default those that
        were trained. `future` has the columns known in advance of the points to come, unless `data`
        has them in rows without targets. Keywords say how tables are read, as id_column="store";
        by default as in training.

        The answer has a row for each series and time: the series' name and its time as they are
        called in `data` (else unique_id, ds), `variable` where a series has several channels,
        mean, and a column for each quantile. Series that cannot be forecast are left out, and a
        warning counts them. Raises UserError where none can.
        """
        wish = Wish(horizon, quantiles, future, self.table_config(table))
        return _told(forecast_future(self, data, wish))

    def plot(
        self,
        data: str | Path | Frame,
        *,
        horizon: int | None = None,
        quantiles: Sequence[float] | None = None,
        future: str | Path | Frame | None = None,
        **table: Any,
    ) -> Figure:
        """Return a figure of matplotlib: the ends of the first series and what `predict` forecasts.

        The band is between the lowest and the highest quantile that were trained.
        """
        from trainer.forecast.pictures import future_figure

        wish = Wish(horizon, quantiles, future, self.table_config(table))
        return future_figure(first_forecasts(self, data, wish))

    def backtest(
        self,
        data: str | Path | Frame,
        *,
        windows: int = 1,
        step: int | None = None,
        horizon: int | None = None,
        quantiles: Sequence[float] | None = None,
        **table: Any,
    ) -> pd.DataFrame:
        """Return what `predict` would have forecast of the last points of each series.

        From `windows` origins, `step` points apart and by default `horizon`; the last one is a
        horizon before the end. Beside `predict`'s columns stand cutoff, the last time that was
        known, and what came: under the target's name, or y where there are several channels.
        """
        wish = Wish(horizon, quantiles, None, self.table_config(table))
        return _told(backtest(self, data, wish, windows=windows, step=step))

    def table_config(self, given: Mapping[str, Any]) -> TableConfig:
        """Return how tables are read: as in training but for the settings `given`.

        Covariates are by default those that the network reads, of which the settings of one that
        was trained on a prepared set say nothing. Raises UserError for settings that are wrong.
        """
        table = self.settings.data.table.model_dump()
        if not table["covariates"]:
            table["covariates"] = list(self.facts.known)
        table["past_covariates"] = list(self.past)
        return checked_table(table | dict(given))

    def context_lengths(self) -> range:
        """Return the lengths of the contexts that the network takes."""
        longest, model = self.facts.shape.context_length, self.settings.model
        takes_any = model.has_queries or model.scores_all_positions
        return range(1 if takes_any else longest, longest + 1)

    def _scaled_covariates(
        self, covariates: npt.NDArray[np.float64], length: int
    ) -> npt.NDArray[np.float64]:
        """Return covariates [B, L + H, F] as the network sees them, L = `length`.

        Where each of many series had scales of its own, a context has its own, too.
        """
        facts, numbers = self.facts, slice(0, self.facts.shape.covariates)
        mean, deviation = np.asarray(facts.covariate_mean), np.asarray(facts.covariate_deviation)
        if facts.scaling == "item" and facts.known:
            numbers = slice(facts.shape.covariates - len(facts.known), facts.shape.covariates)
            mean, deviation = own_scale(covariates[:, :length, numbers], 1, keepdims=True)
        elif not facts.covariate_mean:
            return covariates
        scaled = covariates.copy()
        scaled[:, :, numbers] = (covariates[:, :, numbers] - mean) / deviation
        return scaled

    def _scaled_past(self, past: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return columns known up to the present [B, L, P] as the network sees them."""
        facts = self.facts
        if facts.scaling == "item":
            mean, deviation = own_scale(past, 1, keepdims=True)
        else:
            mean, deviation = np.asarray(facts.past_mean), np.asarray(facts.past_deviation)
        return (past - mean) / deviation if self.past else past

    def _scale(
        self, context: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return mean and deviation [B or 1, 1, C] that contexts [B, L, C] are standardised by."""
        if self.facts.scaling != "item":
            return np.asarray(self.facts.mean), np.asarray(self.facts.deviation)
        return own_scale(context, 1, keepdims=True)


def _told(found: FutureForecast) -> pd.DataFrame:
    """Return a forecast's table; warn of what could not be forecast."""
    for problem in found.problems:
        warnings.warn(problem, stacklevel=3)
    return found.table


def _load_network(source: WeightsSource) -> TimeSeriesTransformer:
    """Return the network with its weights; allocate nothing large before they are known to fit."""
    settings, shape = source.settings, source.facts.shape
    with torch.device("meta"):
        wanted = TimeSeriesTransformer(settings.model, shape)
    shapes = {key: tuple(tensor.shape) for key, tensor in state_of(wanted).items()}
    check_shapes(source.path, source.shapes(), shapes)
    with postponed():
        network = TimeSeriesTransformer(settings.model, shape)
    source.read(state_of(network))
    return network.bfloat16() if settings.train.precision == "bf16" else network
