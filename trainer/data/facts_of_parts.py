"""What a forecaster keeps of the series of a dataset's parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model.network_config import SeriesShape
from trainer.config.data_settings import DataConfig
from trainer.data.part import Part
from trainer.data.series_facts import SeriesFacts, SourceFacts
from trainer.data.windows import Split


def facts_of(
    parts: Sequence[Part],
    config: DataConfig,
    shape: SeriesShape,
    names: Sequence[str],
    past: Sequence[str],
) -> SeriesFacts:
    """Return the facts of parts, with channels `names`; `past` are known up to the present."""
    columns, channels = parts[0].series.columns, shape.channels
    beside = channels + shape.covariates
    mean, deviation = np.zeros(beside + len(past)), np.ones(beside + len(past))
    is_alone = sum(len(part.series) for part in parts) == 1
    if is_alone:
        own = parts[0].scaling.of(np.zeros(1, np.int64))
        own_past = len(columns.target) + len(columns.known)
        at = [
            *range(len(columns.target)),
            *range(beside - len(columns.known), beside),
            *(beside + place for place, name in enumerate(past) if name in columns.past),
        ]
        taken = [
            *range(own_past),
            *(own_past + columns.past.index(name) for name in past if name in columns.past),
        ]
        mean[at], deviation[at] = own[0][0, taken], own[1][0, taken]
    means, deviations = (
        [tuple(part.tolist()) for part in np.split(of, [channels, beside])]
        for of in (mean, deviation)
    )
    return SeriesFacts(
        shape,
        tuple(names),
        means[0],
        deviations[0],
        means[1],
        deviations[1],
        scaling="none" if config.scaling == "none" else "table" if is_alone else "item",
        known=columns.known,
        past=tuple(past),
        past_mean=means[2],
        past_deviation=deviations[2],
        sources=tuple(
            SourceFacts(
                Path(source.name).name,
                part.series.digest,
                len(part.series),
                len(part.windows[Split.TRAIN]),
                int(part.parts.is_held_out.sum()),
                tuple(sorted({name for name in part.series.freqs() if name is not None})),
            )
            for source, part in zip(config.sources, parts, strict=True)
        ),
    )
