"""A whole forecaster as one graph that runs without Forescale: ONNX, or torch's exported program.

Shapes: B series, L context points, H points to forecast, C channels, F covariates, P columns that
are known up to the present.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from model import rollout
from model.errors import UserError
from model.sentences import first_line
from model.tokens import Inputs
from trainer.files import written
from trainer.forecast.forecaster import Forecaster
from trainer.logs.log import log

MOST_SERIES = 2**16
"""Series of a batch, at most."""

MOST_BYTES = 2**31 - 2**24
"""Bytes of weights that an ONNX file holds, which is one message of at most 2 GiB."""

INPUTS = ("context", "covariates", "past")

Sizes = tuple[dict[int, Dim] | None, ...]
"""For each input of a graph that is there, the dimensions whose size may be another."""


class ForecasterGraph(nn.Module):
    """What `Forecaster.forecast` computes, with quantiles, in torch alone.

    forward(context [B, L, C], covariates [B, L + H, F], past [B, L, P]) is point forecasts and
    quantiles [B, H, C, 1 + levels]; all are fp64 and in the series' own units, NaN where a context
    has no value. Covariates and past are None where the network reads none.
    """

    _mean: Tensor
    _deviation: Tensor
    _covariate_mean: Tensor
    _covariate_deviation: Tensor
    _past_mean: Tensor
    _past_deviation: Tensor

    def __init__(self, forecaster: Forecaster) -> None:
        super().__init__()
        self.network = deepcopy(forecaster.network).float().cpu()
        self._facts = forecaster.facts
        self.network.shape = replace(self.network.shape, missing=True)
        shape = self._facts.shape
        self._length, self._horizon = shape.context_length, shape.prediction_length
        self.columns, self.past = shape.covariates + len(shape.calendar), len(forecaster.past)
        known = len(self._facts.known)
        self._has_own_scales = self._facts.scaling == "item" and known > 0
        self._numbers = (
            slice(shape.covariates - known, shape.covariates)
            if self._has_own_scales
            else slice(0, shape.covariates)
        )
        """Columns of the covariates that are standardised."""
        kinds = ("mean", "deviation")
        for name in (f"{of}{kind}" for of in ("", "covariate_", "past_") for kind in kinds):
            values = torch.tensor(getattr(self._facts, name), dtype=torch.float64)
            self.register_buffer(f"_{name}", values, persistent=False)

    def forward(
        self, context: Tensor, covariates: Tensor | None = None, past: Tensor | None = None
    ) -> Tensor:
        length = context.shape[1]
        mean, deviation = self._scale(context)
        if covariates is None:
            covariates = context.new_zeros(context.shape[0], length + self._horizon, self.columns)
        known = self._scaled(covariates, length)
        seen = (context - mean) / deviation
        if past is not None:
            seen = torch.cat([seen, self._scaled_past(past)], 2)
        window = self._as_longest(seen, length, self._length, math.nan)
        inputs = (
            window.float(),
            self._as_longest(known, length, self._length + self._horizon, 0.0).float(),
        )
        (made,) = rollout.forecast(self.network, [inputs], self._computed)
        return made.double() * deviation.unsqueeze(-1) + mean.unsqueeze(-1)

    def _as_longest(self, values: Tensor, length: int, points: int, value: float) -> Tensor:
        """Return values of L = `length` points and later ones as of the longest context's `points`.

        Before them is `value`. No size of a graph may be 0: as many points as the longest context
        has are put before, and the first of them are left out.
        """
        size = (values.shape[0], self._length, values.shape[2])
        return torch.cat([values.new_full(size, value), values], 1)[:, length:][:, :points]

    def _computed(self, inputs: Sequence[Inputs]) -> list[Tensor]:
        return [self.network(one) for one in inputs]

    def _scale(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation [B or 1, 1, C] that contexts are standardised by."""
        if self._facts.scaling != "item":
            return self._mean.view(1, 1, -1), self._deviation.view(1, 1, -1)
        return _own_scale(context)

    def _scaled_past(self, past: Tensor) -> Tensor:
        """Return columns known up to the present as the network sees them."""
        mean, deviation = (
            _own_scale(past)
            if self._facts.scaling == "item"
            else (self._past_mean, self._past_deviation)
        )
        return (past - mean) / deviation

    def _scaled(self, covariates: Tensor, length: int) -> Tensor:
        """Return covariates as the network sees them."""
        if not self._has_own_scales and not self._facts.covariate_mean:
            return covariates
        numbers = covariates[:, :, self._numbers]
        mean, deviation = (
            _own_scale(numbers[:, :length])
            if self._has_own_scales
            else (self._covariate_mean, self._covariate_deviation)
        )
        start, stop = self._numbers.start, self._numbers.stop
        scaled = (numbers - mean) / deviation
        return torch.cat([covariates[:, :, :start], scaled, covariates[:, :, stop:]], 2)


def _own_scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation [B, 1, C] over the points of values [B, T, C], NaN left out.

    Of no values they are 0 and 1.
    """
    valid = ~values.isnan()
    count = valid.sum(1, keepdim=True).clamp(min=1)
    mean = values.nan_to_num().sum(1, keepdim=True) / count
    centred = (values - mean).where(valid, 0.0)
    deviation = (centred.square().sum(1, keepdim=True) / count).sqrt()
    return mean, deviation.where(deviation > 0, 1.0)


def export_graph(forecaster: Forecaster, out: Path) -> None:
    """Write a forecaster's graph to `out`: ONNX if it ends with .onnx, else torch's program.

    Its inputs are context [B, L, C] and, where the network reads them, covariates [B, L + H, F] and
    past [B, L, P]; its output is forecast [B, H, C, 1 + levels]; see ForecasterGraph. B is any, and
    L any up to data.context_length where the network takes such contexts. Raises UserError where
    the file is there, or the network cannot be written so.
    """
    if out.exists():
        raise UserError(f"{out} is there already; choose another file")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no such folder")
    write = _write_onnx if out.suffix == ".onnx" else _write_program
    try:
        with written(out) as partial, _quiet():
            write(forecaster, partial)
    except ImportError as error:
        raise UserError(f"{error.name} is not there; run: pip install 'forescale[onnx]'") from None
    except RuntimeError as error:  # of torch.export and torch.onnx
        raise UserError(
            f"{out}: this network cannot be written as {out.suffix}: {_reason(error)}; name a "
            "folder, to which any network can be exported"
        ) from None
    log.info("wrote %s: %s", out, f"{out.stat().st_size / 1e6:,.1f} MB")


def _write_onnx(forecaster: Forecaster, file: Path) -> None:
    import onnxscript  # noqa: F401 - torch's exporter needs it, and says so less plainly

    graph, inputs, sizes = _traced(forecaster)
    if sum(one.numel() * one.element_size() for one in graph.parameters()) > MOST_BYTES:
        raise RuntimeError("it has more weights than the 2 GiB of an ONNX file hold")
    program = torch.onnx.export(
        graph,
        inputs,
        dynamo=True,
        dynamic_shapes=sizes,
        input_names=[
            name for name, tensor in zip(INPUTS, inputs, strict=False) if tensor is not None
        ],
        output_names=["forecast"],
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props["forescale"] = json.dumps(_description(forecaster))
    program.save(file)


def _write_program(forecaster: Forecaster, file: Path) -> None:
    graph, inputs, sizes = _traced(forecaster)
    program = torch.export.export(graph, inputs, dynamic_shapes=sizes)
    extra = {"forescale.json": json.dumps(_description(forecaster))}
    buffer = BytesIO()  # torch's own writer ends the process where a disk is full
    torch.export.save(program, buffer, extra_files=extra)
    file.write_bytes(buffer.getbuffer())


def _traced(forecaster: Forecaster) -> tuple[ForecasterGraph, tuple[Tensor | None, ...], Sizes]:
    """Return a graph, inputs to trace it with, and which of their sizes may be others."""
    graph, shape = ForecasterGraph(forecaster).eval(), forecaster.facts.shape
    lengths, horizon = forecaster.context_lengths(), shape.prediction_length
    # Some lengths are fixed by patches and others not; the longest but one stands for any.
    length = lengths[-1] if len(lengths) == 1 else lengths[-2]
    batch = Dim("series", min=1, max=MOST_SERIES)
    generator = torch.Generator().manual_seed(0)

    def some(points: int, columns: int) -> Tensor:
        return torch.randn(3, points, columns, generator=generator, dtype=torch.float64)

    inputs = [
        some(length, shape.channels),
        some(length + horizon, graph.columns) if graph.columns else None,
        some(length, graph.past) if graph.past else None,
    ]
    while inputs[-1] is None:  # what comes last need not be given
        inputs.pop()
    sizes: list[dict[int, Dim] | None] = [
        None if tensor is None else {0: batch} for tensor in inputs
    ]
    if len(lengths) > 2:
        points = Dim("points", min=2, max=lengths[-1])
        for size, of in zip(sizes, (points, points + horizon, points), strict=False):
            if size is not None:
                size[1] = of
    return graph, tuple(inputs), tuple(sizes)


def _description(forecaster: Forecaster) -> dict[str, object]:
    """Return what a graph's numbers are."""
    facts, levels = forecaster.facts, forecaster.network.output.levels
    return {
        "channels": list(facts.channels),
        "forecast": ["point", *levels],
        "calendar": list(forecaster.settings.data.calendar),
        "calendar_encoding": forecaster.settings.data.calendar_encoding,
        "known": list(facts.known),
        "past": list(forecaster.past),
        "step": forecaster.step,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, torch's exporters say nothing of what does not concern a user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """Return the first line of an error's first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
