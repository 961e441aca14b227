"""The sections of a configuration, every key documented where it is declared."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, Field, model_validator

from model.config import CALENDAR_SIZES, ModelConfig, PositiveInt, Section

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OffIsNone = BeforeValidator(lambda value: "none" if value is False else value)
"""YAML reads a bare `off` as false."""


class NetworkConfig(ModelConfig):
    """The network, and where its first weights come from."""

    init_from: str | None = None
    """A run folder, a checkpoint or an export whose weights a new run starts from, as far as
    names and shapes are the same; what is not taken over is told. Default: drawn by train.seed."""


class DataConfig(Section):
    """What is forecast, from what, and how the series are cut."""

    source: str = "vic_elec"
    """`vic_elec` (half-hourly electricity demand, extra `demo`) or a CSV or Parquet file: wide
    (a column per channel) or long (id_column names the series). A path is relative to where the
    command runs."""
    targets: Annotated[list[str], Field(min_length=1)] | None = None
    """Columns to forecast. Default: every numeric column that has no other part."""
    covariates: list[str] = []
    """Columns known in advance (holidays, prices): the network sees their future too."""
    time_column: str | None = None
    """Column of timestamps, or `none`. Default: the first of time, date, timestamp, datetime
    and ds."""
    id_column: str | None = None
    """Column that names the series of a long file. Default: one series."""
    calendar: list[
        Literal[
            "time_of_day", "day_of_week", "day_of_year", "minute", "hour", "day_of_month", "month"
        ]
    ] = []
    """What the network knows of each moment's place in the calendar."""
    calendar_encoding: Literal["waves", "embedding"] = "waves"
    """How it is told: the sine and cosine of each phase, or the value (minute, hour, day_of_week,
    day_of_month or month) looked up in a learned table."""
    timezone: str | None = None
    """Where the calendar is read, e.g. Australia/Melbourne. Timestamps that carry an offset are
    converted; others are taken as local already. Default: as they stand in the file."""
    context_length: PositiveInt = 336
    """Points that a forecast is made from."""
    prediction_length: PositiveInt = 48
    """Points that are forecast."""
    split: Annotated[list[float], Field(min_length=3, max_length=3)] = [0.7, 0.1, 0.2]
    """Training, validation and test part of each series in time order: fractions that add to 1,
    or numbers of rows. A validation or test window's context may reach into the part before."""
    rows: PositiveInt | None = None
    """Use only the first rows of each series."""
    scaling: Literal["train", "none"] = "train"
    """Standardise each channel by the mean and deviation of its training part, or leave it."""
    season_lengths: list[PositiveInt] | None = None
    """Periods in points, shortest first: each gives a seasonal-naive baseline, the first scales
    MASE. Default: the day and the week where the sampling interval tells them."""

    @model_validator(mode="after")
    def _columns_have_one_part(self) -> DataConfig:
        for key in ("targets", "covariates"):
            names = getattr(self, key) or []
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise ValueError(f"{key}: {twice[0]} stands twice")
        both = set(self.targets or []) & set(self.covariates)
        if both:
            raise ValueError(
                f"covariates: {min(both)} is a target; what is forecast cannot be known in advance"
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
    def _timezone_exists(self) -> DataConfig:
        try:
            ZoneInfo(self.timezone or "UTC")
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(
                f"timezone: there is no {self.timezone!r}; "
                "it is named like Australia/Melbourne or UTC"
            ) from None
        return self

    @model_validator(mode="after")
    def _seasons_fit(self) -> DataConfig:
        seasons = self.season_lengths or []
        if seasons != sorted(set(seasons)):
            raise ValueError(f"season_lengths: {seasons} must ascend without repetition")
        if seasons and seasons[-1] > self.context_length:
            raise ValueError(
                f"season_lengths: {seasons[-1]} is longer than context_length="
                f"{self.context_length}, which the naive forecast repeats it from"
            )
        return self

    @model_validator(mode="after")
    def _split_adds_up(self) -> DataConfig:
        if min(self.split) < 0 or self.split[0] == 0:
            raise ValueError("split: parts cannot be negative, and the training part cannot be 0")
        if max(self.split) <= 1 and abs(sum(self.split) - 1) > 1e-6:
            raise ValueError(f"split: the fractions {self.split} add to {sum(self.split):g}, not 1")
        return self


class ParallelConfig(Section):
    """The layout of the ranks. Data parallelism is what is left of the world."""

    pipeline: PositiveInt = 1
    """Pipeline stages."""
    tensor: PositiveInt = 1
    """Ranks that share each layer's heads and hidden width."""
    expert: PositiveInt = 1
    """Ranks that share a layer's experts."""
    zero_stage: Literal[1, 2, 3] = 1
    """What ZeRO spreads over the data-parallel ranks: 1 the optimizer's states, 2 the gradients
    too, 3 the weights too. With 3, activation_checkpointing: block lets go of a layer's gathered
    weights after its forward pass; without it they stay until its backward pass."""
    offload_optimizer: Annotated[Literal["none", "cpu"], OffIsNone] = "none"
    """Where the optimizer's states live and are updated; cpu frees the device of them."""
    activation_checkpointing: Annotated[Literal["none", "block", "selective"], OffIsNone] = "none"
    """What the backward pass recomputes to save memory: each transformer layer (block), or of it
    all but the matrix products and attention (selective)."""


class TrainConfig(Section):
    """The optimization. Nothing here depends on the layout but micro_batch_size."""

    steps: PositiveInt = 1000
    """Optimizer steps of the whole run."""
    global_batch_size: PositiveInt = 64
    """Windows per optimizer step, over all ranks."""
    micro_batch_size: PositiveInt = 16
    """Windows that a rank computes at once; the rest is gradient accumulation."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """AdamW's peak learning rate."""
    final_learning_rate: Fraction = 0.0
    """What the cosine ends at, as a share of learning_rate."""
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps of linear warm-up before the cosine."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay of matrices; norms and biases have none."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's decay of the second moment."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's term against division by zero."""
    gradient_clipping: Annotated[float, Field(ge=0)] = 1.0
    """Largest global gradient norm; 0 leaves gradients as they are."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of weights and activations; master weights, moments and gradient sums are always fp32."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of initial weights, order of samples and dropout."""

    def accumulation(self, replicas: int) -> int:
        """Return the micro-batches that each of `replicas` data-parallel replicas adds up."""
        return self.global_batch_size // (self.micro_batch_size * replicas)


class CheckpointConfig(Section):
    """What is kept to go on from."""

    every: PositiveInt = 200
    """Steps between checkpoints; the last step always has one."""
    keep: PositiveInt = 3
    """Newest checkpoints that stay."""
    keep_every: Annotated[int, Field(ge=0)] = 0
    """Those at multiples of so many steps stay for good; 0: none does."""
    asynchronous: bool = True
    """Write while training goes on, from a copy of the state in the host's memory."""


class FaultsConfig(Section):
    """What becomes of a run when something goes wrong."""

    hang_seconds: Annotated[float, Field(ge=0)] = 300.0
    """A run in which some rank makes no progress for so long says who waits for whom, and ends,
    to be started again; 0: never."""
    max_skipped_steps: PositiveInt = 10
    """Steps in a row that may be skipped, weights left as they are, because their loss or gradient
    is no number or a spike; the next one ends the run."""
    spike_factor: Annotated[float, Field(ge=0)] = 0.0
    """A gradient norm of so many times the median of the last 64 is a spike; 0: none is."""
    slow_factor: Annotated[float, Field(ge=1)] = 1.5
    """A rank whose attention takes so many times as long as the median of its stage is named."""


class LoggingConfig(Section):
    """What is told on the way; metrics.jsonl has every step regardless."""

    every: PositiveInt = 10
    """Steps between lines where the output is no terminal."""
    validate_every: Annotated[int, Field(ge=0)] = 0
    """Steps between passes over the validation windows; 0: never."""
    tensorboard: bool = True
    """Write TensorBoard event files into the run folder."""


class Settings(Section):
    """A whole configuration."""

    model: NetworkConfig = NetworkConfig()
    data: DataConfig = DataConfig()
    parallel: ParallelConfig = ParallelConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    faults: FaultsConfig = FaultsConfig()
    logging: LoggingConfig = LoggingConfig()
    deepspeed: dict[str, Any] = {}
    """Merged last into the engine's own configuration; keys that Forescale owns are refused."""
