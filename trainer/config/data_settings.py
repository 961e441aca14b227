"""The section `data`: the sources of series, and the windows and parts that are made of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from model.config import LARGEST_INT, PositiveInt, Section
from model.network_config import CALENDAR_SIZES
from model.sentences import shortened
from trainer.config.table_settings import TableConfig

NonNegative = Annotated[int, Field(ge=0, le=LARGEST_INT)]
Probability = Annotated[float, Field(ge=0, le=1)]
Split = Annotated[list[float], Field(min_length=3, max_length=3)]

AllIsOne = BeforeValidator(lambda value: 1 if value == "all" else value)
"""Validator that takes 1 for `all`, of the distance between things."""

Text = Annotated[str, BeforeValidator(lambda value: str(value) if value is not None else value)]
"""A text that YAML may read as something else, such as a date."""


class SyntheticConfig(Section):
    """Series that are made, each by the seed and its number alone."""

    kind: Literal["gaussian_process", "structured", "intermittent", "coupled", "mixup"]
    """What they are: Gaussian processes of random kernels; trend, seasons, changes and outliers;
    demand now and then; channels that common latent series drive; mixtures of real series."""
    items: Annotated[int, Field(gt=0, le=2_000_000)] = 100_000
    """Number of series, each of which takes some bytes on every rank; other seeds have others."""
    length: PositiveInt = 1024
    """Points of each."""
    channels: PositiveInt = 1
    """Channels of each; those of mixup are as those that it mixes."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the series."""
    of: str | None = None
    """The set or table whose series mixup mixes."""

    @model_validator(mode="after")
    def _mixup_has_series(self) -> SyntheticConfig:
        if (self.kind == "mixup") != (self.of is not None):
            raise ValueError("of: mixup mixes the series of a source, and only mixup does")
        return self


class SourceConfig(Section):
    """One of several sources."""

    path: str | None = None
    """A set, a table or a folder, as data.source names it."""
    synthetic: SyntheticConfig | None = None
    """Series that are made, in place of a path."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often its windows are drawn, beside the other sources' weights."""
    split: Split | None = None
    """Its parts, in place of data.split. Synthetic series are all for training by default."""

    @property
    def name(self) -> str:
        """The source in sentences."""
        if self.synthetic is not None:
            return f"synthetic {self.synthetic.kind}"
        return str(self.path)

    @model_validator(mode="after")
    def _is_one(self) -> SourceConfig:
        if (self.path is None) == (self.synthetic is None):
            raise ValueError("path: a source has either a path or the key synthetic")
        return self


class AugmentConfig(Section):
    """How likely a training window is changed, by kind; each is drawn by the sample's number."""

    scale: Probability = 0.0
    """Multiplied by a factor from 0.1 to 10."""
    sign: Probability = 0.0
    """Turned upside down."""
    reverse: Probability = 0.0
    """Turned around in time; not with a calendar or covariates."""
    resample: Probability = 0.0
    """A part stretched to the whole; not with a calendar or covariates."""
    censor: Probability = 0.0
    """Cut off above or below a quantile of the context."""
    missing: Probability = 0.0
    """Blocks of the context left out."""

    @property
    def any(self) -> bool:
        """Whether some windows are changed."""
        return any(self.model_dump().values())


class DataConfig(TableConfig):
    """The series: their sources, the columns that are forecast, and the windows and parts."""

    source: str | Annotated[list[SourceConfig], Field(min_length=1)] = "vic_elec"
    """`vic_elec` (half-hourly electricity demand, extra `demo`), a set that `forescale prepare` has
    written, or what that reads: a table with a row for each point or for each series. A path is
    relative to the folder that the command runs in. Or a list of such, {path: ..., weight: ...},
    and of made series, {synthetic: {kind: ...}, weight: ...}."""
    calendar: list[
        Literal[
            "time_of_day", "day_of_week", "day_of_year", "minute", "hour", "day_of_month", "month"
        ]
    ] = []
    """Calendar features of each point that the network gets as covariates."""
    calendar_encoding: Literal["waves", "embedding"] = "waves"
    """Encoding of the calendar features: the sine and cosine of each phase, or the value (minute,
    hour, day_of_week, day_of_month or month) looked up in a learned table."""
    context_length: PositiveInt = 336
    """Points that a forecast is made from. Shorter series are padded on the left with missing
    values."""
    context_lengths: Annotated[list[PositiveInt], Field(min_length=1)] | None = None
    """Context lengths in training, ascending up to context_length: all samples of a step have one
    of them, and a series is drawn with those up to the first that holds all of it. Default:
    context_length alone."""
    prediction_length: PositiveInt = 48
    """Points that are forecast."""
    min_prediction_length: PositiveInt | None = None
    """Points that a sample of training forecasts at least: how many, up to prediction_length, is
    drawn by sample, and series that have fewer are trained on too. Default: prediction_length."""
    split: Split = [0.7, 0.1, 0.2]
    """Training, validation and test part of each series in time order: fractions that add to 1,
    or numbers of rows. A validation or test window's context may reach into the part before."""
    split_at: Annotated[list[Text], Field(min_length=2, max_length=2)] | None = None
    """Times at which the training and the validation part of all series end, in place of split:
    nothing later than the first is trained on, whatever the series' own dates."""
    split_last: Annotated[list[NonNegative], Field(min_length=2, max_length=2)] | None = None
    """Points at the end of each series that are its validation and its test part, in place of
    split."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the series that are not trained on at all, chosen by their names; their windows are
    the split held_out."""
    rows: PositiveInt | None = None
    """Number of first points of each series to use. Default: all."""
    scaling: Literal["train", "none"] = "train"
    """Scaling of each series' channels and covariates: standardised by the mean and deviation of
    its own training part, or none."""
    order: Literal["draw", "epoch"] = "draw"
    """Order of training windows: drawn with replacement, or each once before any comes again."""
    length_exponent: Annotated[float, Field(ge=0, le=1)] = 1.0
    """A series of a source is drawn by (its number of windows) ** length_exponent: with 1 all
    windows are as likely, with 0 all series."""
    validate_on: list[str] = []
    """Series that are not trained on, named as sources are, whose last prediction_length points are
    forecast every logging.validate_every steps: MASE and the weighted quantile loss, beside
    seasonal naive."""
    augment: AugmentConfig = AugmentConfig()
    """Changes of training windows."""
    prefetch_steps: NonNegative = 2
    """Steps whose training windows are made ahead, in a thread; 0: none."""
    season_lengths: list[PositiveInt] | None = None
    """Periods in points, shortest first: each gives a seasonal-naive baseline, the first scales
    MASE. Default: the day and the week, the year of months, quarters and weeks, or the week of
    days, as each series' interval has them."""
    score_every: Annotated[PositiveInt | None, AllIsOne] = None
    """Distance between the windows that are scored: `all` or 1 scores every window of a part, as
    the literature does. Default: the least with which at most 20,000 windows are scored and that
    shares no factor with a season, so that every time of a day counts."""

    @property
    def sources(self) -> list[SourceConfig]:
        """All sources, one or several."""
        return [SourceConfig(path=self.source)] if isinstance(self.source, str) else self.source

    @property
    def named(self) -> str:
        """The sources' paths, in sentences."""
        return shortened([source.name for source in self.sources])

    @property
    def table(self) -> TableConfig:
        """How tables are read."""
        return TableConfig(**{name: getattr(self, name) for name in TableConfig.model_fields})

    @property
    def shortest_context(self) -> int:
        """Points of the shortest context that training has."""
        return (self.context_lengths or [self.context_length])[0]

    @property
    def least_horizon(self) -> int:
        """Points that a sample of training forecasts at least."""
        return self.min_prediction_length or self.prediction_length

    @model_validator(mode="after")
    def _lengths_fit(self) -> DataConfig:
        lengths = self.context_lengths
        if lengths is not None and (
            lengths != sorted(set(lengths)) or lengths[-1] != self.context_length
        ):
            raise ValueError(
                f"context_lengths: {lengths} must ascend up to context_length="
                f"{self.context_length}, without repetition"
            )
        if self.least_horizon > self.prediction_length:
            raise ValueError(
                f"min_prediction_length: {self.least_horizon} is more than prediction_length="
                f"{self.prediction_length}"
            )
        return self

    @model_validator(mode="after")
    def _calendar_can_be_embedded(self) -> DataConfig:
        odd = [name for name in self.calendar if name not in CALENDAR_SIZES]
        if self.calendar_encoding == "embedding" and odd:
            raise ValueError(
                f"calendar: {odd[0]} has no values to embed; use {', '.join(CALENDAR_SIZES)}, "
                "or calendar_encoding: waves"
            )
        return self

    @model_validator(mode="after")
    def _seasons_fit(self) -> DataConfig:
        seasons = self.season_lengths or []
        if seasons != sorted(set(seasons)):
            raise ValueError(f"season_lengths: {seasons} must ascend without repetition")
        if seasons and seasons[-1] > self.context_length:
            raise ValueError(
                f"season_lengths: {seasons[-1]} is longer than context_length="
                f"{self.context_length}, which the naive forecast repeats it from; use "
                f"season_lengths={[one for one in seasons if one <= self.context_length]}"
            )
        return self

    @model_validator(mode="after")
    def _split_adds_up(self) -> DataConfig:
        if min(self.split) < 0 or self.split[0] == 0:
            raise ValueError("split: parts cannot be negative, and the training part cannot be 0")
        if max(self.split) <= 1 and abs(sum(self.split) - 1) > 1e-6:
            raise ValueError(f"split: the fractions {self.split} add to {sum(self.split):g}, not 1")
        return self

    @model_validator(mode="after")
    def _split_is_one(self) -> DataConfig:
        if self.split_at is not None and self.split_last is not None:
            raise ValueError("split_last: split_at divides the series already; set one of them")
        return self

    @model_validator(mode="after")
    def _time_stays(self) -> DataConfig:
        turned = [name for name in ("reverse", "resample") if getattr(self.augment, name)]
        if turned and (self.calendar or self.covariates):
            raise ValueError(
                f"augment.{turned[0]}: it changes the time of values, but not the calendar and "
                "covariates; leave it out, or these"
            )
        return self

    @model_validator(mode="after")
    def _order_has_no_weights(self) -> DataConfig:
        weighted = not isinstance(self.source, str) and len({one.weight for one in self.source}) > 1
        is_bucketed = len(self.context_lengths or []) > 1
        if self.order == "epoch" and (weighted or is_bucketed or self.length_exponent != 1.0):
            raise ValueError(
                "order: an epoch sees each window once; weights, length_exponent and "
                "context_lengths go with draw"
            )
        return self
